"""The skinny products of low-rank pairs: x Aᵀ and dy B (a few columns from a long sum), and the pairs' gradients.

`rank` columns are cut into groups of eight; pairs whose linears share a product lie one behind the other (see linear.py).
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, writes

RANKS = 8        # columns that a workgroup makes
TOKENS = 4       # rows that it makes
LANES = 64
COLUMNS = 64     # of a gradient


@functools.cache
def low() -> Kernel:
    """out[t, c] = scale * sum over k of x[t, k] m[k, c], m[k, c] = m[m0 + k * mk + c * mc].

    grid: (tokens / TOKENS, columns / RANKS, pairs). Pair z sums over columns k z…k z+1 of x (bounds n0…n3) into columns
    z * rank… of out.
    """
    sums = "\n".join(f"  var s{t}_{c} = 0.0;" for t in range(TOKENS) for c in range(RANKS))
    loads = "\n".join(f"    let x{t} = x[min(t0 + {t}u, p.tokens - 1u) * p.xs + k];" for t in range(TOKENS))
    steps = "\n".join(
        f"    {{ let b = select(0.0, m[p.m0 + k * p.mk + (c0 + {c}u) * p.mc], c0 + {c}u < p.rank);\n      "
        + " ".join(f"s{t}_{c} = fma(x{t}, b, s{t}_{c});" for t in range(TOKENS)) + " }" for c in range(RANKS))
    stores = "\n".join(f"  part[{(t * RANKS + c) * LANES}u + lane] = s{t}_{c};" for t in range(TOKENS) for c in range(RANKS))
    each = TOKENS * RANKS
    split = LANES // each
    return Kernel("low", (*reads("x", "m"), *writes("out")),
                  ("tokens", "rank", "n0", "n1", "n2", "n3", "xs", "ys", "m0", "mk", "mc", "scale:f32", "adds"), f"""
  let t0 = group.x * {TOKENS}u;
  let c0 = group.y * {RANKS}u;
  var low_ = p.n0;
  var high = p.n1;
  if (group.z == 1u) {{ low_ = p.n1; high = p.n2; }}
  if (group.z == 2u) {{ low_ = p.n2; high = p.n3; }}
{sums}
  for (var k = low_ + lane; k < high; k += {LANES}u) {{
{loads}
{steps}
  }}
{stores}
  workgroupBarrier();
  let o = lane % {each}u;
  var sum = 0.0;
  for (var i = lane / {each}u; i < {LANES}u; i += {split}u) {{ sum += part[o * {LANES}u + ((i + o) & {LANES - 1}u)]; }}
  workgroupBarrier();
  part[lane] = sum;
  workgroupBarrier();
  let t = t0 + o / {RANKS}u;
  let c = c0 + o % {RANKS}u;
  if (lane < {each}u && t < p.tokens && c < p.rank) {{
    var all = 0.0;
    for (var i = 0u; i < {split}u; i++) {{ all += part[i * {each}u + lane]; }}
    let to = t * p.ys + group.z * p.rank + c;
    out[to] = select(0.0, out[to], p.adds != 0u) + p.scale * all;
  }}
""", (LANES, 1),
                  f"var<workgroup> part: array<f32, {each * LANES}>;")


@functools.cache
def gradient() -> Kernel:
    """g[g0 + k * gk + c * gc] += sum over t of x[t, k] y[t, y0 + c]: columns k in x's order, c up to rank.

    grid: (columns / COLUMNS, rank / RANKS). With bounds, columns from n1 on belong to the second pair, from n2 on to the
    third: their y begins `rank` columns later each.
    """
    lanes = 16      # invocations that share the tokens; each has four columns
    sums = "\n".join(f"  var s{c} = vec4<f32>();" for c in range(RANKS))
    steps = "\n".join(f"    s{c} = fma(v, vec4<f32>(y[at + min({c}u, last)]), s{c});" for c in range(RANKS))
    rounds = "\n".join(f"""  part[lane] = s{c};
  workgroupBarrier();
  if (lane < {COLUMNS}u && k < p.n && c0 + {c}u < p.rank) {{
    var all = 0.0;
    for (var i = 0u; i < {lanes}u; i++) {{ all += part[i * 16u + (lane >> 2u)][lane & 3u]; }}
    g[p.g0 + k * p.gk + (c0 + {c}u) * p.gc] += all;
  }}
  workgroupBarrier();""" for c in range(RANKS))
    return Kernel("low-rank gradient", (*reads("x", "y"), *writes("g")),
                  ("tokens", "n", "rank", "n1", "n2", "xs", "ys", "y0", "g0", "gk", "gc"), f"""
  let c0 = group.y * {RANKS}u;
  let begin = group.x * {COLUMNS}u;
  let pair = select(0u, 1u, begin >= p.n1) + select(0u, 1u, begin >= p.n2);
  let column = begin + (lane & 15u) * 4u;
  let last = p.rank - 1u - c0;
{sums}
  for (var t = lane >> 4u; t < p.tokens; t += {lanes}u) {{
    let from_ = t * p.xs + column;
    var v = vec4<f32>();
    if (column + 3u < p.n) {{ v = vec4<f32>(x[from_], x[from_ + 1u], x[from_ + 2u], x[from_ + 3u]); }}
    else {{ for (var i = 0u; i < 4u; i++) {{ if (column + i < p.n) {{ v[i] = x[from_ + i]; }} }} }}
    let at = t * p.ys + p.y0 + pair * p.rank + c0;
{steps}
  }}
  let k = begin + lane;
{rounds}
""", shared="var<workgroup> part: array<vec4<f32>, 256>;")
