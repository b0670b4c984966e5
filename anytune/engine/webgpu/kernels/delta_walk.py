"""The gated delta net from chunk to chunk: the factors of each, and the walk over them.

numpy/chunk.py has the recurrence and its form within a chunk of C tokens, with the names used here. A kernel sees a run
of tokens that begins a chunk. Arrays, beside those of delta.py:
    factors [chunks, values, 4, C, C]: decay, scores, decay * k kᵀ below the diagonal, the inverse of the system;
    steps [tokens, 2 values + 1]: how much of the state before the chunk a token sees, write strengths, and the first
    token in the chunk of its example;
    states [chunks, values, key_size, value_size]: before each chunk.
Rows behind the last token of a chunk write nothing.
"""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, writes
from .delta import Sizes

SPAN = 16  # chunks of a segment


@functools.cache
def factors(s: Sizes) -> Kernel:
    """factors and steps of a chunk.  grid: (values, chunks). t0: the run's first token in the stream."""
    c = s.chunk
    return Kernel(
        f"delta, factors, {s.name}",
        (*reads("units", "gates"), *reads("first", of="u32"), *writes("factors", "steps")),
        ("keys", "values", "tokens", "t0", "us", "gs", "fs", "ss", "scale:f32"),
        f"""
  let begin = group.y * {c}u;
  let count = min({c}u, p.tokens - begin);
  let head = group.x;
  let to = (group.y * p.values + head) * p.fs;
  if (lane < {c}u) {{
    let there = lane < count;
    let t = min(begin + lane, p.tokens - 1u);
    let example = first[p.t0 + t];
    logs[lane] = select(0.0, gates[t * p.gs + head], there);
    strength[lane] = select(0.0, gates[t * p.gs + p.values + head], there);
    starts[lane] = select(lane, max(example, p.t0 + begin) - p.t0 - begin, there);
  }}
  workgroupBarrier();
  if (lane < {c}u) {{
    var sum = 0.0;
    for (var i = 0u; i < {c}u; i++) {{
      if (i > lane) {{ sum += logs[i]; }}
      let sees = i >= lane && i < count && starts[i] == starts[lane];
      factors[to + i * {c}u + lane] = select(0.0, exp(sum), sees);
    }}
    if (lane < count) {{
      let t = begin + lane;
      sum = 0.0;
      for (var i = 0u; i <= lane; i++) {{ sum += logs[i]; }}
      steps[t * p.ss + head] = select(0.0, exp(sum), first[p.t0 + t] < p.t0 + begin);
      steps[t * p.ss + p.values + head] = strength[lane];
      if (head == 0u) {{ steps[t * p.ss + 2u * p.values] = f32(starts[lane]); }}
    }}
  }}
  storageBarrier();
  workgroupBarrier();
  for (var e = lane; e < {c * c}u; e += 256u) {{
    let i = e / {c}u;
    let j = e % {c}u;
    var score = 0.0;
    var inner = 0.0;
    if (j <= i && i < count) {{
      let q = (begin + i) * p.us + head % p.keys * {s.key}u;
      let k = q + p.keys * {s.key}u;
      let other = (begin + j) * p.us + (p.keys + head % p.keys) * {s.key}u;
      for (var d = 0u; d < {s.key}u; d++) {{
        score = fma(units[q + d], units[other + d], score);
        inner = fma(units[k + d], units[other + d], inner);
      }}
      let decay = factors[to + e];
      score *= p.scale * decay;
      inner = select(0.0, inner * decay, j < i);
    }}
    factors[to + {c * c}u + e] = score;
    factors[to + {2 * c * c}u + e] = inner;
    lower[e] = strength[i] * inner;
  }}
  workgroupBarrier();
  if (lane < {c}u) {{
    for (var i = 0u; i < {c}u; i++) {{
      var sum = select(0.0, 1.0, i == lane);
      for (var j = lane; j < i; j++) {{ sum = fma(-lower[i * {c}u + j], inverse[j * {c}u + lane], sum); }}
      inverse[i * {c}u + lane] = sum;
      factors[to + {3 * c * c}u + i * {c}u + lane] = sum;
    }}
  }}
""",
        shared=f"var<workgroup> logs: array<f32, {c}>;\nvar<workgroup> strength: array<f32, {c}>;\n"
        f"var<workgroup> starts: array<u32, {c}>;\nvar<workgroup> lower: array<f32, {c * c}>;\n"
        f"var<workgroup> inverse: array<f32, {c * c}>;",
    )


def cut(chunk: int) -> str:
    """WGSL: whether nothing of a state passes through chunk n."""
    return f"""
fn cut(n: u32, head: u32) -> bool {{
  return steps[(min((n + 1u) * {chunk}u, p.tokens) - 1u) * p.ss + head] == 0.0;
}}"""


# chunks that segment z walks over: from the first cut in it, up to and with that in a later one
_RUN = f"""
fn run_of(z: u32, head: u32) -> vec2<u32> {{
  let high = min((z + 1u) * {SPAN}u, p.chunks);
  var begin = z * {SPAN}u;
  while (z > 0u && begin < high) {{
    if (cut(begin, head)) {{ break; }}
    begin++;
  }}
  var end = high;
  while (end < p.chunks) {{
    if (cut(end, head)) {{ end++; break; }}
    end++;
  }}
  return vec2<u32>(begin, select(end, begin, begin == high));
}}"""


@functools.cache
def walk(s: Sizes, keeps: bool, goes_on: bool, hands_on: bool) -> Kernel:
    """out [tokens, values, value_size]: results before their norm.  grid: (columns / s.columns, values, segments).

    A workgroup of a segment walks from the first cut in it to the first cut of a later one, so that examples run side
    by side; the chunk that it begins with is another's to write. goes_on: the state before the run is `before`;
    hands_on: that behind it is `behind`, [values, key_size, value_size] both; keeps: states before each chunk are
    written, and what tokens write, behind all results of a row.
    """
    c, b = s.chunk, s.columns
    own = f"""
    let i = e / {b}u;
    let to = e % {b}u;"""
    keep = f"""
    if (mine) {{
      for (var e = lane; e < {s.key * b}u; e += 256u) {{
        if (c0 + e % {b}u < {s.value}u) {{
          states[(n * p.values + head) * p.states + e / {b}u * {s.value}u + c0 + e % {b}u] = state[e];
        }}
      }}
    }}"""
    hand = f"""
  if (run.y == p.chunks && (run.y > run.x + 1u || group.z == 0u)) {{
    for (var e = lane; e < {s.key * b}u; e += 256u) {{
      if (c0 + e % {b}u < {s.value}u) {{ behind[square + e / {b}u * {s.value}u + e % {b}u] = state[e]; }}
    }}
  }}"""
    start = f"before[square + e / {b}u * {s.value}u + min(e % {b}u, {s.value - 1}u - c0)]"
    return Kernel(
        f"delta, walk, {s.name}{', keeping' * keeps}{', going on' * goes_on}{', handing on' * hands_on}",
        (
            *reads("x", "units", "factors", "steps", *(["before"] if goes_on else [])),
            *writes("out", *(["states"] if keeps else []), *(["behind"] if hands_on else [])),
        ),
        ("keys", "values", "tokens", "chunks", "xs", "us", "fs", "ss", "os", "states", "scale:f32"),
        f"""
  let c0 = group.x * {b}u;
  let head = group.y;
  let square = head * {s.key * s.value}u + c0;
  let v0 = (2u * p.keys * {s.key}u) + head * {s.value}u + c0;
  let q0 = head % p.keys * {s.key}u;
  let k0 = q0 + p.keys * {s.key}u;
  if (lane == 0u) {{ place = run_of(group.z, head); }}
  let run = workgroupUniformLoad(&place);
  if (run.x == run.y) {{ return; }}
  for (var e = lane; e < {s.key * b}u; e += 256u) {{
    state[e] = {f"select(0.0, {start}, group.z == 0u)" if goes_on else "0.0"};
  }}
  for (var n = run.x; n < run.y; n++) {{
    let t0 = n * {c}u;
    let count = min({c}u, p.tokens - t0);
    let f0 = (n * p.values + head) * p.fs;
    let mine = n > run.x || group.z == 0u;
    workgroupBarrier();{keep if keeps else ""}
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      var sum = 0.0;
      if (i < count) {{
        let k = (t0 + i) * p.us + k0;
        for (var d = 0u; d < {s.key}u; d++) {{ sum = fma(units[k + d], state[d * {b}u + to], sum); }}
        let v = x[(t0 + i) * p.xs + v0 + min(to, {s.value - 1}u - c0)];
        sum = steps[(t0 + i) * p.ss + p.values + head] * (v - steps[(t0 + i) * p.ss + head] * sum);
      }}
      right[e] = sum;
    }}
    workgroupBarrier();
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      var sum = 0.0;
      for (var j = 0u; j <= i; j++) {{
        sum = fma(factors[f0 + {3 * c * c}u + i * {c}u + j], right[j * {b}u + to], sum);
      }}
      writes[e] = sum;
    }}
    workgroupBarrier();
    for (var e = lane; e < {c * b}u; e += 256u) {{{own}
      if (i < count && mine && c0 + to < {s.value}u) {{
        let q = (t0 + i) * p.us + q0;
        var sum = 0.0;
        for (var d = 0u; d < {s.key}u; d++) {{ sum = fma(units[q + d], state[d * {b}u + to], sum); }}
        sum *= p.scale * steps[(t0 + i) * p.ss + head];
        for (var j = 0u; j <= i; j++) {{
          sum = fma(factors[f0 + {c * c}u + i * {c}u + j], writes[j * {b}u + to], sum);
        }}
        let at = (t0 + i) * p.os + head * {s.value}u + c0 + to;
        out[at] = sum;{f" out[at + p.values * {s.value}u] = writes[e];" if keeps else ""}
      }}
    }}
    workgroupBarrier();
    let passes = steps[(t0 + count - 1u) * p.ss + head];
    for (var e = lane; e < {s.key * b}u; e += 256u) {{
      var sum = passes * state[e];
      for (var j = 0u; j < count; j++) {{
        let k = units[(t0 + j) * p.us + k0 + e / {b}u];
        sum = fma(factors[f0 + (count - 1u) * {c}u + j] * k, writes[j * {b}u + e % {b}u], sum);
      }}
      state[e] = sum;
    }}
  }}{hand if hands_on else ""}
""",
        shared=f"var<workgroup> state: array<f32, {s.key * b}>;\nvar<workgroup> right: array<f32, {c * b}>;\n"
        f"var<workgroup> writes: array<f32, {c * b}>;\nvar<workgroup> place: vec2<u32>;",
        functions=cut(c) + _RUN,
    )
