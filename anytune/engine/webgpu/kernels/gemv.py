"""Products of a few rows with a matrix in its GGUF blocks: what decoding does."""

from __future__ import annotations

import functools

from ..kernel import LEADS, SUBGROUPS, Kernel, reads, writes
from .blocks import NUMBERS, blocks


@functools.cache
def gemv(block: str, rows: int, tail: bool = False, bias: bool = False, subgroups: bool = False) -> Kernel:
    """out[t, n] = sum over k of x[t, k] W[n, k], for up to `rows` rows of x: a workgroup makes two columns.

    Every weight is read once, so this is bound by memory; the sum is shared out between the invocations, whose parts
    meet in a tree, or in their subgroups first.
    """
    sums = "\n".join(f"  var s{t}_{c} = 0.0;" for t in range(rows) for c in range(2))
    steps = "\n".join(f"    {{ let v = select(vec4<f32>(), x[min({t}u, p.m - 1u) * p.xs + (k >> 2u)], inside);"
                      f" s{t}_0 += dot(v, a); s{t}_1 += dot(v, b); }}" for t in range(rows))
    pairs = [(t, c) for t in range(rows) for c in range(2)]
    if subgroups:
        shared = "\n".join(f"  let t{t}_{c} = subgroupAdd(s{t}_{c});" for t, c in pairs) + f"""
  if ({LEADS}) {{
{chr(10).join(f'    part[{(2 * t + c) * 64}u + sub_id] = t{t}_{c};' for t, c in pairs)}
  }}
  workgroupBarrier();"""
        first = "\n    for (var i = 1u; i < sub_count; i++) { sum += part[lane * 64u + i]; }"
    else:
        shared = "\n".join(f"  part[{(2 * t + c) * 64}u + lane] = s{t}_{c};" for t, c in pairs) + f"""
  workgroupBarrier();
  for (var step = 32u; step > 0u; step = step >> 1u) {{
    for (var i = lane; i < {2 * rows}u * step; i += 64u) {{
      part[(i / step) * 64u + i % step] += part[(i / step) * 64u + i % step + step];
    }}
    workgroupBarrier();
  }}"""
        first = ""
    more = """
    for (var c = 0u; c < p.rank; c++) {
      sum += low[t * p.ls + p.l0 + c] * pair[p.pair0 + n * p.pn + c * p.pc];
    }""" if tail else ""
    offset = "\n    sum += bias[p.bias0 + n];" if bias else ""
    return Kernel(
        f"gemv, {block}, {rows} rows{', pair' * tail}{', bias' * bias}{', subgroups' * subgroups}",
        (*reads("x", of="vec4<f32>"), *reads("w", of="u32"), *writes("out"), *(reads("low", "pair") if tail else ()),
         *(reads("bias") if bias else ())),
        (*NUMBERS, "m", "n", "k", "xs", "ys", "y0", *(("rank", "ls", "l0", "pair0", "pn", "pc") if tail else ()),
         *(("bias0",) if bias else ())), f"""
  let n0 = (group.x + group.y * 32768u) * 2u;
{sums}
  for (var k = lane * 4u; k < p.k; k += 256u) {{
    let inside = vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(p.k);
    let a = select(vec4<f32>(), weight4(min(n0, p.n - 1u), k), inside);
    let b = select(vec4<f32>(), weight4(min(n0 + 1u, p.n - 1u), k), inside);
{steps}
  }}
{shared}
  let t = lane >> 1u;
  let n = n0 + (lane & 1u);
  if (lane < {2 * rows}u && t < p.m && n < p.n) {{
    var sum = part[lane * 64u];{first}{more}{offset}
    out[t * p.ys + p.y0 + n] = sum;
  }}
""", (64, 1), f"var<workgroup> part: array<f32, {128 * rows}>;", blocks(block), (SUBGROUPS,) if subgroups else ())
