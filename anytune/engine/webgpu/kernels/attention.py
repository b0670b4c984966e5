"""Causal attention over packed examples without the matrix of scores, forward and backward (Dao et al. 2022,
arXiv:2205.14135).

A workgroup has a tile of rows of one head and walks over tiles of 32 columns. Scores are made in chunks of 16
dimensions in workgroup memory, stay in registers, and meet the values through a tile of probabilities. In the forward
and in dq rows are queries and columns keys; in dk and dv rows are keys and columns queries, of every head of the key
head's group. `bounds` holds first and end of each token's example, T behind T. q0, k0: the tokens that the bound rows
begin with; q_low…q_high and k_low…k_high: the tokens that a dispatch covers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..kernel import CAPPED, Kernel, reads, total, writes

COLS = 32
DEPTH = 16
UNROLL = 4  # dimensions; loops of a constant length would be unrolled by some compilers, for minutes
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


_NUMBERS = ("q0", "k0", "q_low", "q_high", "k_low", "k_high", "size", "group", "window", "scale:f32", "tokens")
# every term is computed: short circuits take some compilers a minute
_SEEN = """
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


def _products(tiling: Tiling, name: str, row: str, col: str, rows_inside: str, cols_inside: str) -> str:
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


def _accumulate(tiling: Tiling, source: str, inside: str) -> str:
    """oI_D += tile[row i][column] * source[column][d]; source: WGSL of element (c, d)."""
    loads = "".join(f"\n        let w{i} = tile[(ty * 4u + {i}u) * {COLS + 1}u + c0 + c];" for i in range(4))
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


def _outputs(tiling: Tiling, value: str) -> str:
    return "\n".join(f"  var o{i}_{d} = {value};" for i in range(4) for d in range(tiling.dims))


def _start(tiling: Tiling) -> str:
    return f"""
  let tx = lane % {tiling.lanes}u;
  let ty = lane / {tiling.lanes}u;"""


def _score(s: str, capped: bool) -> str:
    """A product as a score."""
    return f"capped({s} * p.scale, p.cap)" if capped else f"{s} * p.scale"


@functools.cache
def attention(size: int, capped: bool = False) -> Kernel:
    """out and log-sum-exp of a tile of queries; carry: go on from what is there already, of earlier keys."""
    tiling = Tiling(size)
    row_at = "(t - p.q0) * p.qs + group.y * p.size"
    stats = "".join(f"\n  var m{i} = {NEVER};\n  var l{i} = 0.0;" for i in range(4))
    carry = "".join(
        f"""
    {{
      let t = r0 + ty * 4u + {i}u;
      if (t < p.q_high) {{
        m{i} = lse[group.y * p.tokens + t];
        l{i} = select(0.0, 1.0, tx == 0u);"""
        + "".join(
            f"""
        if (tx + {d * tiling.lanes}u < p.size) {{
          o{i}_{d} = out[(t - p.q0) * p.os + group.y * p.size + tx + {d * tiling.lanes}u];
        }}"""
            for d in range(tiling.dims)
        )
        + """
      }
    }"""
        for i in range(4)
    )
    masks, tops, weights = [], [], []
    for i in range(4):
        parts = []
        for j in range(tiling.cols):
            masks.append(
                f"    let on{i}_{j} = seen(r0 + ty * 4u + {i}u, c_at + tx + {j * tiling.lanes}u);\n"
                f"    s{i}_{j} = select({NEVER}, {_score(f's{i}_{j}', capped)}, on{i}_{j});"
            )
            parts.append(f"s{i}_{j}")
        most = parts[0] if len(parts) == 1 else f"max({', '.join(parts)})"
        masks.append(f"    tile[(ty * 4u + {i}u) * {COLS + 1}u + tx] = {most};")
        tops.append(
            f"    var n{i} = m{i};\n    for (var c = 0u; c < {tiling.lanes}u; c++) "
            f"{{ n{i} = max(n{i}, tile[(ty * 4u + {i}u) * {COLS + 1}u + c]); }}"
        )
        weights.append(f"    let f{i} = exp(m{i} - n{i});\n    m{i} = n{i};\n    l{i} *= f{i};")
        for j in range(tiling.cols):
            weights.append(
                f"    let w{i}_{j} = select(0.0, exp(s{i}_{j} - m{i}), on{i}_{j});\n    l{i} += w{i}_{j};\n"
                f"    tile[(ty * 4u + {i}u) * {COLS + 1}u + tx + {j * tiling.lanes}u] = w{i}_{j};"
            )
        weights += [f"    o{i}_{d} *= f{i};" for d in range(tiling.dims)]
    ends = []
    for i in range(4):
        ends.append(
            f"""
  tile[(ty * 4u + {i}u) * {COLS + 1}u + tx] = l{i};
  workgroupBarrier();
  {{
    let t = r0 + ty * 4u + {i}u;
    var l = 0.0;
    for (var c = 0u; c < {tiling.lanes}u; c++) {{ l += tile[(ty * 4u + {i}u) * {COLS + 1}u + c]; }}
    if (t < p.q_high) {{
      let r = select(0.0, 1.0 / l, l > 0.0);"""
            + "".join(
                f"""
      if (tx + {d * tiling.lanes}u < p.size) {{
        out[(t - p.q0) * p.os + group.y * p.size + tx + {d * tiling.lanes}u] = o{i}_{d} * r;
      }}"""
                for d in range(tiling.dims)
            )
            + f"""
      if (tx == 0u) {{ lse[group.y * p.tokens + t] = select({NEVER}, m{i} + log(l), l > 0.0); }}
    }}
  }}"""
        )
    body = f"""{_start(tiling)}
  let r0 = p.q_low + group.x * {tiling.rows}u;
  let head = (group.y / p.group) * p.size;
{_outputs(tiling, "0.0")}{stats}
  if (p.carry != 0u) {{{carry}
  }}
  if (lane == 0u) {{
    var low = bounds[r0];
    if (p.window != 0u && r0 + 1u > p.window) {{ low = max(low, r0 + 1u - p.window); }}
    range = vec2<u32>(max(low, p.k_low), min(min(r0 + {tiling.rows}u, p.q_high), p.k_high));
  }}
  let limits = workgroupUniformLoad(&range);
  for (var c_at = limits.x; c_at < limits.y; c_at += {COLS}u) {{{
        _products(
            tiling,
            "s",
            f"q[{row_at} + d]".replace("t -", "r0 + r -"),
            "k[(c_at + r - p.k0) * p.ks + head + d]",
            "r0 + r < p.q_high",
            "c_at + r < limits.y",
        )
    }
{chr(10).join(masks)}
    workgroupBarrier();
{chr(10).join(tops)}
    workgroupBarrier();
{chr(10).join(weights)}{_accumulate(tiling, "v[(c_at + r - p.k0) * p.vs + head + d]", "c_at + r < limits.y")}
  }}
{"".join(ends)}
"""
    return Kernel(
        f"attention, heads up to {tiling.dims * tiling.lanes}" + ", capped" * capped,
        (*reads("q", "k", "v"), *reads("bounds", of="u32"), *writes("out", "lse")),
        (*_NUMBERS, "qs", "ks", "vs", "os", "carry", *(["cap:f32"] if capped else [])),
        body,
        (256, 1),
        tiling.shared,
        _SEEN + CAPPED * capped,
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


@functools.cache
def attention_backward(size: int, wanted: str, capped: bool = False) -> Kernel:
    """dq, dk or dv of a tile of rows, from the saved log-sum-exp and delta.  grid: (tiles, heads of dx, slices of the
    sum).

    A slice has every slices-th tile of columns; with `apart` each query head of a key head's group has slices of its
    own. zs: elements from slice to slice of dx, where there are several.
    """
    tiling = Tiling(size)
    by_query = wanted == "dq"
    q = ("q[({0} - p.q0) * p.qs + head_q + d]", "dout[({0} - p.q0) * p.ds + head_q + d]")
    kv = ("k[({0} - p.k0) * p.ks + head_k + d]", "v[({0} - p.k0) * p.vs + head_k + d]")
    row, col = (q, kv) if by_query else (kv, q)
    r_in, c_in = ("r0 + r < r_end", "c_at + r < limits.y")
    parts = _products(tiling, "s", row[0].format("r0 + r"), col[0].format("c_at + r"), r_in, c_in)
    if wanted != "dv":
        parts += _products(tiling, "g", row[1].format("r0 + r"), col[1].format("c_at + r"), r_in, c_in)
    lines = []
    for i in range(4):
        for j in range(tiling.cols):
            t, key = f"r0 + ty * 4u + {i}u", f"c_at + tx + {j * tiling.lanes}u"
            t, key = (t, key) if by_query else (key, t)
            ds = "" if wanted == "dv" else f" * (g{i}_{j} - delta[at + t]) * p.scale"
            ds += " * slope(s, p.cap)" if capped and ds else ""
            lines.append(f"""    {{
      let t = {t};
      var w = 0.0;
      let s = {_score(f"s{i}_{j}", capped)};
      if (seen(t, {key})) {{ w = exp(s - lse[at + t]){ds}; }}
      tile[(ty * 4u + {i}u) * {COLS + 1}u + tx + {j * tiling.lanes}u] = w;
    }}""")
    source = {"dq": kv[0], "dk": q[0], "dv": q[1]}[wanted].format("c_at + r")
    inside = f"""
    let at = (head_q / p.size) * p.tokens;
    for (var c_at = limits.x + part * {COLS}u; c_at < limits.y; c_at += {COLS}u * p.slices) {{{parts}
{chr(10).join(lines)}
    workgroupBarrier();{_accumulate(tiling, source, c_in)}
    }}"""
    stores = "".join(
        f"""
  {{
    let to = r0 + ty * 4u + {i}u;
    if (to < r_end) {{"""
        + "".join(
            f"""
      if (tx + {d * tiling.lanes}u < p.size) {{ store(to, tx + {d * tiling.lanes}u, group.y, group.z, o{i}_{d}); }}"""
            for d in range(tiling.dims)
        )
        + """
    }
  }"""
        for i in range(4)
    )
    if by_query:
        limits = f"""
    var low = bounds[r0];
    if (p.window != 0u && r0 + 1u > p.window) {{ low = max(low, r0 + 1u - p.window); }}
    range = vec2<u32>(max(low, p.k_low), min(min(r0 + {tiling.rows}u, p.q_high), p.k_high));"""
        heads = "  let head_q = group.y * p.size;\n  let head_k = (group.y / p.group) * p.size;"
        loop, r0, r_end, base = "\n  let part = group.z;" + inside, "p.q_low", "p.q_high", "p.q0"
    else:
        limits = f"""
    let last = min(r0 + {tiling.rows}u, p.k_high) - 1u;
    var high = bounds[p.tokens_end + last];
    if (p.window != 0u) {{ high = min(high, last + p.window); }}
    range = vec2<u32>(max(r0, p.q_low), min(high, p.q_high));"""
        heads = "  let head_k = group.y * p.size;"
        loop = f"""
  let part = group.z % p.slices;
  let apart = group.z / p.slices;
  for (var member = apart; member < select(p.group, apart + 1u, p.apart != 0u); member++) {{
    let head_q = (group.y * p.group + member) * p.size;{inside}
  }}"""
        r0, r_end, base = "p.k_low", "p.k_high", "p.k0"
    body = f"""{_start(tiling)}
  let r0 = {r0} + group.x * {tiling.rows}u;
  let r_end = {r_end};
{heads}
{_outputs(tiling, "0.0")}
  if (lane == 0u) {{{limits}
  }}
  let limits = workgroupUniformLoad(&range);{loop}
{stores}
"""
    store = f"""
fn store(row: u32, d: u32, head: u32, z: u32, value: f32) {{
  let to = z * p.zs + (row - {base}) * p.os + head * p.size + d;
  dx[to] = select(0.0, dx[to], p.adds != 0u) + value;
}}"""
    sources = {"dv": ("q", "k", "dout", "lse")}.get(wanted, ("q", "k", "v", "dout", "lse", "delta"))
    return Kernel(
        f"attention_backward, {wanted}, heads up to {tiling.dims * tiling.lanes}" + ", capped" * capped,
        (*reads(*sources), *reads("bounds", of="u32"), *writes("dx")),
        (
            *_NUMBERS,
            "qs",
            "ks",
            "vs",
            "ds",
            "os",
            "adds",
            "tokens_end",
            "slices",
            "apart",
            "zs",
            *(["cap:f32"] if capped else []),
        ),
        body,
        (256, 1),
        tiling.shared,
        _SEEN + store + CAPPED * capped,
    )
