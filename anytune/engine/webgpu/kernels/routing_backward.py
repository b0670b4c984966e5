"""The router's gradient: that by its scores, and by factors of each expert. See routing.py for the order of slots."""

from __future__ import annotations

import functools

from anytune.engine.shapes import LEAST_SUM

from ..kernel import Kernel, reads, total, writes

LANES = 64


@functools.cache
def backward(kind: str, normalized: bool, scaled: bool = False) -> Kernel:
    """The gradient by the scores, from that by the weights; parts are read where choose() kept them, and shares.

    grid: (experts / LANES, tokens).
    """
    joint = kind == "chosen" or kind == "softmax" and normalized
    factor = "p.scale * scales[p.scales0 + chosen[from_ + j]]" if scaled else "p.scale"
    share = "share[from_ + j]" if scaled else "weight[from_ + j] / p.scale"
    sums, one, q = f"through += {share} * d;", f"d = {share} * (d - through);", ""
    if not joint:
        q = "\n      let q = part[t * p.ps + i];"
        sums += "\n    let q = part[t * p.ps + chosen[from_ + j]];\n    all += q;\n    inner += d * q;"
        one = f"d = (d - through) / max(all, {LEAST_SUM});" if normalized else ""
        one += " d = d * q * (1.0 - q);" if kind == "sigmoid" else " d = d * q;"
    return Kernel(
        f"route_backward, {kind}{', normalized' * normalized}{', scaled' * scaled}",
        (
            *reads("dw", *(["share", "scales"] if scaled else ["weight"]), *([] if joint else ["part"])),
            *reads("chosen", "real", of="u32"),
            *writes("y"),
        ),
        ("experts", "used", "ds", "ys", "t0", "scale:f32", "ps", "real0", "scales0"),
        f"""
  let i = thread.x;
  let t = thread.y;
  if (i >= p.experts) {{ return; }}
  if (p.t0 + t >= real[p.real0]) {{
    y[t * p.ys + i] = 0.0;
    return;
  }}
  let from_ = (p.t0 + t) * p.used;
  var through = 0.0;
  var all = 0.0;
  var inner = 0.0;
  for (var j = 0u; j < p.used; j++) {{
    let d = {factor} * dw[(p.t0 + t) * p.ds + j];
    {sums}
  }}
  var sum = {"-inner * part[t * p.ps + i]" if kind == "softmax" and not normalized else "0.0"};
  for (var j = 0u; j < p.used; j++) {{
    if (chosen[from_ + j] == i) {{
      var d = {factor} * dw[(p.t0 + t) * p.ds + j];{q}
      {one}
      sum += d;
    }}
  }}
  y[t * p.ys + i] = sum;
""",
        (LANES, 1),
    )


@functools.cache
def scale_gradient() -> Kernel:
    """g[expert] += the sum over its slots of the gradient by their weights times scale * share.  grid: (experts,)."""
    return Kernel(
        "route_backward, scales",
        (*reads("dw", "share"), *reads("order", "bounds", of="u32"), *writes("g")),
        ("used", "ds", "scale:f32", "g0"),
        f"""
  var sum = 0.0;
  for (var s = bounds[group.x] + lane; s < bounds[group.x + 1u]; s += {LANES}u) {{
    let at = order[s];
    sum = fma(dw[at / p.used * p.ds + at % p.used], p.scale * share[at], sum);
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ g[p.g0 + group.x] += all; }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )
