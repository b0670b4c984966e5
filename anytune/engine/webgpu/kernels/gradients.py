"""Gradients of what is not low-rank: matrices, biases, norms' gains and the embedding table. No two invocations add to
the same float, so every sum has one order."""

from __future__ import annotations

import functools

from ..kernel import Kernel, element, reads, total, writes
from . import slots
from .columns import FUNCTIONS, column_sum
from .gemm import Tile, each, multiply

LANES = 64  # invocations for a row, or a head of it
FIRST = "0x80000000u"

# what column_sums() adds up: arrays, the value at row t, head h, column i
VALUES = {
    "values": (("x",), "x[t * p.xs + i]"),
    "gains": (("x", "dy", "r"), "x[t * p.xs + h * p.n + i] * dy[t * p.ds + h * p.n + i] * r[t * p.rs + h]"),
    "squares": (("x", "hyper"), "square(x[p.x0 + t * p.xs + i] * hyper[0])"),
}


@functools.cache
def outer(tile: Tile = Tile(), experts: bool = False) -> Kernel:
    """g[m, n] += sum over tokens of dy[t, m] x[t, n].  grid: (columns / n, rows / m). g is contiguous.
    experts: over an expert's slots, into its matrix, `rows` rows behind that of the one before; grid.z: experts."""
    t = tile
    lda, ldb, groups_m, groups_n = t.m // 4 + 1, t.n // 4 + 1, t.m // t.tm, t.n // t.tn

    def load(name: str, source: str, width: int, stride: int, value: str) -> str:
        return each(
            t.k * width,
            t.threads,
            f"""
      let k = e / {width}u;
      let c = e % {width}u;
      let from_ = min(t0 + k, m_end - 1u);
      {name}[k * {stride}u + (c >> 2u)][c & 3u] = select(0.0, {source}[{value}], t0 + k < m_end);""",
        )

    place = "\n  let m0 = 0u;\n  let m_end = p.tokens;\n  let g0 = p.g0;"
    if experts:
        place = slots.span("group.z") + "\n  let g0 = p.g0 + expert * p.rows * p.n;"
    sums = "\n".join(f"  var s{i}_{h} = vec4<f32>();" for i in range(t.tm) for h in range(t.tn // 4))
    stores = "\n".join(
        f"  keep(g0, m1 + {(i // 4) * groups_m * 4 + i % 4}u + ty * 4u, n0 + {h * groups_n * 4}u + tx * 4u, s{i}_{h});"
        for i in range(t.tm)
        for h in range(t.tn // 4)
    )
    return Kernel(
        f"outer product, {t.m}x{t.n}x{t.k} {t.tm}x{t.tn}{', experts' * experts}",
        (*reads("dy", "x"), *writes("g"), *(slots.SPANS if experts else ())),
        ("tokens", "m", "n", "ds", "d0", "xs", "g0", *((*slots.NUMBERS, "rows") * experts)),
        f"""{place}
  let tx = lane % {groups_n}u;
  let ty = lane / {groups_n}u;
  let n0 = group.x * {t.n}u;
  let m1 = group.y * {t.m}u;
{sums}
  for (var t0 = m0; t0 < m_end; t0 += {t.k}u) {{
{load("tile_a", "dy", t.m, lda, "from_ * p.ds + p.d0 + min(m1 + c, p.m - 1u)")}
{load("tile_b", "x", t.n, ldb, "from_ * p.xs + min(n0 + c, p.n - 1u)")}
    workgroupBarrier();
{multiply(t)}
    workgroupBarrier();
  }}
{stores}
""",
        (t.threads, 1),
        f"var<workgroup> tile_a: array<vec4<f32>, {t.k * lda}>;\nvar<workgroup> tile_b: array<vec4<f32>, {t.k * ldb}>;"
        + slots.MEMORY * experts,
        """
fn keep(g0: u32, m: u32, n: u32, sum: vec4<f32>) {
  if (m >= p.m) { return; }
  for (var j = 0u; j < 4u && n + j < p.n; j++) { g[g0 + m * p.n + n + j] += sum[j]; }
}""",
    )


@functools.cache
def column_sums(what: str) -> Kernel:
    """out[slice, i] (+)= the sum over `step` rows (heads of rows) of VALUES[what].

    grid: (columns / COLUMNS, slices).
    """
    names, value = VALUES[what]
    body = f"""
    let t = j / p.heads;
    let h = j % p.heads;
    sum += {value};"""
    return Kernel(
        f"column sums of {what}",
        (*reads(*names), *writes("out")),
        ("rows", "heads", "step", "n", "xs", "x0", "ds", "rs", "out0", "adds"),
        column_sum("j", "group.y * p.step", "min(p.rows * p.heads, (group.y + 1u) * p.step)", body)
        + """
  let to = p.out0 + group.y * p.n + column;
  out[to] = select(0.0, out[to], p.adds != 0u) + all;
""",
        functions=FUNCTIONS + "\nfn square(x: f32) -> f32 { return x * x; }",
    )


@functools.cache
def inverse_rms() -> Kernel:
    """r[t, h] = 1 / sqrt(mean x² + eps) over head h of row t.  grid: (heads, rows)."""
    return Kernel(
        "inverse_rms",
        (*reads("x"), *writes("r")),
        ("n", "xs", "rs", "eps:f32"),
        f"""
  let at = group.y * p.xs + group.x * p.n;
  var sum = 0.0;
  for (var i = lane; i < p.n; i += {LANES}u) {{ sum = fma(x[at + i], x[at + i], sum); }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ r[group.y * p.rs + group.x] = 1.0 / sqrt(all / f32(p.n) + p.eps); }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )


@functools.cache
def links() -> Kernel:
    """link[t]: the next place of t's token among n (n: none); its top bit says that t is the first."""
    return Kernel(
        "links",
        (*reads("id", of="u32"), *writes("link", of="u32")),
        ("n", "id0"),
        f"""
  let t = thread.x;
  if (t >= p.n) {{ return; }}
  let mine = id[p.id0 + t];
  var first = {FIRST};
  for (var s = 0u; s < t; s++) {{
    if (id[p.id0 + s] == mine) {{ first = 0u; break; }}
  }}
  var next = t + 1u;
  while (next < p.n) {{
    if (id[p.id0 + next] == mine) {{ break; }}
    next++;
  }}
  link[t] = next | first;
""",
    )


@functools.cache
def scatter() -> Kernel:
    """g[id] += scale * the sum of dx over the token's places, for rows low…high of g, which begin where it is bound."""
    return Kernel(
        "embed_backward",
        (*reads("dx"), *reads("id", "link", of="u32"), *writes("g")),
        ("tokens", "n", "ds", "id0", "low", "high", "g0", "scale:f32"),
        element()
        + f"""
  let row = id[p.id0 + t];
  if ((link[t] & {FIRST}) == 0u || row < p.low || row >= p.high) {{ return; }}
  var sum = 0.0;
  var at = t;
  while (at < p.tokens) {{
    sum += dx[at * p.ds + i];
    at = link[at] & ~{FIRST};
  }}
  g[p.g0 + (row - p.low) * p.n + i] += p.scale * sum;
""",
    )
