"""Columns of heads moved or zeroed, sums over heads, and products of each head with its part of a matrix.

A row has heads xh (yh) elements apart; 0: all have the same ones.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, writes

_EACH = """
  let h = thread.x / p.n;
  let i = thread.x % p.n;
  let t = thread.y;
  if (h >= p.heads) { return; }"""


@functools.cache
def move(zero: bool) -> Kernel:
    """n columns of each head of y, from y0 on, are those of x from x0 on, or zero."""
    return Kernel(
        "columns of heads" + ", zero" * zero,
        (*([] if zero else reads("x")), *writes("y")),
        ("heads", "n", "ys", "yh", "y0", "xs", "xh", "x0"),
        f"{_EACH}\n  y[t * p.ys + h * p.yh + p.y0 + i] = {'0.0' if zero else 'x[t * p.xs + h * p.xh + p.x0 + i]'};",
    )


@functools.cache
def total() -> Kernel:
    """y = the sum over heads of n columns."""
    return Kernel(
        "columns of heads, summed",
        (*reads("x"), *writes("y")),
        ("heads", "n", "xs", "xh", "ys"),
        element()
        + """
  var sum = 0.0;
  for (var h = 0u; h < p.heads; h++) { sum += x[t * p.xs + h * p.xh + i]; }
  y[t * p.ys + i] = sum;""",
    )


@functools.cache
def product(back: bool) -> Kernel:
    """Each head's n columns of y: rows of its part of m times its k columns of x; back: their transposes.

    h0: the first head of this dispatch, whose rows begin at m0, and mh elements behind them the next one's.
    """
    at = "p.m0 + h * p.mh + " + ("j * p.ms + i" if back else "i * p.ms + j")
    return Kernel(
        "products of heads" + ", back" * back,
        (*reads("x", "m"), *writes("y")),
        ("heads", "n", "k", "h0", "xs", "ys", "m0", "mh", "ms"),
        f"""{_EACH}
  let from_ = t * p.xs + (p.h0 + h) * p.k;
  var sum = 0.0;
  for (var j = 0u; j < p.k; j++) {{ sum = fma(x[from_ + j], m[{at}], sum); }}
  y[t * p.ys + (p.h0 + h) * p.n + i] = sum;""",
    )
