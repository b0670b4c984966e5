"""Products of a few rows with a matrix in its GGUF blocks: what decoding does.

A workgroup makes two columns. Every weight is read once, so this is bound by memory; the sum is shared out between the
invocations, whose parts meet in a tree.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, writes
from . import slots
from .blocks import NUMBERS, blocks

AHEAD = 4  # steps of an invocation that are under way at once, of one row; fewer of more rows


def _ends(rows: int, tail: bool, bias: bool) -> str:
    """From the invocations' sums s{row}_{column} to out, with a pair's product and the bias."""
    pairs = [(t, c) for t in range(rows) for c in range(2)]
    meet = "\n".join(f"  part[{(2 * t + c) * 64}u + lane] = s{t}_{c};" for t, c in pairs)
    more = (
        """
    for (var c = 0u; c < p.rank; c++) {
      sum += low[(row0 + t) * p.ls + p.l0 + c] * pair[pair0 + n * p.pn + c * p.pc];
    }"""
        if tail
        else ""
    )
    offset = "\n    sum += bias[bias0 + n];" if bias else ""
    return f"""{meet}
  workgroupBarrier();
  for (var step = 32u; step > 0u; step = step >> 1u) {{
    for (var i = lane; i < {2 * rows}u * step; i += 64u) {{
      part[(i / step) * 64u + i % step] += part[(i / step) * 64u + i % step + step];
    }}
    workgroupBarrier();
  }}
  let t = lane >> 1u;
  let n = n0 + (lane & 1u);
  if (lane < {2 * rows}u && t < p.m && n < p.n) {{
    var sum = part[lane * 64u];{more}{offset}
    out[(row0 + t) * p.ys + p.y0 + n] = sum;
  }}
"""


@functools.cache
def gemv(block: str, rows: int, tail: bool = False, bias: bool = False, experts: bool = False) -> Kernel:
    """out[t, n] = sum over k of x[t, k] W[n, k], for up to `rows` rows of x. xs: vec4s from row to row. experts: rows
    are slots, one per workgroup, each with its expert's weights, pair and bias; grid.z: slots."""
    ahead, first = max(1, AHEAD // rows), slots.slot("group.z") if experts else "\n  let row0 = 0u;"
    loads = "\n".join(
        f"""    let k{u} = k + {256 * u}u;
    let inside{u} = vec4<u32>(k{u}, k{u} + 1u, k{u} + 2u, k{u} + 3u) < vec4<u32>(p.k);
    let at{u} = min(k{u}, (p.k - 1u) & 0xfffffffcu);
    let a{u} = select(vec4<f32>(), weight4(w0 + min(n0, p.n - 1u), at{u}), inside{u});
    let b{u} = select(vec4<f32>(), weight4(w0 + min(n0 + 1u, p.n - 1u), at{u}), inside{u});"""
        for u in range(ahead)
    )
    steps = "\n".join(
        f"    {{ let v = select(vec4<f32>(), x[(row0 + min({t}u, p.m - 1u)) * p.xs + (at{u} >> 2u)], inside{u});"
        f" s{t}_0 += dot(v, a{u}); s{t}_1 += dot(v, b{u}); }}"
        for u in range(ahead)
        for t in range(rows)
    )
    sums = "\n".join(f"  var s{t}_{c} = 0.0;" for t in range(rows) for c in range(2))
    return Kernel(
        f"gemv, {block}, {rows} rows{', pair' * tail}{', bias' * bias}{', experts' * experts}",
        (
            *reads("x", of="vec4<f32>"),
            *reads("w", of="u32"),
            *writes("out"),
            *(reads("low", "pair") if tail else ()),
            *(reads("bias") if bias else ()),
            *(slots.CHOICES if experts else ()),
        ),
        (
            *(*NUMBERS, "m", "n", "k", "xs", "ys", "y0"),
            *(("rank", "ls", "l0", "pair0", "pn", "pc") if tail else ()),
            *(("bias0",) if bias else ()),
            *slots.numbers(experts, tail, bias),
        ),
        f"""
  let n0 = (group.x + group.y * 32768u) * 2u;{first}{slots.weights(experts, tail, bias)}
{sums}
  for (var k = lane * 4u; k < p.k; k += {256 * ahead}u) {{
{loads}
{steps}
  }}
{_ends(rows, tail, bias)}""",
        (64, 1),
        f"var<workgroup> part: array<f32, {128 * rows}>;" + slots.MEMORY * experts,
        blocks(block),
    )
