"""How a kernel whose rows are slots (tokens at one of their experts, sorted by expert) finds its expert.

`tiles` has three numbers for each tile of rows: the expert, its first slot and its end (routing.py
makes them; unused entries name an expert that does not exist). A dispatch takes experts e0…e1 and slots s0…s1, as
many as its bindings hold. The numbers go through workgroup memory, so that the compiler knows that all invocations
leave together.
"""

from __future__ import annotations

from ..kernel import reads

TILES = reads("tiles", of="u32")
CHOICES = reads("chosen", "order", of="u32")
SPANS = reads("bounds", of="u32")
NUMBERS = ("e0", "e1", "s0", "s1")
MEMORY = "\nvar<workgroup> place: vec4<u32>;"


def _found(expert: str, first: str, last: str) -> str:
    return f"""
  if (lane == 0u) {{ place = vec4<u32>({expert}, {first}, {last}, 0u); }}
  let at = workgroupUniformLoad(&place);
  if (at.x < p.e0 || at.x >= p.e1 || at.z <= max(p.s0, at.y) || at.y >= p.s1) {{ return; }}
  let expert = at.x - p.e0;
  let m0 = max(at.y, p.s0) - p.s0;
  let m_end = min(at.z, p.s1) - p.s0;"""


def tile(number: str) -> str:
    """WGSL: at.x, the expert of a tile; expert, counted from e0; its rows m0…m_end, counted from s0."""
    return _found(f"tiles[3u * {number}]", f"tiles[3u * {number} + 1u]", f"tiles[3u * {number} + 2u]")


def span(number: str) -> str:
    """As tile(), of all slots of expert e0 + number."""
    return _found(f"p.e0 + {number}", f"bounds[p.e0 + {number}]", f"bounds[p.e0 + {number} + 1u]")


def slot(number: str) -> str:
    """As tile(), of the one slot s0 + number, which is row0 here."""
    one = f"p.s0 + {number}"
    return _found(f"chosen[order[{one}]]", one, f"{one} + 1u") + "\n  let row0 = m0;"


def weights(experts: bool, tail: bool, bias: bool) -> str:
    """WGSL: where a product's weights begin (w0, in rows), and its pair's factor and bias."""
    more = ("expert * p.rows", " + expert * p.pair_step", " + at.x * p.bias_step") if experts else ("0u", "", "")
    lines = [f"let w0 = {more[0]};", f"let bias0 = {f'p.bias0{more[2]}' if bias else '0u'};"]
    return "".join(f"\n  {line}" for line in [*lines, *[f"let pair0 = p.pair0{more[1]};"] * tail])


def numbers(experts: bool, tail: bool, bias: bool) -> tuple[str, ...]:
    """Further parameters of a product of experts: rows, and elements of pair and bias, from an expert to the next."""
    return (*NUMBERS, "rows", *("pair_step",) * tail, *("bias_step",) * bias) if experts else ()
