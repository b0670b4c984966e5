"""The gated delta net's backward around a chunk's gradients: through norms, the walk back, lengths and gates.

delta.py and delta_scan.py have the arrays of the forward. Beside them:
    work [tokens, 3, values, value_size]: gradients of the results before their norm (first the results themselves),
    what tokens write, and gradients of the system's right side;
    after, like states: gradients of the states behind each chunk;
    through: see delta_gradients.py.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, total, writes
from .delta import LANES, SOFT, Sizes
from .delta_scan import LANES as SCAN_LANES
from .delta_scan import SPAN, columns, cut, each, gathered, next_state, put, times_state


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
        functions=total(size=LANES),
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
def scan_backward(s: Sizes, takes_state: bool, gives_state: bool) -> Kernel:
    """Writes after, and the last third of work.  grid: as scan()'s, from the last chunk of a run to the first.

    takes_state: the gradient of the state behind the run is `behind`; gives_state: that before it is `before`.
    """
    c, f, deep, cc = s.chunk, s.columns // 4, s.key // 4, s.chunk**2
    square, later = f"(head * {s.key}u + i) * {s.value}u", f"(n * p.values + head) * p.states + i * {s.value}u"
    start = f"select(vec4<f32>(), {gathered('behind', square)}, final_)" if takes_state else "vec4<f32>()"
    right = f"(t0 + i) * p.ws + (2u * p.values + head) * {s.value}u"
    token = f"""
        let carried = steps[(t0 + j) * p.ss + head];
        let q = carried * p.scale * units[(t0 + j) * p.us + q0 + i];
        let k = -carried * steps[(t0 + j) * p.ss + p.values + head] * units[(t0 + j) * p.us + k0 + i];
        let g = given[j * {f}u + to];
        let r = right[j * {f}u + to];"""
    hand = f"""
  if (run.y == 0u && (run.x > 0u || final_)) {{{each(s.key, f)}
{put("before", square, "state[e]", s)}
    }}
  }}"""
    return Kernel(
        f"delta, scan backward, {s.name}{', takes a state' * takes_state}{', gives a state' * gives_state}",
        (
            *reads("units", of="vec4<f32>"),
            *reads("factors", "steps", *(["behind"] if takes_state else [])),
            *writes("work", "after", *(["before"] if gives_state else [])),
        ),
        ("keys", "values", "tokens", "chunks", "us", "fs", "ss", "ws", "states", "segments", "scale:f32"),
        f"""
  let c0 = group.x * {s.columns}u;
  let head = group.y;
  let q0 = head % p.keys * {deep}u;
  let k0 = q0 + p.keys * {deep}u;
  let final_ = group.z + 1u == p.segments;
  if (lane == 0u) {{ place = run_of(group.z, head, final_); }}
  let run = workgroupUniformLoad(&place);
  if (run.x < run.y) {{ return; }}{each(s.key, f)}
      let places = four(c);
      state[e] = {start};
    }}
  for (var m = run.x + 1u; m > run.y; m--) {{
    let n = m - 1u;
    let t0 = n * {c}u;
    let count = min({c}u, p.tokens - t0);
    let f0 = (n * p.values + head) * p.fs;
    let mine = n < run.x || final_;
    workgroupBarrier();{each(s.key, f)}{put("after", later, "state[e]", s, " && mine")}
    }}{each(c, f)}
      let places = four(c);
      let at = (t0 + min(i, count - 1u)) * p.ws + head * {s.value}u;
      given[e] = select(vec4<f32>(), {gathered("work", "at")}, i < count);
    }}
    workgroupBarrier();{each(c, f)}
      var sum = vec4<f32>();
      if (i < count) {{{times_state(s, "k0")}
        sum *= factors[f0 + (count - 1u) * {c}u + i];
        for (var j = i; j < count; j++) {{
          sum = fma(vec4<f32>(factors[f0 + {cc}u + j * {c}u + i]), given[j * {f}u + to], sum);
        }}
      }}
      writes[e] = sum;
    }}
    workgroupBarrier();{each(c, f)}
      var sum = vec4<f32>();
      for (var j = i; j < count; j++) {{
        sum = fma(vec4<f32>(factors[f0 + {3 * cc}u + j * {c}u + i]), writes[j * {f}u + to], sum);
      }}
      right[e] = sum;{put("work", right, "sum", s, " && i < count && mine")}
    }}
{next_state(s, [("q", "g"), ("k", "r")], token)}
  }}{"workgroupBarrier();" + hand if gives_state else ""}
""",
        (SCAN_LANES, 1),
        f"var<workgroup> state: array<vec4<f32>, {s.key * f}>;\nvar<workgroup> right: array<vec4<f32>, {c * f}>;\n"
        f"var<workgroup> writes: array<vec4<f32>, {c * f}>;\nvar<workgroup> given: array<vec4<f32>, {c * f}>;\n"
        "var<workgroup> place: vec2<u32>;",
        cut(c) + _RUN + columns(s),
    )


@functools.cache
def units_backward(s: Sizes) -> Kernel:
    """dx of queries and keys, each summed over the value heads that read it, before their lengths became 1.

    grid: (2 keys, rows)."""
    return Kernel(
        f"delta, units_backward, {s.name}",
        (*reads("through", "units", "r"), *writes("dx")),
        ("keys", "values", "deep", "us", "rs", "ts", "ds", "eps:f32"),
        f"""
  let at = group.y * p.us + group.x * {s.key}u;
  let to = group.y * p.ds + group.x * p.deep;
  let row = group.y / {s.chunk}u * p.values;
  let place = group.x / p.keys * {s.chunk * s.key}u + group.y % {s.chunk}u * {s.key}u;
  var sum = 0.0;
  for (var i = lane; i < p.deep; i += {LANES}u) {{
    var all = 0.0;
    for (var head = group.x % p.keys; head < p.values; head += p.keys) {{
      all += through[(row + head) * p.ts + place + i];
    }}
    dx[to + i] = all;
    sum = fma(all, units[at + i], sum);
  }}
  let inverse = r[group.y * p.rs + group.x];
  let inner = select(0.0, total_sums(sum, lane), inverse * p.eps < 1.0);
  for (var i = lane; i < p.deep; i += {LANES}u) {{ dx[to + i] = inverse * (dx[to + i] - units[at + i] * inner); }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )


@functools.cache
def gates_backward() -> Kernel:
    """(dbeta, dalpha, and each token's share of da) of gates().  grid: one invocation per element."""
    return Kernel(
        "delta, gates_backward",
        (*reads("dgates", "beta", "alpha", "a", "bias"), *writes("dbeta", "dalpha", "da")),
        ("n", "gs", "bs", "as_", "a0", "bias0", "ds"),
        element()
        + """
  let shifted = alpha[t * p.as_ + i] + bias[p.bias0 + i];
  let strength = sigmoid(beta[t * p.bs + i]);
  let dlog = dgates[t * p.gs + i];
  dbeta[t * p.ds + i] = dgates[t * p.gs + p.n + i] * strength * (1.0 - strength);
  dalpha[t * p.ds + i] = dlog * a[p.a0 + i] * sigmoid(shifted);
  da[t * p.ds + i] = dlog * softplus(shifted);""",
        functions=SOFT,
    )
