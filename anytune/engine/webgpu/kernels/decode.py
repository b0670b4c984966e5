"""Generation's caches of keys and values: new rows stored, and attention of new tokens against what is there."""

from __future__ import annotations

import functools

from ..kernel import CAPPED, Kernel, element, reads, total, writes

LANES = 64


@functools.cache
def store() -> Kernel:
    """cache[slot, position] = x[t], for slots low…high."""
    return Kernel(
        "store",
        (*reads("x"), *reads("slot", "position", of="u32"), *writes("cache")),
        ("n", "xs", "context", "slot0", "position0", "low", "high", "base"),
        element()
        + """
  let s = slot[p.slot0 + t];
  if (s < p.low || s >= p.high) { return; }
  cache[p.base + ((s - p.low) * p.context + position[p.position0 + t]) * p.n + i] = x[t * p.xs + i];
""",
    )


def _score(size: int, capped: bool) -> str:
    """WGSL: the score of the invocation's key."""
    dot = (
        f"""
      let key = (from_ + lane * p.width) / 4u;
      var four = vec4<f32>();
      for (var d = 0u; d < {size // 4}u; d++) {{ four = fma(query[d], keys[key + d], four); }}
      score = (four.x + four.y) + (four.z + four.w);"""
        if size % 4 == 0
        else """
      score = 0.0;
      for (var d = 0u; d < p.size; d++) { score = fma(query[d], keys[from_ + lane * p.width + d], score); }"""
    )
    return dot + "\n      score = capped(score, p.cap);" * capped


def _dimensions(size: int, statement: str) -> str:
    """WGSL: a statement for each dimension of the invocation: {n} its number, {at} its place."""
    return "\n".join(
        f"      if ({at} < p.size) {{ {statement.format(n=n, at=at)} }}"
        for n, at in enumerate(f"lane + {d}u" for d in range(0, size, LANES))
    )


@functools.cache
def attend(size: int, part: bool = False, capped: bool = False, sinks: bool = False) -> Kernel:
    """out of one new token and head: an invocation scores a key of each run of LANES, then sums dimensions of the
    values.  grid: (heads, tokens, runs of `span` keys).

    part: out holds for each head and run the sums over the values, the largest score, the sum of the weights, for
    combine(): Dao et al. 2023, Flash-Decoding for long-context inference. sinks: a further score of each head, without
    a value; of parts combine() adds it.
    """
    dims, four = range(-(-size // LANES)), size % 4 == 0
    to = "(group.x * p.parts + group.z) * (p.size + 2u)" if part else "group.x * p.size"
    share = "" if part else " / (all + exp(sinks[p.sinks0 + group.x] - top))" if sinks else " / all"
    ends = _dimensions(size, f"out[to + {{at}}] = o{{n}}{share};")
    if part:
        ends += "\n  if (lane == 0u) {\n    out[to + p.size] = top;\n    out[to + p.size + 1u] = all;\n  }"
    return Kernel(
        f"attend_cache, heads of {size}{', part' * part}{', capped' * capped}{', sinks' * sinks}",
        (
            *reads("q"),
            *reads("keys", of="vec4<f32>" if four else "f32"),
            *reads("values"),
            *reads("slot", "position", of="u32"),
            *writes("out"),
            *(reads("sinks") if sinks else ()),
        ),
        (
            *("size", "group", "window", "scale:f32", "qs", "os", "width", "context"),
            *("slot0", "position0", "low", "high", "base", "span"),
            *(["parts"] if part else []),
            *(["cap:f32"] if capped else []),
            *(["sinks0"] if sinks else []),
        ),
        f"""
  let t = group.y;
  if (lane == 0u) {{ place = vec2<u32>(slot[p.slot0 + t], position[p.position0 + t] + 1u); }}
  let at = workgroupUniformLoad(&place);
  if (at.x < p.low || at.x >= p.high) {{ return; }}
  let begin = select(0u, at.y - min(p.window, at.y), p.window != 0u) + group.z * p.span;
  let end = min(at.y, begin + p.span);
  let head = (group.x / p.group) * p.size;
  for (var d = lane; d < p.size; d += {LANES}u) {{
    {"query[d >> 2u][d & 3u]" if four else "query[d]"} = q[t * p.qs + group.x * p.size + d] * p.scale;
  }}
  workgroupBarrier();
  var top = -3.0e38;
  var all = 0.0;
{chr(10).join(f"  var o{d} = 0.0;" for d in dims)}
  for (var k0 = begin; k0 < end; k0 += {LANES}u) {{
    let from_ = p.base + ((at.x - p.low) * p.context + k0) * p.width + head;
    var score = -3.0e38;
    if (k0 + lane < end) {{{_score(size, capped)}
    }}
    let most = max(top, total_tops(score, lane));
    let factor = exp(top - most);
    top = most;
    let weight = select(0.0, exp(score - top), k0 + lane < end);
    all = all * factor + total_sums(weight, lane);
    weights[lane] = weight;
    workgroupBarrier();
{chr(10).join(f"    o{d} *= factor;" for d in dims)}
    for (var c = 0u; c < min({LANES}u, end - k0); c++) {{
      let w = weights[c];
{_dimensions(size, "o{n} = fma(w, values[from_ + c * p.width + {at}], o{n});")}
    }}
    workgroupBarrier();
  }}
  let to = t * p.os + {to};
{ends}
""",
        (LANES, 1),
        f"var<workgroup> weights: array<f32, {LANES}>;\n"
        f"var<workgroup> query: array<{f'vec4<f32>, {size // 4}' if four else f'f32, {size}'}>;\n"
        "var<workgroup> place: vec2<u32>;",
        total(size=LANES) + total("max", LANES, "tops") + CAPPED * capped,
    )


@functools.cache
def combine(sinks: bool = False) -> Kernel:
    """out of one new token and head from the parts of attend(): a run's weights are relative to its largest score."""
    own = "exp(sinks[p.sinks0 + group.x] - top)" if sinks else "0.0"
    return Kernel(
        "attend_cache, combined" + ", sinks" * sinks,
        (*reads("part"), *writes("out"), *(reads("sinks") if sinks else ())),
        ("size", "parts", "ps", "os", *(["sinks0"] if sinks else [])),
        f"""
  let from_ = group.y * p.ps + group.x * p.parts * (p.size + 2u);
  var top = -3.0e38;
  for (var z = 0u; z < p.parts; z++) {{ top = max(top, part[from_ + z * (p.size + 2u) + p.size]); }}
  for (var d = lane; d < p.size; d += {LANES}u) {{
    var sum = 0.0;
    var all = {own};
    for (var z = 0u; z < p.parts; z++) {{
      let at = from_ + z * (p.size + 2u);
      let factor = exp(part[at + p.size] - top);
      sum = fma(factor, part[at + d], sum);
      all = fma(factor, part[at + p.size + 1u], all);
    }}
    out[group.y * p.os + group.x * p.size + d] = sum / all;
  }}
""",
        (LANES, 1),
    )
