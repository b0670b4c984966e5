"""All gradients of one chunk of the gated delta net.

delta_backward.py has the arrays, but for through [chunks, values, 3 C key_size + 1 for each BLOCK of keys]: work's
first, last and middle third with states, states, and after; then parts of the sum of after * states. In the end the
gradients of queries and keys are in place of the first two.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, total, writes
from .delta import Sizes

BLOCK = 32  # keys of a state that a workgroup multiplies with
DEEP = 16  # columns of it at a time
ROW = DEEP // 4 + 1  # fours from row to row of them: neighbours lie in different banks


def through_width(s: Sizes) -> int:
    """Columns of `through`."""
    return 3 * s.chunk * s.key - (-s.key // BLOCK)


@functools.cache
def products(s: Sizes) -> Kernel:
    """Writes through.  grid: (blocks of keys, values, chunks)."""
    c, rows = s.chunk, -(-s.chunk // 16)
    names = ("given", "right", "wrote")  # thirds of work: 0, 2, 1
    thirds = (0, 2, 1)
    loads = "\n".join(
        f"      {name}[e / 4u][e % 4u] = select(0.0, work[at + {third}u * inner], there);"
        for name, third in zip(names, thirds)
    )
    sums = "\n".join(f"  var {n}{i}{d} = 0.0;" for n in "grw" for i in range(rows) for d in (0, 1))
    steps = "\n".join(
        f"      {n}{i}{d} += dot({name}[(ti + {16 * i}u) * {DEEP // 4}u + x], {of}{d});"
        for n, name, of in zip("grw", names, ("s", "s", "a"))
        for i in range(rows)
        for d in (0, 1)
    )
    stores = "\n".join(
        f"  if (ti + {16 * i}u < {c}u && d0 + td + {16 * d}u < {s.key}u) "
        f"{{ through[to + {number * c * s.key}u + (ti + {16 * i}u) * {s.key}u + d0 + td + {16 * d}u] = {n}{i}{d}; }}"
        for number, n in enumerate("grw")
        for i in range(rows)
        for d in (0, 1)
    )
    return Kernel(
        f"delta, products with states, {s.name}",
        (*reads("work", "states", "after"), *writes("through")),
        ("values", "tokens", "ws", "states", "ts"),
        f"""
  let d0 = group.x * {BLOCK}u;
  let head = group.y;
  let t0 = group.z * {c}u;
  let inner = p.values * {s.value}u;
  let square = (group.z * p.values + head) * p.states;
  let to = (group.z * p.values + head) * p.ts;
  let ti = lane / 16u;
  let td = lane % 16u;
  var both = 0.0;
{sums}
  for (var c0 = 0u; c0 < {s.value}u; c0 += {DEEP}u) {{
    for (var e = lane; e < {rows * 16 * DEEP}u; e += 256u) {{
      let i = e / {DEEP}u;
      let x = c0 + e % {DEEP}u;
      let there = i < {c}u && t0 + i < p.tokens && x < {s.value}u;
      let at = min(t0 + i, p.tokens - 1u) * p.ws + head * {s.value}u + min(x, {s.value - 1}u);
{loads}
    }}
    for (var e = lane; e < {BLOCK * DEEP}u; e += 256u) {{
      let d = d0 + e / {DEEP}u;
      let x = c0 + e % {DEEP}u;
      let there = d < {s.key}u && x < {s.value}u;
      let at = square + min(d, {s.key - 1}u) * {s.value}u + min(x, {s.value - 1}u);
      held[e / {DEEP}u * {ROW}u + e % {DEEP}u / 4u][e % 4u] = select(0.0, states[at], there);
      behind[e / {DEEP}u * {ROW}u + e % {DEEP}u / 4u][e % 4u] = select(0.0, after[at], there);
      both = fma(select(0.0, states[at], there), after[at], both);
    }}
    workgroupBarrier();
    for (var x = 0u; x < {DEEP // 4}u; x++) {{
      let s0 = held[td * {ROW}u + x];
      let s1 = held[(td + 16u) * {ROW}u + x];
      let a0 = behind[td * {ROW}u + x];
      let a1 = behind[(td + 16u) * {ROW}u + x];
{steps}
    }}
    workgroupBarrier();
  }}
{stores}
  let sum = total_sums(both, lane);
  if (lane == 0u) {{ through[to + {3 * c * s.key}u + group.x] = sum; }}
""",
        shared="\n".join(f"var<workgroup> {name}: array<vec4<f32>, {rows * 4 * DEEP}>;" for name in names)
        + "".join(f"\nvar<workgroup> {name}: array<vec4<f32>, {BLOCK * ROW}>;" for name in ("held", "behind")),
        functions=total(),
    )


def _scores(s: Sizes) -> str:
    """WGSL: products of the results' gradients and of the right side's with what tokens wrote."""
    c = s.chunk
    return f"""
  for (var e = lane; e < {c * c}u; e += 256u) {{
    let i = e / {c}u;
    let j = e % {c}u;
    var score = 0.0;
    var lower = 0.0;
    if (j <= i && i < count) {{
      let given = w0 + i * p.ws;
      let wrote = w0 + j * p.ws + inner;
      for (var v = 0u; v < {s.value}u; v++) {{
        score = fma(work[given + v], work[wrote + v], score);
        lower = fma(-work[given + 2u * inner + v], work[wrote + v], lower);
      }}
    }}
    scores[e] = score;
    system[e] = select(0.0, lower, j < i);
  }}"""


def _gate_gradients(s: Sizes) -> str:
    c, part = s.chunk, 256 // s.chunk
    cc, ck = c * c, c * s.key
    return f"""
  let row = min(lane / {part}u, count - 1u);
  var sums = vec4<f32>();
  for (var d = lane % {part}u; d < {s.key}u; d += {part}u) {{
    let at = h0 + row * {s.key}u + d;
    sums.x = fma(units[q0 + row * p.us + d], through[at], sums.x);
    sums.y = fma(units[k0 + row * p.us + d], through[at + {ck}u], sums.y);
    sums.z = fma(units[k0 + row * p.us + d], through[at + {2 * ck}u], sums.z);
  }}
  for (var v = lane % {part}u; v < {s.value}u; v += {part}u) {{
    sums.w = fma(work[w0 + row * p.ws + 2u * inner + v], x[(t0 + row) * p.xs + v0 + v], sums.w);
  }}
  parts[lane] = sums;
  workgroupBarrier();
  if (lane < count) {{
    let i = lane;
    sums = vec4<f32>();
    for (var n = i * {part}u; n < (i + 1u) * {part}u; n++) {{ sums += parts[n]; }}
    let carried = steps[(t0 + i) * p.ss + head];
    let strength = steps[(t0 + i) * p.ss + p.values + head];
    var total = (p.scale * sums.x - strength * sums.y) * carried;
    var lower = 0.0;
    for (var j = 0u; j < {c}u; j++) {{
      let across = i * {c}u + j;
      let down = j * {c}u + i;
      lower = fma(system[across], factors[f0 + {2 * cc}u + across], lower);
      total = fma(scores[across], factors[f0 + {cc}u + across], total);
      total = fma(-scores[down], factors[f0 + {cc}u + down], total);
      if (j < count) {{
        let other = steps[(t0 + j) * p.ss + p.values + head];
        total = fma(-system[down] * other, factors[f0 + {2 * cc}u + down], total);
      }}
    }}
    let last = factors[f0 + (count - 1u) * {c}u + i] * sums.z;
    lasts[i] = last;
    totals[i] = total + strength * lower - last;
    dgates[(t0 + i) * p.gs + p.values + head] = sums.w - carried * sums.y + lower;
  }}
  workgroupBarrier();
  if (lane < count) {{
    var sum = 0.0;
    for (var i = lane; i < count; i++) {{
      if (lane >= u32(steps[(t0 + i) * p.ss + 2u * p.values])) {{ sum += totals[i]; }}
    }}
    if (lane >= u32(steps[(t0 + count - 1u) * p.ss + 2u * p.values])) {{
      var both = 0.0;
      for (var n = 0u; n < {-(-s.key // BLOCK)}u; n++) {{ both += through[h0 + {3 * ck}u + n]; }}
      sum = fma(both, steps[(t0 + count - 1u) * p.ss + head], sum);
      for (var i = 0u; i < count; i++) {{ sum += lasts[i]; }}
    }}
    dgates[(t0 + lane) * p.gs + head] = sum;
  }}"""


def _input_gradients(s: Sizes) -> str:
    """WGSL: of queries, keys and values."""
    c, cc, ck = s.chunk, s.chunk**2, s.chunk * s.key
    return f"""
  workgroupBarrier();
  for (var e = lane; e < {cc}u; e += 256u) {{
    let decay = factors[f0 + e];
    scores[e] *= decay * p.scale;
    system[e] *= decay * steps[(t0 + min(e / {c}u, count - 1u)) * p.ss + p.values + head];
  }}
  storageBarrier();
  workgroupBarrier();
  for (var e = lane; e < count * {s.key}u; e += 256u) {{
    let i = e / {s.key}u;
    let d = e % {s.key}u;
    let carried = steps[(t0 + i) * p.ss + head];
    let strength = steps[(t0 + i) * p.ss + p.values + head];
    var dq = carried * p.scale * through[h0 + e];
    var dk = factors[f0 + (count - 1u) * {c}u + i] * through[h0 + {2 * ck}u + e];
    dk = fma(-strength * carried, through[h0 + {ck}u + e], dk);
    for (var j = 0u; j < count; j++) {{
      let k = units[k0 + j * p.us + d];
      dq = fma(scores[i * {c}u + j], k, dq);
      dk = fma(scores[j * {c}u + i], units[q0 + j * p.us + d], dk);
      dk = fma(system[i * {c}u + j] + system[j * {c}u + i], k, dk);
    }}
    through[h0 + e] = dq;
    through[h0 + {ck}u + e] = dk;
  }}
  for (var e = lane; e < count * {s.value}u; e += 256u) {{
    let i = e / {s.value}u;
    let v = e % {s.value}u;
    let strength = steps[(t0 + i) * p.ss + p.values + head];
    dx[(t0 + i) * p.ds + v0 + v] = strength * work[w0 + i * p.ws + 2u * inner + v];
  }}
"""


@functools.cache
def gradients(s: Sizes) -> Kernel:
    """Gradients of a chunk: of queries and keys into through, of values into dx, of the logarithms of decays and of
    write strengths into dgates.  grid: (values, chunks)."""
    c, cc = s.chunk, s.chunk**2
    return Kernel(
        f"delta, gradients, {s.name}",
        (*reads("units", "work", "x", "factors", "steps"), *writes("through", "dgates", "dx")),
        ("keys", "values", "deep", "tokens", "us", "ws", "xs", "fs", "ss", "ts", "gs", "ds", "scale:f32"),
        f"""
  let head = group.x;
  let t0 = group.y * {c}u;
  let count = min({c}u, p.tokens - t0);
  let inner = p.values * {s.value}u;
  let f0 = (group.y * p.values + head) * p.fs;
  let h0 = (group.y * p.values + head) * p.ts;
  let w0 = t0 * p.ws + head * {s.value}u;
  let q0 = t0 * p.us + head % p.keys * {s.key}u;
  let k0 = q0 + p.keys * {s.key}u;
  let v0 = 2u * p.keys * p.deep + head * {s.value}u;{_scores(s)}{_gate_gradients(s)}{_input_gradients(s)}""",
        shared=f"var<workgroup> scores: array<f32, {cc}>;\nvar<workgroup> system: array<f32, {cc}>;\n"
        f"var<workgroup> parts: array<vec4<f32>, 256>;\nvar<workgroup> totals: array<f32, {c}>;\n"
        f"var<workgroup> lasts: array<f32, {c}>;",
    )
