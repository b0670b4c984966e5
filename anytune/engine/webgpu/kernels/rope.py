"""RMSNorm of query and key heads, and rope: a workgroup takes a head of a token."""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, total, writes

LANES = 64
GAIN = """
fn gain(i: u32, head: u32) -> f32 {
  if (head < p.queries) { return gain_q[i]; }
  return gain_k[i];
}"""


def _pairs(neox: bool, body: str) -> str:
    """WGSL: `body` for each pair (a, b) of elements that `turns`, and for each a of the rest. An invocation has the
    same elements in every loop, so it may read back what it wrote."""
    first, second = ("i", "i + p.pairs") if neox else ("2u * i", "2u * i + 1u")
    return f"""
  for (var i = lane; i < p.size - p.pairs; i += {LANES}u) {{
    let turns = i < p.pairs;
    let a = select(i + p.pairs, {first}, turns);
    let b = select(a, {second}, turns);
    {body}
  }}"""


def _kernel(name: str, normed: bool, neox: bool, arrays: tuple, numbers: tuple[str, ...], body: str) -> Kernel:
    return Kernel(
        f"{name}, {'neox' if neox else 'interleaved'}{', normed' * normed}",
        arrays,
        ("size", "pairs", *numbers, "eps:f32", "queries", "token0"),
        "\n  let angle = position[p.token0 + group.y] * p.pairs;" + body,
        (LANES, 1),
        functions=total(size=LANES) + GAIN if normed else "",
    )


_TABLES = (*reads("cosine", "sine"), *reads("position", of="u32"))
_NORM = reads("x", "gain_q", "gain_k")


@functools.cache
def qk_norm_rope(normed: bool, neox: bool) -> Kernel:
    """A head of a token: normed (RMSNorm with a gain) or not, then its pairs turned by the token's angle, in place if
    it is not normed. Heads up to `queries` are queries, keys may follow them."""
    body, y, value = "\n  let at = group.y * p.xs + group.x * p.size;", "x[at + {}]", "x[at + {0}]"
    if normed:
        y, value = "y[to + {}]", "(x[at + {0}] * r * gain({0}, group.x))"
        body += """
  let to = group.y * p.ys + group.x * p.size;
  var square = 0.0;"""
        body += _pairs(
            neox,
            """square = fma(x[at + a], x[at + a], square);
    if (turns) { square = fma(x[at + b], x[at + b], square); }""",
        )
        body += "\n  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.size) + p.eps);"
    body += _pairs(
        neox,
        f"""let u = {value.format("a")};
    if (turns) {{
      let v = {value.format("b")};
      let c = cosine[angle + i];
      let s = sine[angle + i];
      {y.format("a")} = u * c - v * s;
      {y.format("b")} = u * s + v * c;
    }} else {{ {y.format("a")} = u; }}""",
    )
    arrays = (*_NORM, *_TABLES, *writes("y")) if normed else (*writes("x"), *_TABLES)
    return _kernel("qk_norm_rope", normed, neox, arrays, ("xs", "ys"), body)


@functools.cache
def qk_norm_rope_backward(normed: bool, neox: bool) -> Kernel:
    """dx over dy: turned back, then through the head's norm."""
    body, sums = "\n  let at = group.y * p.ds + group.x * p.size;", ""
    if normed:
        sums = """
    square = fma(x[from_ + {0}], x[from_ + {0}], square);
    through = fma(dx[at + {0}] * gain({0}, group.x), x[from_ + {0}], through);"""
        body += """
  let from_ = group.y * p.xs + group.x * p.size;
  var square = 0.0;
  var through = 0.0;"""
    body += _pairs(
        neox,
        f"""if (turns) {{
      let c = cosine[angle + i];
      let s = sine[angle + i];
      let u = dx[at + a];
      let v = dx[at + b];
      dx[at + a] = u * c + v * s;
      dx[at + b] = v * c - u * s;{sums.format("b")}
    }}{sums.format("a")}""",
    )
    if normed:
        norm = "dx[at + {0}] = r * (dx[at + {0}] * gain({0}, group.x) - x[from_ + {0}] * mean);"
        body += """
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.size) + p.eps);
  let mean = total_sums(through, lane) * r * r / f32(p.size);"""
        body += _pairs(neox, f"{norm.format('a')}\n    if (turns) {{ {norm.format('b')} }}")
    arrays = (*writes("dx"), *(_NORM if normed else ()), *_TABLES)
    return _kernel("qk_norm_rope_backward", normed, neox, arrays, ("ds", "xs"), body)
