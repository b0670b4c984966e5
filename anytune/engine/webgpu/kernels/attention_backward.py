"""The gradients of attention by queries, keys and values, from the saved log-sum-exp; attention.py has the tiles.

For dq rows are queries and columns keys; for dk and dv rows are keys and columns queries, of every head of the key
head's group.
"""

from __future__ import annotations

import functools

from ..kernel import CAPPED, Kernel, reads, writes
from .attention import COLS, NUMBERS, SEEN, Tiling, accumulate, cell, products, score

_Q = ("q[({0} - p.q0) * p.qs + head_q + d]", "dout[({0} - p.q0) * p.ds + head_q + d]")
_KV = ("k[({0} - p.k0) * p.ks + head_k + d]", "v[({0} - p.k0) * p.vs + head_k + d]")


def _weights(t: Tiling, wanted: str, capped: bool) -> str:
    """The tile from products s (of queries and keys) and g (of dout and values): probabilities for dv, gradients of
    scores for the others."""
    lines = []
    for i in range(4):
        for j in range(t.cols):
            row, column = f"r0 + ty * 4u + {i}u", f"c_at + {t.column(j)}"
            query, key = (row, column) if wanted == "dq" else (column, row)
            slope = ""
            if wanted != "dv":
                slope = f" * (g{i}_{j} - delta[at + t]) * p.scale" + " * slope(s, p.cap)" * capped
            lines.append(f"""
    {{
      let t = {query};
      var w = 0.0;
      let s = {score(f"s{i}_{j}", capped)};
      if (seen(t, {key})) {{ w = exp(s - lse[at + t]){slope}; }}
      {cell(i, t.column(j))} = w;
    }}""")
    return "".join(lines)


def _walk(t: Tiling, wanted: str, capped: bool) -> str:
    """Over the columns of one query head."""
    row, column = (_Q, _KV) if wanted == "dq" else (_KV, _Q)
    inside = ("r0 + r < r_end", "c_at + r < limits.y")
    pairs = [("s", row[0], column[0]), *([("g", row[1], column[1])] if wanted != "dv" else [])]
    parts = "".join(products(t, name, a.format("r0 + r"), b.format("c_at + r"), *inside) for name, a, b in pairs)
    source = {"dq": _KV[0], "dk": _Q[0], "dv": _Q[1]}[wanted].format("c_at + r")
    return f"""
    let at = (head_q / p.size) * p.tokens;
    for (var c_at = limits.x + part * {COLS}u; c_at < limits.y; c_at += {COLS}u * p.slices) {{{parts}{
        _weights(t, wanted, capped)
    }
    workgroupBarrier();{accumulate(t, source, inside[1])}
    }}"""


def _stores(t: Tiling) -> str:
    return "".join(
        f"""
  {{
    let to = r0 + ty * 4u + {i}u;
    if (to < r_end) {{{t.dimensions(f"store(to, {{d}}, group.y, group.z, o{i}_{{n}});")}
    }}
  }}"""
        for i in range(4)
    )


@functools.cache
def attention_backward(size: int, wanted: str, capped: bool = False) -> Kernel:
    """dq, dk or dv of a tile of rows, from the saved log-sum-exp and delta.  grid: (tiles, heads of dx, slices of the
    sum).

    A slice has every slices-th tile of columns; with `apart` each query head of a key head's group has slices of its
    own. zs: elements from slice to slice of dx, where there are several.
    """
    t = Tiling(size)
    if wanted == "dq":
        x, heads = "q", "  let head_q = group.y * p.size;\n  let head_k = (group.y / p.group) * p.size;"
        limits, loop = t.seen_keys, "\n  let part = group.z;" + _walk(t, wanted, capped)
    else:
        x, heads = "k", "  let head_k = group.y * p.size;"
        limits = f"""
    let last = min(r0 + {t.rows}u, p.k_high) - 1u;
    var high = bounds[p.tokens_end + last];
    if (p.window != 0u) {{ high = min(high, last + p.window); }}
    range = vec2<u32>(max(r0, p.q_low), min(high, p.q_high));"""
        loop = f"""
  let part = group.z % p.slices;
  let apart = group.z / p.slices;
  for (var member = apart; member < select(p.group, apart + 1u, p.apart != 0u); member++) {{
    let head_q = (group.y * p.group + member) * p.size;{_walk(t, wanted, capped)}
  }}"""
    store = f"""
fn store(row: u32, d: u32, head: u32, z: u32, value: f32) {{
  let to = z * p.zs + (row - p.{x}0) * p.os + head * p.size + d;
  dx[to] = select(0.0, dx[to], p.adds != 0u) + value;
}}"""
    sources = ("q", "k", "dout", "lse") if wanted == "dv" else ("q", "k", "v", "dout", "lse", "delta")
    more = ("qs", "ks", "vs", "ds", "os", "adds", "tokens_end", "slices", "apart", "zs")
    return Kernel(
        f"attention_backward, {wanted}, heads up to {t.dims * t.lanes}" + ", capped" * capped,
        (*reads(*sources), *reads("bounds", of="u32"), *writes("dx")),
        (*NUMBERS, *more, *(["cap:f32"] if capped else [])),
        f"""{t.start}
  let r0 = p.{x}_low + group.x * {t.rows}u;
  let r_end = p.{x}_high;
{heads}
  if (lane == 0u) {{{limits}
  }}
  let limits = workgroupUniformLoad(&range);{loop}
{_stores(t)}
""",
        (256, 1),
        t.shared,
        SEEN + store + CAPPED * capped,
    )
