"""Which experts a token goes to, and the order of slots (a token at one of its experts) by expert. Nothing is
read back: how many slots an expert has is known on the device alone.

Slot number t * used + j is token t's j-th choice; `order` lists them sorted by expert, equal ones as they come, and
`place` is its inverse. Tokens from real[0] on are padding: they go to no expert, and behind bounds[experts] there is no
slot that counts.
"""

from __future__ import annotations

import functools

from anytune.engine.shapes import LEAST_SUM

from ..kernel import Kernel, reads, total, writes

LANES = 64
SORTERS = 256
GROUPS = 256  # of experts, at most
EXPERTS = 32 * LANES  # at most: an invocation marks in a word which of its candidates were chosen
KINDS = ("softmax", "sigmoid", "chosen")
NONE = "0xffffffffu"

# The first of the invocations' candidates: larger values first, equal ones by number. What was chosen is known by its
# number, since a card may round one expression differently in two places: by value an expert could be chosen twice.
_PICK = f"""
fn before(a: f32, i: u32, b: f32, j: u32) -> bool {{ return a > b || (a == b && i < j); }}
fn first(value: f32, number: u32, lane: u32) -> u32 {{
  best[lane] = value;
  numbers[lane] = number;
  workgroupBarrier();
  for (var step = {LANES // 2}u; step > 0u; step = step >> 1u) {{
    if (lane < step && numbers[lane + step] != {NONE}) {{
      if (numbers[lane] == {NONE} || before(best[lane + step], numbers[lane + step], best[lane], numbers[lane])) {{
        best[lane] = best[lane + step];
        numbers[lane] = numbers[lane + step];
      }}
    }}
    workgroupBarrier();
  }}
  let found = numbers[0];
  workgroupBarrier();
  return found;
}}"""


def _softmax_sums() -> str:
    return f"""
  var most = -3.0e38;
  for (var i = lane; i < p.experts; i += {LANES}u) {{ most = max(most, score[at + i]); }}
  let top = total_tops(most, lane);
  var all = 0.0;
  for (var i = lane; i < p.experts; i += {LANES}u) {{ all += exp(score[at + i] - top); }}
  let sum = total_sums(all, lane);"""


def _allowed_groups(choice: str) -> str:
    """Which groups of experts have the largest sums of their two best."""
    return f"""
  let size = p.experts / p.groups;
  for (var g = lane; g < p.groups; g += {LANES}u) {{
    var one = -3.0e38;
    var two = -3.0e38;
    for (var i = g * size; i < (g + 1u) * size; i++) {{
      let v = {choice};
      two = max(two, min(one, v));
      one = max(one, v);
    }}
    pairs[g] = one + two;
  }}
  workgroupBarrier();
  for (var g = lane; g < p.groups; g += {LANES}u) {{
    var better = 0u;
    for (var h = 0u; h < p.groups; h++) {{ better += u32(before(pairs[h], h, pairs[g], g)); }}
    allowed[g] = u32(better < p.near);
  }}
  workgroupBarrier();"""


def _weights(kind: str, scaled: bool) -> str:
    """The weights of the experts chosen: softmax over their scores, or what they have, normalized if asked for."""
    share = "exp(weight[to + j] - top_)" if kind == "chosen" else "weight[to + j]"
    by = "sum_" if kind == "chosen" else f"select(1.0, max(sum_, {LEAST_SUM}), p.normalized != 0u)"
    last = "share[to + j] = own_;\n      own_ *= scales[p.scales0 + chosen[to + j]];" if scaled else ""
    return f"""
    var top_ = -3.0e38;
    for (var j = 0u; j < p.used; j++) {{ top_ = max(top_, weight[to + j]); }}
    var sum_ = 0.0;
    for (var j = 0u; j < p.used; j++) {{ sum_ += {share}; }}
    let by = {by};
    for (var j = 0u; j < p.used; j++) {{
      var own_ = {share} / by;
      {last}
      weight[to + j] = p.scale * own_;
    }}"""


@functools.cache
def choose(kind: str, biased: bool, parts: bool, scaled: bool = False, grouped: bool = False) -> Kernel:
    """Each token's experts and their weights, largest first; parts: also every expert's activated score; scaled: each
    expert has a factor of its own, and shares, the weights before all factors, are written too; grouped: only out of
    the `near` groups whose two best experts have the largest sums.

    grid: (tokens,). NaN scores are chosen last, experts that do not exist never.
    """
    softmax = kind == "softmax"
    value = {"softmax": "exp(score[at + i] - top) / sum", "sigmoid": "1.0 / (1.0 + exp(-score[at + i]))"}
    part = value.get(kind, "score[at + i]")
    choice = part + " + bias[p.bias0 + i]" * biased
    start = _softmax_sums() if softmax else ""
    if parts:
        start += f"\n  for (var i = lane; i < p.experts; i += {LANES}u) {{ part[t * p.ps + i] = {part}; }}"
    if grouped:
        start += _allowed_groups(choice)
    near = "\n      if (allowed[i / size] == 0u) { continue; }" if grouped else ""
    return Kernel(
        f"route, {kind}{', biased' * biased}{', parts' * parts}{', scaled' * scaled}{', grouped' * grouped}",
        (
            *reads("score", *(["bias"] if biased else []), *(["scales"] if scaled else [])),
            *writes("chosen", of="u32"),
            *writes("weight", *(["part"] if parts else []), *(["share"] if scaled else [])),
        ),
        ("experts", "used", "ss", "t0", "normalized", "scale:f32", "ps", "bias0", "scales0", "groups", "near"),
        f"""
  let t = group.x;
  let at = t * p.ss;
  let to = (p.t0 + t) * p.used;{start}
  var taken = 0u;
  for (var j = 0u; j < p.used; j++) {{
    var mine = -3.0e38;
    var own = {NONE};
    for (var i = lane; i < p.experts; i += {LANES}u) {{
      let v = {choice};{near}
      if (((taken >> (i / {LANES}u)) & 1u) == 0u && (own == {NONE} || v > mine)) {{
        mine = v;
        own = i;
      }}
    }}
    let i = min(first(mine, own, lane), p.experts - 1u);
    if (i % {LANES}u == lane) {{ taken |= 1u << (i / {LANES}u); }}
    if (lane == 0u) {{
      chosen[to + j] = i;
      weight[to + j] = {part};
    }}
  }}
  if (lane == 0u) {{{_weights(kind, scaled)}
  }}
""",
        (LANES, 1),
        f"var<workgroup> best: array<f32, {LANES}>;\nvar<workgroup> numbers: array<u32, {LANES}>;"
        + f"\nvar<workgroup> pairs: array<f32, {GROUPS}>;\nvar<workgroup> allowed: array<u32, {GROUPS}>;" * grouped,
        _PICK + (total(size=LANES) + total("max", LANES, "tops") if softmax else ""),
    )


@functools.cache
def sort() -> Kernel:
    """order, place and bounds: a workgroup finds the slots of one expert, each invocation in a run of its own.

    grid: (experts,).
    """
    return Kernel(
        "route, sorted",
        (*reads("chosen", "real", of="u32"), *writes("order", "place", "bounds", of="u32")),
        ("experts", "used", "real0", "tokens"),
        f"""
  let count = min(real[p.real0], p.tokens) * p.used;
  let step = (count + {SORTERS - 1}u) / {SORTERS}u;
  let begin = min(count, lane * step);
  let end = min(count, begin + step);
  let mine = group.x;
  var less = 0u;
  var same = 0u;
  for (var i = begin; i < end; i++) {{
    less += u32(chosen[i] < mine);
    same += u32(chosen[i] == mine);
  }}
  fewer[lane] = less;
  equal[lane] = same;
  workgroupBarrier();
  var first = 0u;
  for (var j = 0u; j < {SORTERS}u; j++) {{ first += fewer[j]; }}
  var at = first;
  for (var j = 0u; j < lane; j++) {{ at += equal[j]; }}
  if (lane == 0u) {{
    bounds[mine] = first;
    if (mine + 1u == p.experts) {{ bounds[p.experts] = count; }}
  }}
  for (var i = begin; i < end; i++) {{
    if (chosen[i] == mine) {{
      order[at] = i;
      place[i] = at;
      at++;
    }}
  }}
""",
        (SORTERS, 1),
        f"var<workgroup> fewer: array<u32, {SORTERS}>;\nvar<workgroup> equal: array<u32, {SORTERS}>;",
    )


@functools.cache
def tiles() -> Kernel:
    """Each expert's slots in tiles of m: (expert, first slot, end); unused entries name an expert that does not
    exist.  grid: (1,)."""
    return Kernel(
        "route, tiles",
        (*reads("bounds", of="u32"), *writes("tiles", of="u32")),
        ("experts", "m", "most"),
        f"""
  let step = (p.experts + {SORTERS - 1}u) / {SORTERS}u;
  let begin = min(p.experts, lane * step);
  let end = min(p.experts, begin + step);
  var mine = 0u;
  for (var i = begin; i < end; i++) {{ mine += (bounds[i + 1u] - bounds[i] + p.m - 1u) / p.m; }}
  counts[lane] = mine;
  workgroupBarrier();
  var at = 0u;
  for (var j = 0u; j < lane; j++) {{ at += counts[j]; }}
  for (var i = begin; i < end; i++) {{
    for (var low = bounds[i]; low < bounds[i + 1u]; low += p.m) {{
      tiles[3u * at] = i;
      tiles[3u * at + 1u] = low;
      tiles[3u * at + 2u] = min(low + p.m, bounds[i + 1u]);
      at++;
    }}
  }}
  var all = 0u;
  for (var j = 0u; j < {SORTERS}u; j++) {{ all += counts[j]; }}
  for (var i = all + lane; i < p.most; i += {SORTERS}u) {{
    tiles[3u * i] = p.experts;
    tiles[3u * i + 1u] = 0u;
    tiles[3u * i + 2u] = 0u;
  }}
""",
        (SORTERS, 1),
        f"var<workgroup> counts: array<u32, {SORTERS}>;",
    )


@functools.cache
def loads() -> Kernel:
    """load += (1, the fullest expert's slots over the mean, the share of experts without any).  grid: (1,)."""
    return Kernel(
        "route, loads",
        (*reads("bounds", of="u32"), *writes("load")),
        ("experts",),
        f"""
  var most = 0.0;
  var idle = 0.0;
  for (var i = lane; i < p.experts; i += {LANES}u) {{
    let count = bounds[i + 1u] - bounds[i];
    most = max(most, f32(count));
    idle += f32(u32(count == 0u));
  }}
  let peak = total_tops(most, lane);
  let without = total_sums(idle, lane);
  if (lane == 0u) {{
    load[0] += 1.0;
    load[1] += peak * f32(p.experts) / f32(bounds[p.experts]);
    load[2] += without / f32(p.experts);
  }}
""",
        (LANES, 1),
        functions=total(size=LANES) + total("max", LANES, "tops"),
    )
