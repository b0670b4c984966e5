"""Row by row: norms, sums, dropout, and rows taken and put.

Strides (xs, ys, …) are elements from row to row. A workgroup takes a row (or a head of a row), or invocations an
element each, with x along the columns and y along the rows.
"""

from __future__ import annotations

import functools

from ..kernel import CAPPED, Kernel, element, reads, total, writes


@functools.cache
def rms_norm(adds: bool) -> Kernel:
    """y = x / sqrt(mean x² + eps) * gain over each row; adds: x += more first."""
    sum_ = (
        """
    x[at + i] += more[group.x * p.ms + i];"""
        if adds
        else ""
    )
    return Kernel(
        "rms_norm" + " of a sum" * adds,
        (*(writes("x") if adds else reads("x")), *reads("gain", *(["more"] if adds else [])), *writes("y")),
        ("n", "xs", "ys", "eps:f32", *(["ms"] if adds else [])),
        f"""
  let at = group.x * p.xs;
  var square = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{{sum_}
    square = fma(x[at + i], x[at + i], square);
  }}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.n) + p.eps);
  for (var i = lane; i < p.n; i += 256u) {{ y[group.x * p.ys + i] = x[at + i] * r * gain[i]; }}
""",
        functions=total(),
    )


@functools.cache
def rms_norm_backward(adds: bool) -> Kernel:
    """dx = r (dy gain - x mean(dy gain x) r²), r = 1 / sqrt(mean x² + eps); adds: plus a residual."""
    plus = " + residual[group.x * p.rs + i]" if adds else ""
    return Kernel(
        "rms_norm_backward" + " with a residual" * adds,
        (*reads("dy", "x", "gain", *(["residual"] if adds else [])), *writes("dx")),
        ("n", "ds", "xs", "ys", "eps:f32", *(["rs"] if adds else [])),
        f"""
  var square = 0.0;
  var through = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{
    let v = x[group.x * p.xs + i];
    square = fma(v, v, square);
    through = fma(dy[group.x * p.ds + i] * gain[i], v, through);
  }}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.n) + p.eps);
  let back = total_sums(through, lane) * r * r / f32(p.n);
  for (var i = lane; i < p.n; i += 256u) {{
    dx[group.x * p.ys + i] = r * (dy[group.x * p.ds + i] * gain[i] - x[group.x * p.xs + i] * back){plus};
  }}
""",
        functions=total(),
    )


@functools.cache
def cap() -> Kernel:
    """y = cap * tanh(y / cap), in place."""
    return Kernel(
        "cap",
        writes("y"),
        ("n", "ys", "cap:f32"),
        element()
        + """
  y[t * p.ys + i] = capped(y[t * p.ys + i], p.cap);""",
        functions=CAPPED,
    )


@functools.cache
def scale(each: bool) -> Kernel:
    """y = x * f; each: of the row, else one number."""
    return Kernel(
        "scale" + " rows" * each,
        (*reads("x", *(["f"] if each else [])), *writes("y")),
        ("n", "xs", "fs", "ys") if each else ("n", "xs", "ys", "f:f32"),
        element()
        + f"""
  y[t * p.ys + i] = x[t * p.xs + i] * {"f[t * p.fs]" if each else "p.f"};""",
    )


@functools.cache
def add() -> Kernel:
    """y = x + y."""
    return Kernel(
        "add",
        (*reads("x"), *writes("y")),
        ("n", "xs", "ys"),
        element()
        + """
  y[t * p.ys + i] += x[t * p.xs + i];""",
    )


@functools.cache
def gather() -> Kernel:
    """y[t] = x[row[t]] for rows low…high of x, which begin at x; numbers beyond the last row take the last."""
    return Kernel(
        "gather",
        (*reads("x"), *reads("row", of="u32"), *writes("y")),
        ("n", "xs", "ys", "x0", "row0", "low", "high", "last"),
        element()
        + """
  let from_ = min(row[p.row0 + t], p.last);
  if (from_ >= p.low && from_ < p.high) { y[t * p.ys + i] = x[p.x0 + (from_ - p.low) * p.xs + i]; }""",
    )


@functools.cache
def fill() -> Kernel:
    """y = a value."""
    return Kernel(
        "fill",
        writes("y"),
        ("n", "ys", "value:f32"),
        element()
        + """
  y[t * p.ys + i] = p.value;""",
    )


@functools.cache
def scatter() -> Kernel:
    """y[row[t]] = x[t] for rows low…high of y."""
    return Kernel(
        "scatter",
        (*reads("x"), *reads("row", of="u32"), *writes("y")),
        ("n", "xs", "ys", "row0", "low", "high"),
        element()
        + """
  let to = row[p.row0 + t];
  if (to >= p.low && to < p.high) { y[(to - p.low) * p.ys + i] = x[t * p.xs + i]; }""",
    )


@functools.cache
def copy() -> Kernel:
    """y = x, from and to any column."""
    return Kernel(
        "copy",
        (*reads("x"), *writes("y")),
        ("n", "xs", "ys", "x0", "y0"),
        element()
        + """
  y[p.y0 + t * p.ys + i] = x[p.x0 + t * p.xs + i];""",
    )


@functools.cache
def dropout(adds: bool) -> Kernel:
    """y = x with a mask that (key, number, element) decides, and 1 / (1 - rate); adds: y += that."""
    return Kernel(
        "dropout" + ", added" * adds,
        (*reads("x"), *reads("key", of="u32"), *writes("y")),
        ("n", "xs", "ys", "key0", "number:i32", "t0", "rate:f32"),
        element()
        + f"""
  var h = mix(key[p.key0] ^ 0x9e3779b9u);
  h = mix(h ^ key[p.key0 + 1u]);
  h = mix(h ^ key[p.key0 + 2u]);
  h = mix(h ^ bitcast<u32>(p.number));
  h = mix(h ^ (t + p.t0));
  h = mix(h ^ i);
  let kept = f32(h >> 8u) * (1.0 / 16777216.0) >= p.rate;
  y[t * p.ys + i] {"+=" if adds else "="} select(0.0, x[t * p.xs + i] / (1.0 - p.rate), kept);""",
        functions="""
fn mix(a: u32) -> u32 {
  var h = a;
  h = (h ^ (h >> 16u)) * 0x7feb352du;
  h = (h ^ (h >> 15u)) * 0x846ca68bu;
  return h ^ (h >> 16u);
}""",
    )
