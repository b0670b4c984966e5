"""The skinny products of low-rank pairs: x Aᵀ and dy B (a few columns from a long sum), and the pairs' gradients.

`rank` columns are cut into groups of eight. Pairs whose linears share a product are adjacent (see
linear.py). What a backward needs of both kinds is one dispatch: on small batches dispatches cost more than their work.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, writes
from . import slots

RANKS = 8  # columns that a workgroup makes
TOKENS = 4  # rows that it makes
LANES = 64
# terms of an invocation's sum that are under way at once: few tokens wait for memory, not for arithmetic
AHEAD = 4
COLUMNS = 64  # of a gradient


def _sums(x: str, m: str, out: str, job: str, pair: str, begin: str = "", end: str = "p.tokens") -> str:
    """One workgroup's out[t, c] = scale * sum over k of x[t, k] m[k, c], m[k, c] = m[m0 + k * mk + c * mc], with k from
    low_ to high; `job` is the suffix of the parameters' names, `pair` the pair whose columns are made; begin: m0, if it
    is not a parameter; end: of the rows."""

    def p(name: str) -> str:
        return f"p.{name}{job}"

    m0 = begin or p("m0")
    sums = "\n".join(f"  var s{t}_{c} = 0.0;" for t in range(TOKENS) for c in range(RANKS))
    # conditions are joined by &, not &&: short circuits are branches, and some compilers take minutes for this many
    body = [
        f"    let k{u} = min(k + {u * LANES}u, high - 1u);\n    let on{u} = k + {u * LANES}u < high;"
        for u in range(AHEAD)
    ]
    body += [
        f"    let x{t}_{u} = {x}[min(t0 + {t}u, {end} - 1u) * {p('xs')} + k{u}];"
        for u in range(AHEAD)
        for t in range(TOKENS)
    ]
    body += [
        f"    {{ let b = select(0.0, {m}[{m0} + k{u} * {p('mk')} + "
        f"min(c0 + {c}u, {p('rank')} - 1u) * {p('mc')}], "
        f"on{u} & (c0 + {c}u < {p('rank')}));\n      "
        + " ".join(f"s{t}_{c} = fma(x{t}_{u}, b, s{t}_{c});" for t in range(TOKENS))
        + " }"
        for u in range(AHEAD)
        for c in range(RANKS)
    ]
    loop = "\n".join(body)
    stores = "\n".join(
        f"  part[{(t * RANKS + c) * LANES}u + lane] = s{t}_{c};" for t in range(TOKENS) for c in range(RANKS)
    )
    each = TOKENS * RANKS
    split = LANES // each
    return f"""
{sums}
  for (var k = low_ + lane; k < high; k += {LANES * AHEAD}u) {{
{loop}
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
  if (lane < {each}u && t < {end} && c < {p("rank")}) {{
    var all = 0.0;
    for (var i = 0u; i < {split}u; i++) {{ all += part[i * {each}u + lane]; }}
    {out}[t * {p("ys")} + ({pair}) * {p("rank")} + c] = p.scale * all;
  }}"""


_PLACE = f"""
  let t0 = group.x * {TOKENS}u;
  let c0 = group.y * {RANKS}u;"""


@functools.cache
def low(experts: bool = False) -> Kernel:
    """low[t, c] = scale * x[t] · a[c].  grid: (tokens / TOKENS, columns / RANKS). experts: each slot with its expert's
    factor; grid: (tiles of TOKENS, columns / RANKS); see slots.py."""
    place, how = _PLACE, ()
    if experts:
        place = slots.tile("group.x") + f"\n  let t0 = m0;\n  let c0 = group.y * {RANKS}u;"
        place, how = place + "\n  let begin = p.m0 + expert * p.step;", ("begin", "m_end")
    return Kernel(
        "low-rank product" + ", experts" * experts,
        (*reads("x", "a"), *writes("low"), *(slots.TILES if experts else ())),
        ("tokens", "scale:f32", "n", "rank", "xs", "ys", "m0", "mk", "mc", *((*slots.NUMBERS, "step") * experts)),
        place + "\n  let low_ = 0u;\n  let high = p.n;" + _sums("x", "a", "low", "", "0u", *how),
        (LANES, 1),
        f"var<workgroup> part: array<f32, {TOKENS * RANKS * LANES}>;" + slots.MEMORY * experts,
    )


@functools.cache
def both() -> Kernel:
    """low() and dy_low[t, c] = scale * dy[t] · b[:, c].

    grid: (tokens / TOKENS, columns / RANKS, 1 + pairs). z = 0 makes low; z > 0 sums over columns n z-1 … n z of dy
    (n0…n3) into columns (z - 1) * rank… of dy_low.
    """
    first = _sums("x", "a", "low", "", "0u").replace("\n", "\n  ")
    second = _sums("dy", "b", "dy_low", "_", "group.z - 1u").replace("\n", "\n  ")
    return Kernel(
        "low-rank products of a backward",
        (*reads("x", "a", "dy", "b"), *writes("low", "dy_low")),
        (
            *("tokens", "scale:f32", "n", "rank", "xs", "ys", "m0", "mk", "mc"),
            *("n0", "n1", "n2", "n3", "rank_", "xs_", "ys_", "m0_", "mk_", "mc_"),
        ),
        _PLACE
        + f"""
  if (group.z == 0u) {{
    if (c0 >= p.rank) {{ return; }}
    let low_ = 0u;
    let high = p.n;{first}
  }} else {{
    if (c0 >= p.rank_) {{ return; }}
    var low_ = p.n0;
    var high = p.n1;
    if (group.z == 2u) {{ low_ = p.n1; high = p.n2; }}
    if (group.z == 3u) {{ low_ = p.n2; high = p.n3; }}{second}
  }}""",
        (LANES, 1),
        f"var<workgroup> part: array<f32, {TOKENS * RANKS * LANES}>;",
    )


def _outer(x: str, y: str, g: str, job: str, first: str = "0u", end: str = "p.tokens", base: str = "") -> str:
    """One workgroup's g[g0 + k * gk + c * gc] += sum over t of x[t, k] y[t, c], COLUMNS columns k from `begin`; first,
    end: of the rows t; base: g0, if it is not a parameter."""
    g0 = base or f"p.g0{job}"
    lanes = 16  # invocations that share the tokens; each has four columns
    sums = "\n".join(f"  var s{c} = vec4<f32>();" for c in range(RANKS))
    steps = "\n".join(f"    s{c} = fma(v, vec4<f32>({y}[at + min({c}u, last)]), s{c});" for c in range(RANKS))
    rounds = "\n".join(
        f"""  part[lane] = s{c};
  workgroupBarrier();
  if (lane < {COLUMNS}u && k < p.n{job} && c0 + {c}u < p.rank{job}) {{
    var all = 0.0;
    for (var i = 0u; i < {lanes}u; i++) {{ all += part[i * 16u + (lane >> 2u)][lane & 3u]; }}
    {g}[{g0} + k * p.gk{job} + (c0 + {c}u) * p.gc{job}] += all;
  }}
  workgroupBarrier();"""
        for c in range(RANKS)
    )
    return f"""
  let column = begin + (lane & 15u) * 4u;
  let last = p.rank{job} - 1u - c0;
{sums}
  for (var t = {first} + (lane >> 4u); t < {end}; t += {lanes}u) {{
    let from_ = t * p.xs{job} + column;
    var v = vec4<f32>();
    if (column + 3u < p.n{job}) {{ v = vec4<f32>({x}[from_], {x}[from_ + 1u], {x}[from_ + 2u], {x}[from_ + 3u]); }}
    else {{ for (var i = 0u; i < 4u; i++) {{ if (column + i < p.n{job}) {{ v[i] = {x}[from_ + i]; }} }} }}
    let at = t * p.ys{job} + pair * p.rank{job} + c0;
{steps}
  }}
  let k = begin + lane;
{rounds}"""


@functools.cache
def expert_gradient() -> Kernel:
    """g[c, k] += sum over an expert's slots t of x[t, k] y[t, c], with any strides of g.

    grid: (columns / COLUMNS, rank / RANKS, experts).
    """
    return Kernel(
        "low-rank gradient, experts",
        (*reads("x", "y"), *writes("g"), *slots.SPANS),
        ("n", "rank", "xs", "ys", "g0", "gk", "gc", *slots.NUMBERS, "step"),
        slots.span("group.z")
        + f"""
  let c0 = group.y * {RANKS}u;
  let begin = group.x * {COLUMNS}u;
  let pair = 0u;
  let base = p.g0 + expert * p.step;"""
        + _outer("x", "y", "g", "", "m0", "m_end", "base"),
        shared="var<workgroup> part: array<vec4<f32>, 256>;" + slots.MEMORY,
    )


@functools.cache
def gradients() -> Kernel:
    """grad_a[c] += sum over t of dy_low[t, c] x[t], grad_b[:, c] += sum over t of dy[t] low[t, c].

    grid: (columns of x and then of dy, / COLUMNS each; rank / RANKS). Columns of dy from n1 on belong to the second
    pair, from n2 on to the third: their low begins `rank_` columns later each.
    """
    first = _outer("x", "dy_low", "grad_a", "").replace("\n", "\n  ")
    second = _outer("dy", "low", "grad_b", "_").replace("\n", "\n  ")
    return Kernel(
        "low-rank gradients",
        (*reads("x", "dy_low", "dy", "low"), *writes("grad_a", "grad_b")),
        (
            *("tokens", "n", "rank", "xs", "ys", "g0", "gk", "gc"),
            *("n_", "rank_", "xs_", "ys_", "g0_", "gk_", "gc_", "n1", "n2"),
        ),
        f"""
  let c0 = group.y * {RANKS}u;
  let edge = (p.n + {COLUMNS - 1}u) / {COLUMNS}u;
  if (group.x < edge) {{
    if (c0 >= p.rank) {{ return; }}
    let begin = group.x * {COLUMNS}u;
    let pair = 0u;{first}
  }} else {{
    if (c0 >= p.rank_) {{ return; }}
    let begin = (group.x - edge) * {COLUMNS}u;
    let pair = select(0u, 1u, begin >= p.n1) + select(0u, 1u, begin >= p.n2);{second}
  }}""",
        shared="var<workgroup> part: array<vec4<f32>, 256>;",
    )
