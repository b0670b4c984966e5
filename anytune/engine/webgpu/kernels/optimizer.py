"""Loss rows, sums, clipping and AdamW.

state: [norm, halted, summed loss, factor of the gradient]; hyper: [rate below the cut, rate behind it, 1 - beta1^t,
1 - beta2^t, beta1, beta2, eps, decay, largest norm].
"""

from __future__ import annotations

import functools

from ..kernel import CAPPED, Kernel, reads, total, writes

PIECE = 8192  # elements whose squares one workgroup sums
# compilers may assume that no NaN exists, so it is looked for in the bits
FINITE = "fn finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }"


@functools.cache
def loss_rows(gradient: bool, capped: bool = False) -> Kernel:
    """A row of logits -> its loss in nats, and in place scale * (softmax - target). Target -1: no loss, no gradient.
    capped: the logits are cap * tanh(y / cap)."""
    y, slope = ("capped(y[{}], p.cap)", " * slope(z, p.cap)") if capped else ("y[{}]", "")
    back = (
        f"""
  let factor = select(scale[p.scale0], 0.0, target_ < 0);
  for (var i = lane; i < p.n; i += 256u) {{
    let hit = select(0.0, 1.0, i32(i) == target_);
    let z = {y.format("at + i")};
    y[at + i] = select(factor * (exp(z - top) / all - hit){slope}, 0.0, target_ < 0);
  }}"""
        if gradient
        else ""
    )
    return Kernel(
        "loss_rows" + ", gradient" * gradient + ", capped" * capped,
        (*writes("y"), *reads("targets", of="i32"), *(reads("scale") if gradient else ()), *writes("losses")),
        ("n", "ys", "row0", "loss0", *(["scale0"] if gradient else []), *(["cap:f32"] if capped else [])),
        f"""
  let at = group.x * p.ys;
  let target_ = targets[p.row0 + group.x];
  var most = -3.0e38;
  for (var i = lane; i < p.n; i += 256u) {{ most = max(most, {y.format("at + i")}); }}
  let top = total_tops(most, lane);
  var sum = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{ sum += exp({y.format("at + i")} - top); }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{
    // a NaN among the logits must show, and max() may drop it: the sum does not
    losses[p.loss0 + group.x] = select(log(all) + top - {y.format("at + u32(max(target_, 0))")}, 0.0, target_ < 0);
  }}
  storageBarrier();
  workgroupBarrier();{back}
""",
        functions=total() + total("max", name="tops") + CAPPED * capped,
    )


@functools.cache
def add_up() -> Kernel:
    """out[to] (+)= the sum of n values, by one workgroup."""
    return Kernel(
        "add_up",
        (*reads("x"), *writes("out")),
        ("n", "x0", "to", "adds"),
        """
  var sum = 0.0;
  for (var i = lane; i < p.n; i += 256u) { sum += x[p.x0 + i]; }
  let all = total_sums(sum, lane);
  if (lane == 0u) { out[p.to] = select(0.0, out[p.to], p.adds != 0u) + all; }
""",
        functions=total(),
    )


@functools.cache
def square_sums() -> Kernel:
    """partial[i] = the sum of squares of PIECE elements of g."""
    return Kernel(
        "square_sums",
        (*reads("g"), *writes("partial")),
        ("n", "g0", "to"),
        f"""
  var sum = 0.0;
  let end = min(p.n, (group.x + 1u) * {PIECE}u);
  for (var i = group.x * {PIECE}u + lane; i < end; i += 256u) {{ sum = fma(g[p.g0 + i], g[p.g0 + i], sum); }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ partial[p.to + group.x] = all; }}
""",
        functions=total(),
    )


@functools.cache
def clip() -> Kernel:
    """state from the partial sums: the norm, whether to halt, and what gradients are multiplied with."""
    return Kernel(
        "clip",
        (*reads("partial", "hyper"), *writes("state")),
        ("n",),
        """
  var sum = 0.0;
  for (var i = lane; i < p.n; i += 256u) { sum += partial[i]; }
  let norm = sqrt(total_sums(sum, lane));
  if (lane == 0u) {
    state[0] = norm;
    if (!finite(norm) || !finite(state[2])) { state[1] = 1.0; }
    state[2] = 0.0;
    let most = hyper[8];
    state[3] = select(1.0, most / norm, most > 0.0 && norm > most);
  }
""",
        functions=total() + "\n" + FINITE,
    )


@functools.cache
def adamw() -> Kernel:
    """One step on n elements; `cut` is where the second rate begins, counted from the first of them. Zeroes g."""
    return Kernel(
        "adamw",
        (*writes("w", "g", "m", "v"), *reads("hyper", "state")),
        ("n", "w0", "g0", "m0", "v0", "cut"),
        """
  let i = thread.x + thread.y * 16776960u;
  if (i >= p.n) { return; }
  let slope = g[p.g0 + i] * state[3];
  g[p.g0 + i] = 0.0;
  if (state[1] != 0.0) { return; }
  let rate = select(hyper[1], hyper[0], i < p.cut);
  let first = hyper[4] * m[p.m0 + i] + (1.0 - hyper[4]) * slope;
  let second = hyper[5] * v[p.v0 + i] + (1.0 - hyper[5]) * slope * slope;
  m[p.m0 + i] = first;
  v[p.v0 + i] = second;
  let update = (first / hyper[2]) / (sqrt(second / hyper[3]) + hyper[6]);
  w[p.w0 + i] = w[p.w0 + i] * (1.0 - rate * hyper[7]) - rate * update;
""",
    )
