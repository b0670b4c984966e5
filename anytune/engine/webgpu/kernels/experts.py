"""Rows of slots: taken from tokens, weighed, added up to tokens again; the gate of a shared expert.

See routing.py for the order of slots. Arrays of slots may be bound in runs: s0 is the first that is.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, total, writes
from . import slots
from .columns import FUNCTIONS, column_sum

LANES = 64


@functools.cache
def dispatch() -> Kernel:
    """y[s] = the row of x of slot s's token, for tokens low…high."""
    return Kernel(
        "dispatch",
        (*reads("x"), *reads("order", of="u32"), *writes("y")),
        ("n", "used", "xs", "ys", "s0", "low", "high"),
        element("s")
        + """
  let t = order[p.s0 + s] / p.used;
  if (t >= p.low && t < p.high) { y[s * p.ys + i] = x[(t - p.low) * p.xs + i]; }""",
    )


@functools.cache
def combine() -> Kernel:
    """y[t] (+)= the sum of rows of x of its slots, of those from low to high."""
    return Kernel(
        "combine",
        (*reads("x"), *reads("place", "real", of="u32"), *writes("y")),
        ("n", "used", "xs", "ys", "t0", "low", "high", "adds", "real0"),
        element()
        + """
  var sum = 0.0;
  if (p.t0 + t < real[p.real0]) {
    for (var j = 0u; j < p.used; j++) {
      let s = place[(p.t0 + t) * p.used + j];
      if (s >= p.low && s < p.high) { sum += x[(s - p.low) * p.xs + i]; }
    }
  }
  if (p.adds != 0u) { sum += y[t * p.ys + i]; }
  y[t * p.ys + i] = sum;""",
    )


@functools.cache
def weigh() -> Kernel:
    """y[s] = x[s] * its slot's weight."""
    return Kernel(
        "weigh",
        (*reads("x", "weight"), *reads("order", "bounds", of="u32"), *writes("y")),
        ("n", "xs", "ys", "s0", "experts"),
        element("s")
        + """
  if (p.s0 + s >= bounds[p.experts]) { return; }
  y[s * p.ys + i] = x[s * p.xs + i] * weight[order[p.s0 + s]];""",
    )


# one workgroup per slot, whose number among all is p.s0 + group.x
_SLOT = """
  if (lane == 0u) { place = vec4<u32>(order[p.s0 + group.x], bounds[p.experts], 0u, 0u); }
  let found = workgroupUniformLoad(&place);
  if (p.s0 + group.x >= found.y) { return; }
  let x0 = group.x * p.xs;
  let d0 = group.x * p.ds;"""


@functools.cache
def weigh_backward() -> Kernel:
    """dw of slot s = dy[s] · x[s], then dy[s] *= its weight.  grid: (slots,)."""
    return Kernel(
        "weigh_backward",
        (*writes("dy"), *reads("x", "weight"), *reads("order", "bounds", of="u32"), *writes("dw")),
        ("n", "used", "ds", "xs", "ws", "s0", "experts"),
        _SLOT
        + f"""
  let w = weight[found.x];
  var sum = 0.0;
  for (var i = lane; i < p.n; i += {LANES}u) {{
    sum = fma(dy[d0 + i], x[x0 + i], sum);
    dy[d0 + i] *= w;
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ dw[found.x / p.used * p.ws + found.x % p.used] = all; }}
""",
        (LANES, 1),
        slots.MEMORY,
        total(size=LANES),
    )


@functools.cache
def weigh_bias() -> Kernel:
    """y[s] += its weight * its expert's bias."""
    return Kernel(
        "weigh_bias",
        (*writes("y"), *reads("weight", "bias"), *reads("order", "chosen", "bounds", of="u32")),
        ("n", "ys", "s0", "experts", "bias0"),
        element("s")
        + """
  if (p.s0 + s >= bounds[p.experts]) { return; }
  let at = order[p.s0 + s];
  y[s * p.ys + i] += weight[at] * bias[p.bias0 + chosen[at] * p.n + i];""",
    )


@functools.cache
def weigh_bias_backward() -> Kernel:
    """dw of slot s += dy[s] · its expert's bias.  grid: (slots,)."""
    return Kernel(
        "weigh_bias_backward",
        (*reads("dy", "bias"), *reads("order", "chosen", "bounds", of="u32"), *writes("dw")),
        ("n", "used", "ds", "xs", "ws", "s0", "experts", "bias0"),
        _SLOT
        + f"""
  let from_ = p.bias0 + chosen[found.x] * p.n;
  var sum = 0.0;
  for (var i = lane; i < p.n; i += {LANES}u) {{ sum = fma(dy[d0 + i], bias[from_ + i], sum); }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ dw[found.x / p.used * p.ws + found.x % p.used] += all; }}
""",
        (LANES, 1),
        slots.MEMORY,
        total(size=LANES),
    )


@functools.cache
def column_sums(weighed: bool) -> Kernel:
    """g[expert] += the sum over its slots of x, of each slot times its weight if weighed.

    grid: (columns / COLUMNS, experts).
    """
    factor = "weight[order[p.s0 + s]] * " if weighed else ""
    return Kernel(
        "column sums, experts" + ", weighed" * weighed,
        (
            *reads("x", *(["weight"] if weighed else [])),
            *(reads("order", of="u32") if weighed else ()),
            *writes("g"),
            *slots.SPANS,
        ),
        ("n", "xs", "g0", *slots.NUMBERS),
        slots.span("group.y")
        + column_sum("s", "m0", "m_end", f" sum += {factor}x[s * p.xs + i];")
        + "\n  g[p.g0 + at.x * p.n + column] += all;",
        shared=slots.MEMORY,
        functions=FUNCTIONS,
    )
