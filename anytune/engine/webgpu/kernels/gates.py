"""Gated products: y = act(gate) * up by element, and rows times a sigmoid."""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, total, writes

LANES = 64
SILU = """
fn activate(x: f32) -> f32 { return x / (1.0 + exp(-x)); }
fn slope(x: f32) -> f32 { let s = 1.0 / (1.0 + exp(-x)); return s * (1.0 + x * (1.0 - s)); }"""
# tanh by exp: some drivers' own gives NaN for large arguments
GELU = """
fn inner(x: f32) -> f32 { return 1.0 - 2.0 / (exp(2.0 * 0.7978845608028654 * (x + 0.044715 * x * x * x)) + 1.0); }
fn activate(x: f32) -> f32 { return 0.5 * x * (1.0 + inner(x)); }
fn slope(x: f32) -> f32 {
  let t = inner(x);
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x);
}"""
SIGMOID = """
fn activate(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }
fn slope(x: f32) -> f32 { let s = activate(x); return s * (1.0 - s); }"""
NONE = """
fn activate(x: f32) -> f32 { return x; }
fn slope(x: f32) -> f32 { return 1.0; }"""
# gpt-oss's: gate at most 7, up between -7 and 7, plus 1; what is clamped gets no gradient
CLAMPED = """
fn activate(x: f32) -> f32 { let g = min(x, 7.0); return g / (1.0 + exp(-1.702 * g)); }
fn slope(x: f32) -> f32 {
  let s = 1.0 / (1.0 + exp(-1.702 * x));
  return select(0.0, s * (1.0 + 1.702 * x * (1.0 - s)), x <= 7.0);
}
fn factor(u: f32) -> f32 { return clamp(u, -7.0, 7.0) + 1.0; }
fn factor_slope(u: f32) -> f32 { return select(0.0, 1.0, abs(u) <= 7.0); }"""
UP = """
fn factor(u: f32) -> f32 { return u; }
fn factor_slope(u: f32) -> f32 { return 1.0; }"""
ACTIVATIONS = {"silu": SILU + UP, "gelu": GELU + UP, "sigmoid": SIGMOID + UP, "none": NONE + UP, "clamped": CLAMPED}


@functools.cache
def glu(activation: str) -> Kernel:
    """y = act(gate) * up; CLAMPED has a factor of its own."""
    return Kernel(
        f"glu, {activation}",
        (*reads("gate", "up"), *writes("y")),
        ("n", "gs", "us", "ys"),
        element()
        + """
  y[t * p.ys + i] = activate(gate[t * p.gs + i]) * factor(up[t * p.us + i]);""",
        functions=ACTIVATIONS[activation],
    )


@functools.cache
def glu_backward(activation: str, over: bool = False) -> Kernel:
    """dgate = dy up act'(gate), dup = dy act(gate); over: in place of gate and up."""
    arrays = writes("gate", "up") if over else (*reads("gate", "up"), *writes("dgate", "dup"))
    dgate, dup = ("gate[t * p.gs + i]", "up[t * p.us + i]") if over else ("dgate[t * p.dgs + i]", "dup[t * p.dus + i]")
    return Kernel(
        f"glu_backward{' over' * over}, {activation}",
        (*reads("dy"), *arrays),
        ("n", "ds", "gs", "us", *([] if over else ["dgs", "dus"])),
        element()
        + f"""
  let g = gate[t * p.gs + i];
  let u = up[t * p.us + i];
  let d = dy[t * p.ds + i];
  {dgate} = d * factor(u) * slope(g);
  {dup} = d * activate(g) * factor_slope(u);""",
        functions=ACTIVATIONS[activation],
    )


@functools.cache
def gate_rows() -> Kernel:
    """y[t] = x[t] * sigmoid(gate[t])."""
    return Kernel(
        "gate_rows",
        (*reads("x", "gate"), *writes("y")),
        ("n", "xs", "gs", "ys"),
        element()
        + """
  y[t * p.ys + i] = x[t * p.xs + i] / (1.0 + exp(-gate[t * p.gs]));""",
    )


@functools.cache
def gate_rows_backward() -> Kernel:
    """dx = dy * sigmoid(gate), dgate = (dy · x) * sigmoid'(gate).  grid: (rows,)."""
    return Kernel(
        "gate_rows_backward",
        (*reads("dy", "x", "gate"), *writes("dx", "dgate")),
        ("n", "ds", "xs", "gs", "ys", "hs"),
        f"""
  let by = 1.0 / (1.0 + exp(-gate[group.x * p.gs]));
  var sum = 0.0;
  for (var i = lane; i < p.n; i += {LANES}u) {{
    let d = dy[group.x * p.ds + i];
    sum = fma(d, x[group.x * p.xs + i], sum);
    dx[group.x * p.ys + i] = d * by;
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ dgate[group.x * p.hs] = all * by * (1.0 - by); }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )
