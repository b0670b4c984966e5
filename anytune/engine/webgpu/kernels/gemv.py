"""Products of a few rows with a matrix in its GGUF blocks: what decoding does.

A workgroup makes two columns. Every weight is read once, so this is bound by memory; the sum is shared out between the
invocations, whose parts meet in a tree, or in their subgroups first.
"""

from __future__ import annotations

import functools

from anytune.gguf.blocks import BLOCKS

from ..kernel import LEADS, SUBGROUPS, Kernel, reads, writes
from .blocks import NUMBERS, blocks
from .optimizer import FINITE

AHEAD = 4  # steps of an invocation that are under way at once, of one row; fewer of more rows
BLOCK = 32  # elements of a row that have a scale of their own in 8 bits: one block of the weights
# block types of 32 weights w d, and WGSL of four 8-bit codes w at place c of the block that begins at byte b
CODES = {
    "Q8_0": "byte4(b + 2u + c)",
    # less eight in each byte, whose top bit is lent so that none borrows from its neighbour
    "Q4_0": "((((byte4(b + 2u + (c & 15u)) >> ((c >> 4u) * 4u)) & 0x0f0f0f0fu) | 0x80808080u) - 0x08080808u)"
    " ^ 0x80808080u",
}


def _ends(rows: int, tail: bool, bias: bool, subgroups: bool) -> str:
    """From the invocations' sums s{row}_{column} to out, with a pair's product and the bias."""
    pairs = [(t, c) for t in range(rows) for c in range(2)]
    if subgroups:
        meet = (
            "\n".join(f"  let t{t}_{c} = subgroupAdd(s{t}_{c});" for t, c in pairs)
            + f"""
  if ({LEADS}) {{
{chr(10).join(f"    part[{(2 * t + c) * 64}u + sub_id] = t{t}_{c};" for t, c in pairs)}
  }}
  workgroupBarrier();"""
        )
        sum_ = "\n    for (var i = 1u; i < sub_count; i++) { sum += part[lane * 64u + i]; }"
    else:
        meet = (
            "\n".join(f"  part[{(2 * t + c) * 64}u + lane] = s{t}_{c};" for t, c in pairs)
            + f"""
  workgroupBarrier();
  for (var step = 32u; step > 0u; step = step >> 1u) {{
    for (var i = lane; i < {2 * rows}u * step; i += 64u) {{
      part[(i / step) * 64u + i % step] += part[(i / step) * 64u + i % step + step];
    }}
    workgroupBarrier();
  }}"""
        )
        sum_ = ""
    more = (
        """
    for (var c = 0u; c < p.rank; c++) {
      sum += low[t * p.ls + p.l0 + c] * pair[p.pair0 + n * p.pn + c * p.pc];
    }"""
        if tail
        else ""
    )
    offset = "\n    sum += bias[p.bias0 + n];" if bias else ""
    return f"""{meet}
  let t = lane >> 1u;
  let n = n0 + (lane & 1u);
  if (lane < {2 * rows}u && t < p.m && n < p.n) {{
    var sum = part[lane * 64u];{sum_}{more}{offset}
    out[t * p.ys + p.y0 + n] = sum;
  }}
"""


def _kernel(
    name: str, block: str, rows: int, tail: bool, bias: bool, subgroups: bool, inputs: tuple, body: str, functions: str
) -> Kernel:
    sums = "\n".join(f"  var s{t}_{c} = 0.0;" for t in range(rows) for c in range(2))
    return Kernel(
        f"{name}, {block}, {rows} rows{', pair' * tail}{', bias' * bias}{', subgroups' * subgroups}",
        (
            *inputs,
            *reads("w", of="u32"),
            *writes("out"),
            *(reads("low", "pair") if tail else ()),
            *(reads("bias") if bias else ()),
        ),
        (
            *NUMBERS,
            "m",
            "n",
            "k",
            "xs",
            "ys",
            "y0",
            *(("rank", "ls", "l0", "pair0", "pn", "pc") if tail else ()),
            *(("bias0",) if bias else ()),
        ),
        f"""
  let n0 = (group.x + group.y * 32768u) * 2u;
{sums}
{body}
{_ends(rows, tail, bias, subgroups)}""",
        (64, 1),
        f"var<workgroup> part: array<f32, {128 * rows}>;",
        functions,
        (SUBGROUPS,) if subgroups else (),
    )


@functools.cache
def gemv(block: str, rows: int, tail: bool = False, bias: bool = False, subgroups: bool = False) -> Kernel:
    """out[t, n] = sum over k of x[t, k] W[n, k], for up to `rows` rows of x. xs: vec4s from row to row."""
    ahead = max(1, AHEAD // rows)
    loads = "\n".join(
        f"""    let k{u} = k + {256 * u}u;
    let inside{u} = vec4<u32>(k{u}, k{u} + 1u, k{u} + 2u, k{u} + 3u) < vec4<u32>(p.k);
    let at{u} = min(k{u}, (p.k - 1u) & 0xfffffffcu);
    let a{u} = select(vec4<f32>(), weight4(min(n0, p.n - 1u), at{u}), inside{u});
    let b{u} = select(vec4<f32>(), weight4(min(n0 + 1u, p.n - 1u), at{u}), inside{u});"""
        for u in range(ahead)
    )
    steps = "\n".join(
        f"    {{ let v = select(vec4<f32>(), x[min({t}u, p.m - 1u) * p.xs + (at{u} >> 2u)], inside{u});"
        f" s{t}_0 += dot(v, a{u}); s{t}_1 += dot(v, b{u}); }}"
        for u in range(ahead)
        for t in range(rows)
    )
    return _kernel(
        "gemv",
        block,
        rows,
        tail,
        bias,
        subgroups,
        reads("x", of="vec4<f32>"),
        f"""
  for (var k = lane * 4u; k < p.k; k += {256 * ahead}u) {{
{loads}
{steps}
  }}""",
        blocks(block),
    )


@functools.cache
def gemv8(block: str, rows: int, tail: bool = False, bias: bool = False, subgroups: bool = False) -> Kernel:
    """As gemv(), for x as codes() makes it: packed dot products of 8-bit integers. xs: blocks of a row.

    An invocation takes half a block at a time. `x` are its codes as vec4s of four each,
    `scales` a number for each block.
    """
    size = BLOCKS[block].type_size
    loads = "\n".join(f"    let {name}{j} = codes4({name}_at, c + {4 * j}u);" for name in "ab" for j in range(4))
    steps = "\n".join(
        f"""    {{
      let at = min({t}u, p.m - 1u) * p.xs + (k >> 5u);
      let v = x[2u * at + ((k >> 4u) & 1u)];
      let d = scales[at];
"""
        + "\n".join(
            f"      s{t}_{column} = fma(f32("
            f"{' + '.join(f'dot4I8Packed(v.{i}, {name}{j})' for j, i in enumerate('xyzw'))}),"
            f" d * {name}_d, s{t}_{column});"
            for column, name in enumerate("ab")
        )
        + "\n    }"
        for t in range(rows)
    )
    return _kernel(
        "gemv of 8 bits",
        block,
        rows,
        tail,
        bias,
        subgroups,
        (*reads("x", of="vec4<u32>"), *reads("scales")),
        f"""
  for (var k = lane * 16u; k < p.k; k += 1024u) {{
    let c = k & 31u;
    let a_at = p.w_base + min(n0, p.n - 1u) * p.w_row + (k >> 5u) * {size}u;
    let b_at = p.w_base + min(n0 + 1u, p.n - 1u) * p.w_row + (k >> 5u) * {size}u;
    let a_d = half(a_at);
    let b_d = half(b_at);
{loads}
{steps}
  }}""",
        f"{blocks(block)}\nfn codes4(b: u32, c: u32) -> u32 {{\n  return {CODES[block]};\n}}",
    )


@functools.cache
def codes() -> Kernel:
    """x[t, k] ~ scales[t, k / 32] * codes[t, k], integers between -127 and 127, four to a word.
    grid: (k / 2048, rows).

    A block with a number that is not finite gets that as its scale, so that it shows.
    """
    return Kernel(
        "8-bit codes",
        (*reads("x", of="vec4<f32>"), *writes("codes", of="u32"), *writes("scales")),
        ("blocks", "xs"),
        """
  if (thread.x >= p.blocks) { return; }
  let block = group.y * p.blocks + thread.x;
  let from_ = group.y * p.xs + thread.x * 8u;
  var most = 0.0;
  var odd = 0.0;
  var found = false;
  for (var i = 0u; i < 8u; i++) {
    let v = x[from_ + i];
    for (var j = 0u; j < 4u; j++) {
      most = max(most, abs(v[j]));
      if (!finite(v[j])) { odd = v[j]; found = true; }
    }
  }
  let factor = select(0.0, 127.0 / most, most > 0.0 && !found);
  for (var i = 0u; i < 8u; i++) {
    let q = vec4<u32>(vec4<i32>(clamp(round(x[from_ + i] * factor), vec4<f32>(-127.0), vec4<f32>(127.0))))
      & vec4<u32>(255u);
    codes[block * 8u + i] = q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
  }
  scales[block] = select(most / 127.0, odd, found);
""",
        (64, 1),
        functions=FINITE,
    )
