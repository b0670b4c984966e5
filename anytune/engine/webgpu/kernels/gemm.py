"""Products with a matrix that stays in its GGUF blocks: tiles in workgroup memory, dequantized while they are loaded.

NT is the forward, out = x Wᵀ; NN the input gradient, out = dy W. A pair's low-rank product adds terms to the sum:
low M with M = Bᵀ or A. Slices of a sum that is cut go to slices of `out`, which split_sum() adds up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..kernel import Kernel, element, reads, writes
from . import slots
from .blocks import NUMBERS, blocks


@dataclass(frozen=True)
class Tile:
    """m, n: rows and columns of a workgroup's output; k: of the sum at a time; tm, tn: of an invocation's output.
    ahead: the next tiles are on their way to registers while these are multiplied."""

    m: int = 64
    n: int = 64
    k: int = 16
    tm: int = 4
    tn: int = 4
    ahead: bool = False

    @property
    def threads(self) -> int:
        return (self.m // self.tm) * (self.n // self.tn)

    @property
    def bytes(self) -> int:
        """Workgroup memory."""
        return 16 * self.k * (self.m // 4 + self.n // 4 + 2)

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.tm}x{self.tn}{' ahead' * self.ahead}"


def each(count: int, threads: int, body: str) -> str:
    """`body` with `e` running over count elements, shared out between the invocations; ROUND is the round's number."""
    out = []
    for r in range(-(-count // threads)):
        inner = f"    {{ let e = lane + {r * threads}u;\n{body.replace('ROUND', str(r))} }}"
        out.append(f"    if (lane + {r * threads}u < {count}u) {inner.strip()}" if (r + 1) * threads > count else inner)
    return "\n".join(out)


def multiply(t: Tile) -> str:
    """One tile's multiply-adds: tile_a [k, m], tile_b [k, n], rows a vec4 longer than that."""
    lda, ldb, ga, gb = t.m // 4 + 1, t.n // 4 + 1, t.m // t.tm, t.n // t.tn
    lines = []
    for k in range(t.k):
        lines += [f"    let a{k}_{g} = tile_a[{k * lda + g * ga}u + ty];" for g in range(t.tm // 4)]
        lines += [f"    let b{k}_{h} = tile_b[{k * ldb + h * gb}u + tx];" for h in range(t.tn // 4)]
        for g in range(t.tm // 4):
            for i in range(4):
                lines += [
                    f"    s{4 * g + i}_{h} = fma(vec4<f32>(a{k}_{g}.{'xyzw'[i]}), b{k}_{h}, s{4 * g + i}_{h});"
                    for h in range(t.tn // 4)
                ]
    return "\n".join(lines)


def _masked(name: str, source: str) -> str:
    """Load `source` into vec4 `name`, zero where the sum's index k is at its end."""
    return f"""
      {name} = vec4<f32>();
      if (k < k_end) {{
        {name} = {source};
        if (k + 4u > k_end) {{
          {name} = select(vec4<f32>(), {name}, vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(k_end));
        }}
      }}"""


@dataclass(frozen=True)
class _Loads:
    """A tile's way from memory to registers (declare, fetch) and on to workgroup memory (keep), `k0` being its
    place."""

    declare: str
    fetch: str
    keep: str


def _turned(tile: str, ld: int, quads: int, value: str) -> str:
    """Four neighbours along the sum go to four rows of the tile."""
    return "".join(
        f"\n      {tile}[((e % {quads}u) * 4u + {j}u) * {ld}u + (r >> 2u)][r & 3u] = {value}.{'xyzw'[j]};"
        for j in range(4)
    )


def _loads(t: Tile, transposed: bool) -> _Loads:
    lda, ldb, quads, wide = t.m // 4 + 1, t.n // 4 + 1, t.k // 4, t.n // 4
    along = f"""
      let r = e / {quads}u;
      let k = k0 + (e % {quads}u) * 4u;"""
    value = "x[min(m0 + r, m_end - 1u) * p.xs + p.x0 + (k >> 2u)]"
    fetch = [each(t.m * quads, t.threads, along + _masked("aROUND", value))]
    row = f"\n      let r = e / {quads}u;"
    keep = [each(t.m * quads, t.threads, row + _turned("tile_a", lda, quads, "aROUND"))]
    if transposed:
        fetch.append(each(t.n * quads, t.threads, along + _masked("bROUND", "weight4(w0 + min(n0 + r, p.n - 1u), k)")))
        keep.append(each(t.n * quads, t.threads, row + _turned("tile_b", ldb, quads, "bROUND")))
    else:
        fetch.append(
            each(
                t.k * wide,
                t.threads,
                f"""
      let r = e / {wide}u;
      let c = e % {wide}u;
      bROUND = vec4<f32>();
      if (k0 + r < k_end && n0 + c * 4u < p.n) {{ bROUND = weight4(w0 + k0 + r, n0 + c * 4u); }}""",
            )
        )
        keep.append(each(t.k * wide, t.threads, f"\n      tile_b[(e / {wide}u) * {ldb}u + e % {wide}u] = bROUND;"))
    rounds = (-(-t.m * quads // t.threads), -(-t.n * quads // t.threads))
    declare = "\n".join(f"  var {name}{r} = vec4<f32>();" for name, count in zip("ab", rounds) for r in range(count))
    return _Loads(declare, "\n".join(fetch), "\n".join(keep))


def _walk(t: Tile, loads: _Loads) -> str:
    """The sum over k, a tile at a time."""
    if not t.ahead:
        return f"""
  for (var k0 = k_begin; k0 < k_end; k0 += {t.k}u) {{
{loads.fetch}
{loads.keep}
    workgroupBarrier();
{multiply(t)}
    workgroupBarrier();
  }}"""
    return f"""
  {{
    let k0 = k_begin;
{loads.fetch}
  }}
  for (var at = k_begin; at < k_end; at += {t.k}u) {{
{loads.keep}
    workgroupBarrier();
    let k0 = at + {t.k}u;
    if (k0 < k_end) {{
{loads.fetch}
    }}
{multiply(t)}
    workgroupBarrier();
  }}"""


def _tail(t: Tile) -> str:
    """The pair's product, as further terms of the sum, through the same workgroup memory."""

    def load(tile: str, width: int, value: str) -> str:
        return each(
            width * t.k,
            t.threads,
            f"""
      let r = e / {t.k}u;
      let c = c0 + e % {t.k}u;
      var v = 0.0;
      if (c < p.rank) {{ v = {value}; }}
      {tile}[(e % {t.k}u) * {width // 4 + 1}u + (r >> 2u)][r & 3u] = v;""",
        )

    return f"""
  if (group.z == 0u) {{
    let l0 = p.l0 + p.rank * (select(0u, 1u, n0 >= p.n1) + select(0u, 1u, n0 >= p.n2));
    for (var c0 = 0u; c0 < p.rank; c0 += {t.k}u) {{
{load("tile_a", t.m, "low[min(m0 + r, m_end - 1u) * p.ls + l0 + c]")}
{load("tile_b", t.n, "pair[pair0 + min(n0 + r, p.n - 1u) * p.pn + c * p.pc]")}
    workgroupBarrier();
{multiply(t)}
    workgroupBarrier();
    }}
  }}"""


def _memory(t: Tile) -> str:
    return "\n".join(
        f"var<workgroup> {name}: array<vec4<f32>, {t.k * (width // 4 + 1)}>;"
        for name, width in (("tile_a", t.m), ("tile_b", t.n))
    )


@functools.cache
def gemm(
    block: str, transposed: bool, tile: Tile = Tile(), tail: bool = False, bias: bool = False, experts: bool = False
) -> Kernel:
    """out[m, n] (+)= sum over k of x[m, k] w, w = W[n, k] (transposed) or W[k, n]; + low[m, c] pair[n, c]; + bias[n].

    grid: (columns / n, rows / m, slices of the sum of k_step each). xs, ys, zs: vec4s from row
    to row and slice to slice; x0, y0: vec4s before the first column. experts: rows are slots, each with its expert's
    weights, pair and bias; grid: (columns / n, tiles); see slots.py.
    """
    t, loads = tile, _loads(tile, transposed)
    rows = slots.tile("group.y") if experts else f"\n  let m0 = group.y * {t.m}u;\n  let m_end = p.m;"
    sums = "\n".join(f"  var s{i}_{h} = vec4<f32>();" for i in range(t.tm) for h in range(t.tn // 4))
    stores = []
    for i in range(t.tm):
        row = f"m0 + {(i // 4) * (t.m // t.tm) * 4 + i % 4}u + ty * 4u"
        for h in range(t.tn // 4):
            stores.append(f"  keep({row}, m_end, bias0, n0 + {h * (t.n // t.tn) * 4}u + tx * 4u, group.z, s{i}_{h});")
    offset = (
        """
  if (z == 0u) {
    for (var j = 0u; j < 4u; j++) { v[j] += bias[bias0 + min(n + j, p.n - 1u)]; }
  }"""
        if bias
        else ""
    )
    keep = f"""
fn keep(m: u32, m_end: u32, bias0: u32, n: u32, z: u32, sum: vec4<f32>) {{
  if (m >= m_end || n >= p.n) {{ return; }}
  var v = sum;{offset}
  let to = z * p.zs + m * p.ys + p.y0 + (n >> 2u);
  if (p.adds != 0u) {{ v += out[to]; }}
  out[to] = v;
}}"""
    return Kernel(
        f"gemm {'NT' if transposed else 'NN'}, {block}, {t.name}{', pair' * tail}{', bias' * bias}"
        + ", experts" * experts,
        (
            *reads("x", of="vec4<f32>"),
            *reads("w", of="u32"),
            *writes("out", of="vec4<f32>"),
            *(reads("low", "pair") if tail else ()),
            *(reads("bias") if bias else ()),
            *(slots.TILES if experts else ()),
        ),
        (
            *(*NUMBERS, "m", "n", "k", "k_step", "xs", "x0", "ys", "y0", "zs", "adds"),
            *(("rank", "ls", "l0", "n1", "n2", "pair0", "pn", "pc") if tail else ()),
            *(("bias0",) if bias else ()),
            *slots.numbers(experts, tail, bias),
        ),
        f"""
  let tx = lane % {t.n // t.tn}u;
  let ty = lane / {t.n // t.tn}u;
  let n0 = group.x * {t.n}u;{rows}{slots.weights(experts, tail, bias)}
  let k_begin = group.z * p.k_step;
  let k_end = min(p.k, k_begin + p.k_step);
{sums}
{loads.declare}{_walk(t, loads)}{_tail(t) if tail else ""}
{chr(10).join(stores)}
""",
        (t.threads, 1),
        _memory(t) + slots.MEMORY * experts,
        blocks(block) + keep,
    )


@functools.cache
def split_sum() -> Kernel:
    """out[t] (+)= the sum of `slices` slices of part; in vec4s."""
    return Kernel(
        "split_sum",
        (*reads("part", of="vec4<f32>"), *writes("out", of="vec4<f32>")),
        ("n", "slices", "ps", "zs", "ys", "y0", "adds"),
        element()
        + """
  var v = vec4<f32>();
  for (var z = 0u; z < p.slices; z++) { v += part[z * p.zs + t * p.ps + i]; }
  if (p.adds != 0u) { v += out[t * p.ys + p.y0 + i]; }
  out[t * p.ys + p.y0 + i] = v;
""",
    )
