"""The gated delta net's backward around a chunk's gradients: through norms, the walk back, lengths and gates.

delta.py and delta_walk.py have the arrays of the forward. Beside them:
    work [tokens, 3, values, value_size]: gradients of the results before their norm (first the results themselves),
    what tokens write, and gradients of the system's right side;
    after, like states: gradients of the states behind each chunk;
    through: see delta_gradients.py.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, total, writes
from .delta import LANES, SOFT, Sizes
from .delta_walk import SPAN, cut


@functools.cache
def norm_backward() -> Kernel:
    """The gradient of norm()'s y before it, over that."""
    return Kernel(
        "delta, norm_backward",
        (*reads("dy", "gain"), *writes("y")),
        ("size", "ds", "ys", "g0", "eps:f32"),
        f"""
  let at = group.y * p.ys + group.x * p.size;
  let from_ = group.y * p.ds + group.x * p.size;
  var square = 0.0;
  var back = 0.0;
  for (var i = lane; i < p.size; i += {LANES}u) {{
    square = fma(y[at + i], y[at + i], square);
    back = fma(dy[from_ + i] * gain[p.g0 + i], y[at + i], back);
  }}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.size) + p.eps);
  let mean = total_sums(back, lane) * r * r / f32(p.size);
  for (var i = lane; i < p.size; i += {LANES}u) {{
    y[at + i] = r * (dy[from_ + i] * gain[p.g0 + i] - y[at + i] * mean);
  }}
""",
        (LANES, 1),
        f"var<workgroup> sums: array<f32, {LANES}>;",
        total(size=LANES),
    )


# (first chunk, last) that segment z walks back over: from the last cut in it down to that in one before; none: (0, 1)
_RUN = f"""
fn run_of(z: u32, head: u32, final_: bool) -> vec2<u32> {{
  let low = z * {SPAN}u;
  var begin = min(low + {SPAN}u, p.chunks);
  while (!final_ && begin > low) {{
    if (cut(begin - 1u, head)) {{ break; }}
    begin--;
  }}
  var end = low;
  while (end > 0u) {{
    if (cut(end - 1u, head)) {{ break; }}
    end--;
  }}
  if (end > 0u) {{ end--; }}
  return select(vec2<u32>(0u, 1u), vec2<u32>(begin - 1u, end), begin > low);
}}"""


@functools.cache
def walk_back(s: Sizes, goes_on: bool, hands_on: bool) -> Kernel:
    """Writes after, and the last third of work.  grid: as walk()'s, from the last chunk of a run to the first.

    goes_on: the gradient of the state behind the run is `behind`; hands_on: that before it is `before`.
    """
    c, b = s.chunk, s.columns
    own = f"""
      let i = e / {b}u;
      let to = e % {b}u;"""
    wide = f"c0 + e % {b}u < {s.value}u"
    hand = f"""
  if (run.y == 0u && (run.x > 0u || final_)) {{
    for (var e = lane; e < {s.key * b}u; e += 256u) {{
      if ({wide}) {{ before[square + e / {b}u * {s.value}u + e % {b}u] = state[e]; }}
    }}
  }}"""
    start = f"behind[square + e / {b}u * {s.value}u + min(e % {b}u, {s.value - 1}u - c0)]"
    return Kernel(
        f"delta, walk back, {s.name}{', going on' * goes_on}{', handing on' * hands_on}",
        (
            *reads("units", "factors", "steps", *(["behind"] if goes_on else [])),
            *writes("work", "after", *(["before"] if hands_on else [])),
        ),
        ("keys", "values", "tokens", "chunks", "us", "fs", "ss", "ws", "states", "segments", "scale:f32"),
        f"""
  let c0 = group.x * {b}u;
  let head = group.y;
  let square = head * {s.key * s.value}u + c0;
  let column = head * {s.value}u + c0;
  let q0 = head % p.keys * {s.key}u;
  let k0 = q0 + p.keys * {s.key}u;
  let inner = p.values * {s.value}u;
  let final_ = group.z + 1u == p.segments;
  if (lane == 0u) {{ place = run_of(group.z, head, final_); }}
  let run = workgroupUniformLoad(&place);
  if (run.x < run.y) {{ return; }}
  for (var e = lane; e < {s.key * b}u; e += 256u) {{
    state[e] = {f"select(0.0, {start}, final_)" if goes_on else "0.0"};
  }}
  for (var m = run.x + 1u; m > run.y; m--) {{
    let n = m - 1u;
    let t0 = n * {c}u;
    let count = min({c}u, p.tokens - t0);
    let f0 = (n * p.values + head) * p.fs;
    let mine = n < run.x || final_;
    workgroupBarrier();
    for (var e = lane; e < {s.key * b}u; e += 256u) {{
      if (mine && {wide}) {{
        after[(n * p.values + head) * p.states + e / {b}u * {s.value}u + c0 + e % {b}u] = state[e];
      }}
    }}
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      let at = (t0 + min(i, count - 1u)) * p.ws + column + min(to, {s.value - 1}u - c0);
      given[e] = select(0.0, work[at], i < count);
    }}
    workgroupBarrier();
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      var sum = 0.0;
      if (i < count) {{
        let k = (t0 + i) * p.us + k0;
        for (var d = 0u; d < {s.key}u; d++) {{ sum = fma(units[k + d], state[d * {b}u + to], sum); }}
        sum *= factors[f0 + (count - 1u) * {c}u + i];
        for (var j = i; j < count; j++) {{
          sum = fma(factors[f0 + {c * c}u + j * {c}u + i], given[j * {b}u + to], sum);
        }}
      }}
      writes[e] = sum;
    }}
    workgroupBarrier();
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      var sum = 0.0;
      for (var j = i; j < count; j++) {{
        sum = fma(factors[f0 + {3 * c * c}u + j * {c}u + i], writes[j * {b}u + to], sum);
      }}
      right[e] = sum;
      if (i < count && mine && {wide}) {{ work[(t0 + i) * p.ws + 2u * inner + column + to] = sum; }}
    }}
    workgroupBarrier();
    let passes = steps[(t0 + count - 1u) * p.ss + head];
    for (var e = lane; e < {s.key * b}u; e += 256u) {{
      let d = e / {b}u;
      var sum = passes * state[e];
      for (var i = 0u; i < count; i++) {{
        let at = (t0 + i) * p.us + d;
        let carried = steps[(t0 + i) * p.ss + head];
        let strength = steps[(t0 + i) * p.ss + p.values + head];
        sum = fma(carried * p.scale * units[at + q0], given[i * {b}u + e % {b}u], sum);
        sum = fma(-carried * strength * units[at + k0], right[i * {b}u + e % {b}u], sum);
      }}
      state[e] = sum;
    }}
  }}{hand if hands_on else ""}
""",
        shared=f"var<workgroup> state: array<f32, {s.key * b}>;\nvar<workgroup> right: array<f32, {c * b}>;\n"
        f"var<workgroup> writes: array<f32, {c * b}>;\nvar<workgroup> given: array<f32, {c * b}>;\n"
        "var<workgroup> place: vec2<u32>;",
        functions=cut(c) + _RUN,
    )


@functools.cache
def units_backward(s: Sizes) -> Kernel:
    """dx of queries and keys, each summed over the value heads that read it, before their lengths became 1.

    grid: (2 keys, rows)."""
    return Kernel(
        f"delta, units_backward, {s.name}",
        (*reads("through", "units", "r"), *writes("dx")),
        ("keys", "values", "us", "rs", "ts", "ds", "eps:f32"),
        f"""
  let at = group.y * p.us + group.x * {s.key}u;
  let to = group.y * p.ds + group.x * {s.key}u;
  let row = group.y / {s.chunk}u * p.values;
  let place = group.x / p.keys * {s.chunk * s.key}u + group.y % {s.chunk}u * {s.key}u;
  var sum = 0.0;
  for (var i = lane; i < {s.key}u; i += {LANES}u) {{
    var all = 0.0;
    for (var head = group.x % p.keys; head < p.values; head += p.keys) {{
      all += through[(row + head) * p.ts + place + i];
    }}
    dx[to + i] = all;
    sum = fma(all, units[at + i], sum);
  }}
  let inverse = r[group.y * p.rs + group.x];
  let inner = select(0.0, total_sums(sum, lane), inverse * p.eps < 1.0);
  for (var i = lane; i < {s.key}u; i += {LANES}u) {{ dx[to + i] = inverse * (dx[to + i] - units[at + i] * inner); }}
""",
        (LANES, 1),
        f"var<workgroup> sums: array<f32, {LANES}>;",
        total(size=LANES),
    )


@functools.cache
def gates_backward() -> Kernel:
    """(dbeta, dalpha, and each token's share of da) of gates().  grid: invocations an element."""
    return Kernel(
        "delta, gates_backward",
        (*reads("dgates", "beta", "alpha", "a", "bias"), *writes("dbeta", "dalpha", "da")),
        ("n", "gs", "bs", "as_", "a0", "bias0", "ds"),
        """
  let i = thread.x;
  let t = thread.y;
  if (i >= p.n) { return; }
  let shifted = alpha[t * p.as_ + i] + bias[p.bias0 + i];
  let strength = sigmoid(beta[t * p.bs + i]);
  let dlog = dgates[t * p.gs + i];
  dbeta[t * p.ds + i] = dgates[t * p.gs + p.n + i] * strength * (1.0 - strength);
  dalpha[t * p.ds + i] = dlog * a[p.a0 + i] * sigmoid(shifted);
  da[t * p.ds + i] = dlog * softplus(shifted);""",
        functions=SOFT,
    )
