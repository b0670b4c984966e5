"""Causal attention over packed examples without the matrix of scores (Dao et al. 2022, arXiv:2205.14135): the forward,
and what attention_backward.py shares with it.

A workgroup has a tile of rows of one head and walks over tiles of 32 columns. Scores are made in chunks of 16
dimensions in workgroup memory, stay in registers, and meet the values through a tile of probabilities. In the forward
rows are queries and columns keys. `bounds` holds first and end of each token's example, T behind T. q0, k0: the tokens
that the bound rows begin with; q_low…q_high and k_low…k_high: the tokens that a dispatch covers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..kernel import CAPPED, Kernel, reads, total, writes

COLS = 32
DEPTH = 16
UNROLL = 4  # dimensions; some compilers spend minutes on unrolling loops of a constant length
NEVER = "-3.0e38"


@dataclass(frozen=True)
class Tiling:
    """How 256 invocations share a tile for heads of a size: `lanes` along the columns and dimensions, four rows
    each."""

    size: int

    @property
    def lanes(self) -> int:
        return 16 if self.size <= 128 else 32

    @property
    def rows(self) -> int:
        return 4 * 256 // self.lanes

    @property
    def cols(self) -> int:
        """Columns of an invocation."""
        return COLS // self.lanes

    @property
    def dims(self) -> int:
        """Dimensions of an invocation."""
        return -(-self.size // self.lanes)

    @property
    def chunk(self) -> int:
        """Columns whose values are in workgroup memory at once: every device has 16 KiB of it."""
        return 8 if self.size <= 256 else 4

    @property
    def shared(self) -> str:
        area = max(DEPTH * (self.rows + COLS + 2), self.chunk * self.size)
        return "\n".join(
            (
                f"var<workgroup> area: array<f32, {area}>;",
                f"var<workgroup> tile: array<f32, {self.rows * (COLS + 1)}>;",
                "var<workgroup> range: vec2<u32>;",
            )
        )

    @property
    def start(self) -> str:
        """WGSL: where the invocation is in a tile, and its results oROW_DIM."""
        outputs = "".join(f"\n  var o{i}_{d} = 0.0;" for i in range(4) for d in range(self.dims))
        return f"\n  let tx = lane % {self.lanes}u;\n  let ty = lane / {self.lanes}u;{outputs}"

    @property
    def seen_keys(self) -> str:
        """WGSL: range = the keys that a tile of queries from r0 on sees."""
        return f"""
    var low = bounds[r0];
    if (p.window != 0u && r0 + 1u > p.window) {{ low = max(low, r0 + 1u - p.window); }}
    range = vec2<u32>(max(low, p.k_low), min(min(r0 + {self.rows}u, p.q_high), p.k_high));"""

    def column(self, number: int) -> str:
        """WGSL: the invocation's columns or dimensions, by number."""
        return f"tx + {number * self.lanes}u"

    def dimensions(self, statement: str) -> str:
        """WGSL: a statement for each dimension of the invocation: {d} its place in the head, {n} its number."""
        places = enumerate(self.column(n) for n in range(self.dims))
        return "".join(f"\n      if ({d} < p.size) {{ {statement.format(d=d, n=n)} }}" for n, d in places)


def cell(row: int, column: str) -> str:
    """WGSL: an element of the tile in one of the invocation's four rows."""
    return f"tile[(ty * 4u + {row}u) * {COLS + 1}u + {column}]"


NUMBERS = ("q0", "k0", "q_low", "q_high", "k_low", "k_high", "size", "group", "window", "scale:f32", "tokens")
# every term is computed: short circuits take some compilers a minute
SEEN = """
fn seen(t: u32, j: u32) -> bool {
  let first = bounds[min(t, p.q_high - 1u)];
  return (t < p.q_high) & (j < p.k_high) & (j <= t) & (j >= first) & ((p.window == 0u) | (t - j < p.window));
}"""


def _fill(count: int, into: str, source: str, inside: str) -> str:
    """Load a chunk: element e is dimension e % DEPTH of row e / DEPTH."""
    return f"""
      for (var e = lane; e < {count * DEPTH}u; e += 256u) {{
        let r = e / {DEPTH}u;
        let d = d0 + e % {DEPTH}u;
        var got = 0.0;
        if (d < p.size && {inside}) {{ got = {source}; }}
        area[{into}] = got;
      }}"""


def products(tiling: Tiling, name: str, row: str, col: str, rows_inside: str, cols_inside: str) -> str:
    """NAMEi_j = the sum over dimensions of row i times column j; row, col: WGSL of an element (r, d)."""
    lda, ldb, at = tiling.rows + 1, COLS + 1, DEPTH * (tiling.rows + 1)
    sums = "".join(f"\n    var {name}{i}_{j} = 0.0;" for i in range(4) for j in range(tiling.cols))
    body = ""
    for u in range(UNROLL):
        body += "".join(f"\n        let a{u}_{i} = area[(d + {u}u) * {lda}u + ty * 4u + {i}u];" for i in range(4))
        body += "".join(
            f"\n        let b{u}_{j} = area[{at}u + (d + {u}u) * {ldb}u + tx + {j * tiling.lanes}u];"
            for j in range(tiling.cols)
        )
        body += "".join(
            f"\n        {name}{i}_{j} = fma(a{u}_{i}, b{u}_{j}, {name}{i}_{j});"
            for i in range(4)
            for j in range(tiling.cols)
        )
    return f"""{sums}
    for (var d0 = 0u; d0 < p.size; d0 += {DEPTH}u) {{{
        _fill(tiling.rows, f"(e % {DEPTH}u) * {lda}u + r", row, rows_inside)
    }{_fill(COLS, f"{at}u + (e % {DEPTH}u) * {ldb}u + r", col, cols_inside)}
      workgroupBarrier();
      for (var d = 0u; d < min({DEPTH}u, p.size - d0); d += {UNROLL}u) {{{body}
      }}
      workgroupBarrier();
    }}"""


def accumulate(tiling: Tiling, source: str, inside: str) -> str:
    """oI_D += tile[row i][column] * source[column][d]; source: WGSL of element (c, d)."""
    loads = "".join(f"\n        let w{i} = {cell(i, 'c0 + c')};" for i in range(4))
    steps = "".join(
        f"\n        let v{d} = area[c * p.size + min(tx + {d * tiling.lanes}u, p.size - 1u)];"
        + "".join(f"\n        o{i}_{d} = fma(w{i}, v{d}, o{i}_{d});" for i in range(4))
        for d in range(tiling.dims)
    )
    return f"""
    for (var c0 = 0u; c0 < min({COLS}u, limits.y - c_at); c0 += {tiling.chunk}u) {{
      for (var e = lane; e < {tiling.chunk}u * p.size; e += 256u) {{
        let r = c0 + e / p.size;
        let d = e % p.size;
        var got = 0.0;
        if ({inside}) {{ got = {source}; }}
        area[e] = got;
      }}
      workgroupBarrier();
      for (var c = 0u; c < min({tiling.chunk}u, limits.y - c_at - c0); c++) {{{loads}{steps}
      }}
      workgroupBarrier();
    }}"""


def score(product: str, capped: bool) -> str:
    """WGSL: a product of query and key as a score."""
    return f"capped({product} * p.scale, p.cap)" if capped else f"{product} * p.scale"


def _carried(t: Tiling) -> str:
    """Go on from the results of earlier keys."""
    return "".join(
        f"""
    {{
      let t = r0 + ty * 4u + {i}u;
      if (t < p.q_high) {{
        m{i} = lse[group.y * p.tokens + t];
        l{i} = select(0.0, 1.0, tx == 0u);"""
        + t.dimensions(f"o{i}_{{n}} = out[(t - p.q0) * p.os + group.y * p.size + {{d}}];")
        + """
      }
    }"""
        for i in range(4)
    )


def _softmax(t: Tiling, capped: bool) -> str:
    """Scores become weights in the tile; mROW is the largest score so far, lROW the sum of weights relative to it."""
    masks, tops, weights = [], [], []
    for i in range(4):
        for j in range(t.cols):
            masks.append(
                f"    let on{i}_{j} = seen(r0 + ty * 4u + {i}u, c_at + {t.column(j)});\n"
                f"    s{i}_{j} = select({NEVER}, {score(f's{i}_{j}', capped)}, on{i}_{j});"
            )
        most = ", ".join(f"s{i}_{j}" for j in range(t.cols))
        masks.append(f"    {cell(i, 'tx')} = {f'max({most})' if t.cols > 1 else most};")
        tops.append(
            f"    var n{i} = m{i};\n    for (var c = 0u; c < {t.lanes}u; c++) {{ n{i} = max(n{i}, {cell(i, 'c')}); }}"
        )
        weights.append(f"    let f{i} = exp(m{i} - n{i});\n    m{i} = n{i};\n    l{i} *= f{i};")
        for j in range(t.cols):
            weights.append(
                f"    let w{i}_{j} = select(0.0, exp(s{i}_{j} - m{i}), on{i}_{j});\n    l{i} += w{i}_{j};\n"
                f"    {cell(i, t.column(j))} = w{i}_{j};"
            )
        weights += [f"    o{i}_{d} *= f{i};" for d in range(t.dims)]
    return "\n    workgroupBarrier();\n".join("\n".join(lines) for lines in (masks, tops, weights))


def _results(t: Tiling) -> str:
    """Divide by the sums of weights, and write."""
    return "".join(
        f"""
  {cell(i, "tx")} = l{i};
  workgroupBarrier();
  {{
    let t = r0 + ty * 4u + {i}u;
    var l = 0.0;
    for (var c = 0u; c < {t.lanes}u; c++) {{ l += {cell(i, "c")}; }}
    if (t < p.q_high) {{
      let r = select(0.0, 1.0 / l, l > 0.0);"""
        + t.dimensions(f"out[(t - p.q0) * p.os + group.y * p.size + {{d}}] = o{i}_{{n}} * r;")
        + f"""
      if (tx == 0u) {{ lse[group.y * p.tokens + t] = select({NEVER}, m{i} + log(l), l > 0.0); }}
    }}
  }}"""
        for i in range(4)
    )


@functools.cache
def attention(size: int, capped: bool = False) -> Kernel:
    """out and log-sum-exp of a tile of queries; carry: go on from what is there already, of earlier keys."""
    t = Tiling(size)
    query, key = "q[(r0 + r - p.q0) * p.qs + group.y * p.size + d]", "k[(c_at + r - p.k0) * p.ks + head + d]"
    inside = "c_at + r < limits.y"
    stats = "".join(f"\n  var m{i} = {NEVER};\n  var l{i} = 0.0;" for i in range(4))
    return Kernel(
        f"attention, heads up to {t.dims * t.lanes}" + ", capped" * capped,
        (*reads("q", "k", "v"), *reads("bounds", of="u32"), *writes("out", "lse")),
        (*NUMBERS, "qs", "ks", "vs", "os", "carry", *(["cap:f32"] if capped else [])),
        f"""{t.start}{stats}
  let r0 = p.q_low + group.x * {t.rows}u;
  let head = (group.y / p.group) * p.size;
  if (p.carry != 0u) {{{_carried(t)}
  }}
  if (lane == 0u) {{{t.seen_keys}
  }}
  let limits = workgroupUniformLoad(&range);
  for (var c_at = limits.x; c_at < limits.y; c_at += {COLS}u) {{{
            products(t, "s", query, key, "r0 + r < p.q_high", inside)
        }
{_softmax(t, capped)}{accumulate(t, "v[(c_at + r - p.k0) * p.vs + head + d]", inside)}
  }}
{_results(t)}
""",
        (256, 1),
        t.shared,
        SEEN + CAPPED * capped,
    )


@functools.cache
def inner() -> Kernel:
    """delta[h, t] = the sum of dout * out over a head."""
    return Kernel(
        "attention, inner products of dout and out",
        (*reads("dout", "out"), *writes("delta")),
        ("size", "ds", "os", "t0", "tokens"),
        """
  var sum = 0.0;
  for (var i = lane; i < p.size; i += 64u) {
    sum = fma(dout[group.y * p.ds + group.x * p.size + i], out[group.y * p.os + group.x * p.size + i], sum);
  }
  let all = total_sums(sum, lane);
  if (lane == 0u) { delta[group.x * p.tokens + p.t0 + group.y] = all; }
""",
        (64, 1),
        functions=total(size=64),
    )
