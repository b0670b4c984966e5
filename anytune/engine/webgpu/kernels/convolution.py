"""A causal depthwise convolution within each example.

w [n, kernel], contiguous; its last column is for the token itself. An invocation has a column of a row. Arrays of
inputs may begin some rows before (or end behind) those that a dispatch writes, as far as the kernel reaches.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, writes
from .columns import FUNCTIONS, column_sum

# sum over the taps that reach a token of the same example
_SUM = """
fn sum(t: u32, i: u32) -> f32 {
  var z = 0.0;
  let reach = min(p.t0 + t - first[p.t0 + t], p.kernel - 1u);
  for (var back = 0u; back <= reach; back++) {
    z = fma(x[(p.before + t - back) * p.xs + i], w[p.w0 + (i + 1u) * p.kernel - 1u - back], z);
  }
  return z;
}"""
# the input `back` tokens before row t: of the same span of new rows, of what the cache keeps, or there was none
_TAKEN = """
fn taken(t: u32, back: u32, i: u32) -> f32 {
  if (back > position[p.position0 + t]) { return 0.0; }
  let s = slot[p.slot0 + t];
  var r = 0u;
  while (r < back && r < t) {
    if (slot[p.slot0 + t - r - 1u] != s) { break; }
    r++;
  }
  if (r == back) { return x[(t - back) * p.xs + i]; }
  return cache[p.base + ((s - p.low) * (p.kernel - 1u) + p.kernel - 1u + r - back) * p.n + i];
}"""


@functools.cache
def convolve(silu: bool) -> Kernel:
    """y[t] = the sum over taps, then silu if asked for."""
    return Kernel(
        "convolve" + ", silu" * silu,
        (*reads("x", "w"), *reads("first", of="u32"), *writes("y")),
        ("n", "kernel", "t0", "before", "xs", "w0", "ys"),
        element()
        + f"""
  let z = sum(t, i);
  y[t * p.ys + i] = z{" / (1.0 + exp(-z))" * silu};""",
        functions=_SUM,
    )


@functools.cache
def silu_backward() -> Kernel:
    """dz = dy silu'(z), z being the sums again."""
    return Kernel(
        "convolve_backward, silu",
        (*reads("x", "w"), *reads("first", of="u32"), *reads("dy"), *writes("dz")),
        ("n", "kernel", "t0", "before", "xs", "w0", "ys", "ds"),
        element()
        + """
  let z = sum(t, i);
  let s = 1.0 / (1.0 + exp(-z));
  dz[t * p.ys + i] = dy[t * p.ds + i] * s * (1.0 + z * (1.0 - s));""",
        functions=_SUM,
    )


@functools.cache
def convolve_backward() -> Kernel:
    """dx[t] = the sum over taps of w dz[t + back], up to the end of t's example; bounds: first and end of each."""
    return Kernel(
        "convolve_backward",
        (*reads("dz", "w"), *reads("bounds", of="u32"), *writes("dx")),
        ("n", "kernel", "t0", "end0", "ds", "w0", "xs"),
        element()
        + """
  let reach = min(bounds[p.end0 + t] - 1u - (p.t0 + t), p.kernel - 1u);
  var sum = 0.0;
  for (var back = 0u; back <= reach; back++) {
    sum = fma(dz[(t + back) * p.ds + i], w[p.w0 + (i + 1u) * p.kernel - 1u - back], sum);
  }
  dx[t * p.xs + i] = sum;""",
    )


@functools.cache
def weight_gradient() -> Kernel:
    """g[i, kernel - 1 - back] += the sum over rows of dz[t] x[t - back].  grid: (columns / COLUMNS, kernel)."""
    body = """
    if (p.t0 + t - first[p.t0 + t] >= group.y) {
      sum = fma(dz[t * p.ds + i], x[(p.before + t - group.y) * p.xs + i], sum);
    }"""
    return Kernel(
        "convolve_backward, weight",
        (*reads("x", "dz"), *reads("first", of="u32"), *writes("g")),
        ("n", "kernel", "t0", "before", "xs", "ds", "rows", "g0"),
        column_sum("t", "0u", "p.rows", body) + "\n  g[p.g0 + (column + 1u) * p.kernel - 1u - group.y] += all;",
        functions=FUNCTIONS,
    )


_CACHED = ("n", "kernel", "xs", "slot0", "position0", "low", "high", "base")


@functools.cache
def convolve_cached(silu: bool) -> Kernel:
    """convolve() of new rows that go on from their slots' last inputs, for slots low…high."""
    return Kernel(
        "convolve_cached" + ", silu" * silu,
        (*reads("x", "w"), *reads("slot", "position", of="u32"), *reads("cache"), *writes("y")),
        (*_CACHED, "w0", "ys"),
        element()
        + f"""
  if (slot[p.slot0 + t] < p.low || slot[p.slot0 + t] >= p.high) {{ return; }}
  var z = 0.0;
  for (var back = 0u; back < p.kernel; back++) {{
    z = fma(taken(t, back, i), w[p.w0 + (i + 1u) * p.kernel - 1u - back], z);
  }}
  y[t * p.ys + i] = z{" / (1.0 + exp(-z))" * silu};""",
        functions=_TAKEN,
    )


@functools.cache
def update_window() -> Kernel:
    """Keep the last inputs of each slot, oldest first: the invocation of a span's last row updates its column."""
    return Kernel(
        "convolve_cached, window",
        (*reads("x"), *reads("slot", "position", of="u32"), *writes("cache")),
        (*_CACHED, "rows"),
        element()
        + """
  let s = slot[p.slot0 + t];
  if (s < p.low || s >= p.high) { return; }
  if (t + 1u < p.rows) {
    if (slot[p.slot0 + t + 1u] == s) { return; }
  }
  let to = p.base + (s - p.low) * (p.kernel - 1u) * p.n + i;
  for (var j = 0u; j + 1u < p.kernel; j++) { cache[to + j * p.n] = taken(t, p.kernel - 2u - j, i); }""",
        functions=_TAKEN,
    )
