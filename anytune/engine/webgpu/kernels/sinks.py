"""Attention sinks: a score of each query head that no value stands behind."""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, total, writes

LANES = 64


@functools.cache
def sink() -> Kernel:
    """The results of attention as if each row's sum of exponentials also had its head's sink.

    grid: (heads, rows). Tokens are counted from t0 in lse and lse_with_sink [heads, tokens].
    """
    return Kernel(
        "sink",
        (*reads("x", "lse", "sinks"), *writes("y", "lse_with_sink")),
        ("size", "xs", "ys", "t0", "tokens", "sinks0"),
        f"""
  let at = group.x * p.tokens + p.t0 + group.y;
  let a = lse[at];
  let b = sinks[p.sinks0 + group.x];
  let sum = max(a, b) + log(1.0 + exp(-abs(a - b)));
  let factor = exp(a - sum);
  for (var d = lane; d < p.size; d += {LANES}u) {{
    y[group.y * p.ys + group.x * p.size + d] = factor * x[group.y * p.xs + group.x * p.size + d];
  }}
  if (lane == 0u) {{ lse_with_sink[at] = sum; }}
""",
        (LANES, 1),
    )


@functools.cache
def gradient() -> Kernel:
    """g[head] -= the sum over tokens of exp(sink - lse) * inner, both [heads, tokens].  grid: (heads,)."""
    return Kernel(
        "sink_gradient",
        (*reads("inner", "lse", "sinks"), *writes("g")),
        ("tokens", "sinks0", "g0"),
        f"""
  var sum = 0.0;
  for (var t = lane; t < p.tokens; t += {LANES}u) {{
    let at = group.x * p.tokens + t;
    sum = fma(exp(sinks[p.sinks0 + group.x] - lse[at]), inner[at], sum);
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ g[p.g0 + group.x] -= all; }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )
