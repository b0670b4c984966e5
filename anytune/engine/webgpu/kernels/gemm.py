"""Products with a matrix that stays in its GGUF blocks: tiles in workgroup memory, dequantized while they are loaded.

NT is the forward, out = x Wᵀ; NN the input gradient, out = dy W. A pair's low-rank product rides behind the sum: out
+= low M with M = Bᵀ or A. With `split` slices of the sum go to slices of `out`, which split_sum() adds up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from ..kernel import F16, Kernel, reads, total, writes
from .blocks import NUMBERS, blocks


@dataclass(frozen=True)
class Tile:
    """m, n: rows and columns of a workgroup's output; k: of the sum at a time; tm, tn: of an invocation's output.
    ahead: the next tiles are on their way to registers while these are multiplied. half: operands are rounded to
    float16 in workgroup memory, x after a power of two for each row (see row_scales()); sums and the pair's terms are
    float32."""

    m: int = 64
    n: int = 64
    k: int = 16
    tm: int = 4
    tn: int = 4
    ahead: bool = False
    half: bool = False

    @property
    def plain(self) -> Tile:
        """The same without float16."""
        return replace(self, half=False)

    @property
    def tail(self) -> Tile:
        """The pair's: float32, in as much memory as a float16 tile."""
        return replace(self, half=False, k=self.k // 2) if self.half else self

    @property
    def threads(self) -> int:
        return (self.m // self.tm) * (self.n // self.tn)

    @property
    def bytes(self) -> int:
        """Workgroup memory."""
        return 16 * self.k * (self.m // 4 + self.n // 4 + 2)  # of a half one: two of half the size

    @property
    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.tm}x{self.tn}{' ahead' * self.ahead}{' f16' * self.half}"


def each(count: int, threads: int, body: str) -> str:
    """`body` with `e` running over count elements, shared out between the invocations; ROUND is the round's number."""
    out = []
    for r in range(-(-count // threads)):
        inner = f"    {{ let e = lane + {r * threads}u;\n{body.replace('ROUND', str(r))} }}"
        out.append(f"    if (lane + {r * threads}u < {count}u) {inner.strip()}" if (r + 1) * threads > count else inner)
    return "\n".join(out)


def multiply(t: Tile, a: str = "tile_a", b: str = "tile_b") -> str:
    """One tile's multiply-adds: a [k, m], b [k, n], rows a vec4 longer than that."""
    lda, ldb, ga, gb = t.m // 4 + 1, t.n // 4 + 1, t.m // t.tm, t.n // t.tn
    lines = []
    for k in range(t.k):
        lines += [f"    let a{k}_{g} = vec4<f32>({a}[{k * lda + g * ga}u + ty]);" for g in range(t.tm // 4)]
        lines += [f"    let b{k}_{h} = vec4<f32>({b}[{k * ldb + h * gb}u + tx]);" for h in range(t.tn // 4)]
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


def _turned(tile: str, ld: int, quads: int, value: str, kind: str) -> str:
    """Four neighbours along the sum go to four rows of the tile."""
    return "".join(
        f"\n      {tile}[((e % {quads}u) * 4u + {j}u) * {ld}u + (r >> 2u)][r & 3u] = {kind}({value}.{'xyzw'[j]});"
        for j in range(4)
    )


def _loads(t: Tile, transposed: bool) -> _Loads:
    lda, ldb, quads, wide, kind = t.m // 4 + 1, t.n // 4 + 1, t.k // 4, t.n // 4, "f16" if t.half else "f32"
    along = f"""
      let r = e / {quads}u;
      let k = k0 + (e % {quads}u) * 4u;"""
    value = "x[min(m0 + r, p.m - 1u) * p.xs + p.x0 + (k >> 2u)]" + " * scales[min(m0 + r, p.m - 1u)]" * t.half
    fetch = [each(t.m * quads, t.threads, along + _masked("aROUND", value))]
    row = f"\n      let r = e / {quads}u;"
    keep = [each(t.m * quads, t.threads, row + _turned("tile_a", lda, quads, "aROUND", kind))]
    if transposed:
        fetch.append(each(t.n * quads, t.threads, along + _masked("bROUND", "weight4(min(n0 + r, p.n - 1u), k)")))
        keep.append(each(t.n * quads, t.threads, row + _turned("tile_b", ldb, quads, "bROUND", kind)))
    else:
        fetch.append(
            each(
                t.k * wide,
                t.threads,
                f"""
      let r = e / {wide}u;
      let c = e % {wide}u;
      bROUND = vec4<f32>();
      if (k0 + r < k_end && n0 + c * 4u < p.n) {{ bROUND = weight4(k0 + r, n0 + c * 4u); }}""",
            )
        )
        keep.append(
            each(t.k * wide, t.threads, f"\n      tile_b[(e / {wide}u) * {ldb}u + e % {wide}u] = vec4<{kind}>(bROUND);")
        )
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


def _tail(t: Tile, a: str, b: str) -> str:
    """The pair's product, as further terms of the sum, through workgroup memory a and b."""
    lda, ldb = t.m // 4 + 1, t.n // 4 + 1
    rows = each(
        t.m * t.k,
        t.threads,
        f"""
      let r = e / {t.k}u;
      let c = c0 + e % {t.k}u;
      var v = 0.0;
      if (c < p.rank) {{ v = low[min(m0 + r, p.m - 1u) * p.ls + l0 + c]; }}
      {a}[(e % {t.k}u) * {lda}u + (r >> 2u)][r & 3u] = v;""",
    )
    columns = each(
        t.n * t.k,
        t.threads,
        f"""
      let r = e / {t.k}u;
      let c = c0 + e % {t.k}u;
      var v = 0.0;
      if (c < p.rank) {{ v = pair[p.pair0 + min(n0 + r, p.n - 1u) * p.pn + c * p.pc]; }}
      {b}[(e % {t.k}u) * {ldb}u + (r >> 2u)][r & 3u] = v;""",
    )
    return f"""
  if (group.z == 0u) {{
    let l0 = p.l0 + p.rank * (select(0u, 1u, n0 >= p.n1) + select(0u, 1u, n0 >= p.n2));
    for (var c0 = 0u; c0 < p.rank; c0 += {t.k}u) {{
{rows}
{columns}
    workgroupBarrier();
{multiply(t, a, b)}
    workgroupBarrier();
    }}
  }}"""


def _back(t: Tile) -> str:
    """Sums of scaled rows at their own size again."""
    return "".join(
        f"""
  {{
    let back = 1.0 / scales[min(m0 + {(i // 4) * (t.m // t.tm) * 4 + i % 4}u + ty * 4u, p.m - 1u)];
    {" ".join(f"s{i}_{h} *= back;" for h in range(t.tn // 4))}
  }}"""
        for i in range(t.tm)
    )


def _memory(t: Tile, a: str, b: str) -> str:
    kind = "f16" if t.half else "f32"
    return "\n".join(
        f"var<workgroup> {name}: array<vec4<{kind}>, {t.k * (width // 4 + 1)}>;" for name, width in ((a, t.m), (b, t.n))
    )


@functools.cache
def gemm(block: str, transposed: bool, tile: Tile = Tile(), tail: bool = False, bias: bool = False) -> Kernel:
    """out[m, n] (+)= sum over k of x[m, k] w, w = W[n, k] (transposed) or W[k, n]; + low[m, c] pair[n, c]; + bias[n].

    grid: (columns / n, rows / m, slices of the sum of k_step each). xs, ys, zs: vec4s from row
    to row and slice to slice; x0, y0: vec4s before the first column. A half tile also reads row_scales() of x.
    """
    t, loads = tile, _loads(tile, transposed)
    names = ("tile_a", "tile_b")
    tail_names = ("tail_a", "tail_b") if t.half else names
    shared = _memory(t, *names) + ("\n" + _memory(t.tail, *tail_names) if tail and t.half else "")
    sums = "\n".join(f"  var s{i}_{h} = vec4<f32>();" for i in range(t.tm) for h in range(t.tn // 4))
    stores = []
    for i in range(t.tm):
        row = f"m0 + {(i // 4) * (t.m // t.tm) * 4 + i % 4}u + ty * 4u"
        for h in range(t.tn // 4):
            stores.append(f"  keep({row}, n0 + {h * (t.n // t.tn) * 4}u + tx * 4u, group.z, s{i}_{h});")
    offset = (
        """
  if (z == 0u) {
    for (var j = 0u; j < 4u; j++) { v[j] += bias[p.bias0 + min(n + j, p.n - 1u)]; }
  }"""
        if bias
        else ""
    )
    keep = f"""
fn keep(m: u32, n: u32, z: u32, sum: vec4<f32>) {{
  if (m >= p.m || n >= p.n) {{ return; }}
  var v = sum;{offset}
  let to = z * p.zs + m * p.ys + p.y0 + (n >> 2u);
  if (p.adds != 0u) {{ v += out[to]; }}
  out[to] = v;
}}"""
    return Kernel(
        f"gemm {'NT' if transposed else 'NN'}, {block}, {t.name}{', pair' * tail}{', bias' * bias}",
        (
            *reads("x", of="vec4<f32>"),
            *reads("w", of="u32"),
            *writes("out", of="vec4<f32>"),
            *(reads("low", "pair") if tail else ()),
            *(reads("bias") if bias else ()),
            *(reads("scales") if t.half else ()),
        ),
        (
            *NUMBERS,
            "m",
            "n",
            "k",
            "k_step",
            "xs",
            "x0",
            "ys",
            "y0",
            "zs",
            "adds",
            *(("rank", "ls", "l0", "n1", "n2", "pair0", "pn", "pc") if tail else ()),
            *(("bias0",) if bias else ()),
        ),
        f"""
  let tx = lane % {t.n // t.tn}u;
  let ty = lane / {t.n // t.tn}u;
  let n0 = group.x * {t.n}u;
  let m0 = group.y * {t.m}u;
  let k_begin = group.z * p.k_step;
  let k_end = min(p.k, k_begin + p.k_step);
{sums}
{loads.declare}{_walk(t, loads)}{_back(t) if t.half else ""}{_tail(t.tail, *tail_names) if tail else ""}
{chr(10).join(stores)}
""",
        (t.threads, 1),
        shared,
        blocks(block) + keep,
        (F16,) if t.half else (),
    )


@functools.cache
def row_scales() -> Kernel:
    """scales[t] = a power of two that brings the largest of row t's n elements between 128 and 256: far from float16's
    largest, 65,504, and its least, 2**-24."""
    return Kernel(
        "row_scales",
        (*reads("x"), *writes("scales")),
        ("n", "xs", "x0"),
        """
  var most = 0.0;
  for (var i = lane; i < p.n; i += 256u) { most = max(most, abs(x[group.x * p.xs + p.x0 + i])); }
  let top = total_tops(most, lane);
  if (lane == 0u) { scales[group.x] = bitcast<f32>((261u - max(bitcast<u32>(top) >> 23u, 8u)) << 23u); }
""",
        shared="var<workgroup> tops: array<f32, 256>;",
        functions=total("max", name="tops"),
    )


@functools.cache
def split_sum() -> Kernel:
    """out[t] (+)= the sum of `slices` slices of part; in vec4s."""
    return Kernel(
        "split_sum",
        (*reads("part", of="vec4<f32>"), *writes("out", of="vec4<f32>")),
        ("n", "slices", "ps", "zs", "ys", "y0", "adds"),
        """
  let i = thread.x;
  let t = thread.y;
  if (i >= p.n) { return; }
  var v = vec4<f32>();
  for (var z = 0u; z < p.slices; z++) { v += part[z * p.zs + t * p.ps + i]; }
  if (p.adds != 0u) { v += out[t * p.ys + p.y0 + i]; }
  out[t * p.ys + p.y0 + i] = v;
""",
    )
