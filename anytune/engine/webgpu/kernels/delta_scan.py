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
        (*reads("units", of="vec4<f32>"), *reads("gates"), *reads("first", of="u32"), *writes("factors", "steps")),
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
      let q = (begin + i) * p.us + head % p.keys * {s.key // 4}u;
      let k = q + p.keys * {s.key // 4}u;
      let other = (begin + j) * p.us + (p.keys + head % p.keys) * {s.key // 4}u;
      for (var d = 0u; d < {s.key // 4}u; d++) {{
        score += dot(units[q + d], units[other + d]);
        inner += dot(units[k + d], units[other + d]);
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


LANES = 128  # invocations of a walk, each with four columns


def columns(s: Sizes) -> str:
    """WGSL: the four columns of a head's values from c on, the last one instead of those behind it."""
    return f"""
fn four(c: u32) -> vec4<u32> {{ return min(vec4<u32>(c, c + 1u, c + 2u, c + 3u), vec4<u32>({s.value - 1}u)); }}"""


def gathered(array: str, at: str) -> str:
    """WGSL: elements of an array from `at` on, in the columns `places`."""
    return f"vec4<f32>({', '.join(f'{array}[{at} + places.{x}]' for x in 'xyzw')})"


def put(array: str, at: str, value: str, s: Sizes, when: str = "") -> str:
    """WGSL: the reverse, from column c on, where there are columns."""
    return f"""
      for (var x = 0u; x < 4u && c + x < {s.value}u{when}; x++) {{ {array}[{at} + c + x] = {value}[x]; }}"""


def _product(end: str, fours: str, rows: str, four: int) -> str:
    """WGSL: sum += `fours` of a row, d = 0…end, times the four columns `to` of `rows`, `four` elements apart."""
    steps = "".join(
        f"\n          sum = fma(vec4<f32>(a.{x}), {rows}[{4 * four}u * d + to + {r * four}u], sum);"
        for r, x in enumerate("xyzw")
    )
    return f"""
        for (var d = 0u; d < {end}; d++) {{
          let a = {fours};{steps}
        }}"""


def each(count: int, four: int) -> str:
    """WGSL: the head of a loop over rows i and fours of columns from c on, of the head's own c0."""
    return f"""
    for (var e = lane; e < {count * four}u; e += {LANES}u) {{
      let i = e / {four}u;
      let to = e % {four}u;
      let c = c0 + 4u * to;"""


def times_state(s: Sizes, start: str) -> str:
    """WGSL: sum += token i's key or query, which begins at `start`, times the state."""
    return _product(f"{s.key // 4}u", f"units[(t0 + i) * p.us + {start} + d]", "state", s.columns // 4)


def _times_factor(s: Sizes, number: int, rows: str) -> str:
    """WGSL: sum += row i of one of the factors, up to its diagonal, times `rows`."""
    four = f"factors[f0 + {number * s.chunk**2 // 4}u + i * {s.chunk // 4}u + d]"
    return _product("i / 4u + 1u", four, rows, s.columns // 4)


def next_state(s: Sizes, terms: list[tuple[str, str]], token: str) -> str:
    """WGSL: what passes through a chunk of the state, plus the sum over its tokens j of `terms`: (four of a key, four
    of a value) each, which `token` computes."""
    f, rows = s.columns // 4, list(enumerate("xyzw"))
    load = "".join(f"\n      var s{n} = passes * state[d + {n * f}u];" for n, _ in rows)
    store = "".join(f"\n      state[d + {n * f}u] = s{n};" for n, _ in rows)
    add = "".join(f"\n        s{n} = fma(vec4<f32>({k}.{x}), {v}, s{n});" for k, v in terms for n, x in rows)
    return f"""    workgroupBarrier();
    let passes = steps[(t0 + count - 1u) * p.ss + head];{each(s.key // 4, f)}
      let d = 4u * i * {f}u + to;{load}
      for (var j = 0u; j < count; j++) {{{token}{add}
      }}{store}
    }}"""


@functools.cache
def scan(s: Sizes, keeps: bool, takes_state: bool, gives_state: bool) -> Kernel:
    """out [tokens, values, value_size]: results before their norm.  grid: (columns / s.columns, values, segments).

    A workgroup of a segment walks from the first cut in it to the first cut of a later one, so that examples run in
    parallel; its first chunk is written by the workgroup of an earlier segment. takes_state: the state before the run
    is `before`; gives_state: that behind it is `behind`, [values, key_size, value_size] both; keeps: states before each
    chunk are written, and what tokens write, behind all results of a row.
    """
    c, f, deep = s.chunk, s.columns // 4, s.key // 4
    square = f"(head * {s.key}u + i) * {s.value}u"
    start = f"select(vec4<f32>(), {gathered('before', square)}, group.z == 0u)" if takes_state else "vec4<f32>()"
    keep = f"(n * p.values + head) * p.states + i * {s.value}u"
    out, inner = "at", f"at + p.values * {s.value}u"
    kept = f"{each(s.key, f)}{put('states', keep, 'state[e]', s, ' && mine')}\n    }}" if keeps else ""
    token = f"""
        let k = units[(t0 + j) * p.us + k0 + i] * factors[f0 + ((count - 1u) * {c}u + j) / 4u][j & 3u];
        let w = writes[j * {f}u + to];"""
    hand = f"""
  if (run.y == p.chunks && (run.y > run.x + 1u || group.z == 0u)) {{{each(s.key, f)}
{put("behind", square, "state[e]", s)}
    }}
  }}"""
    return Kernel(
        f"delta, scan, {s.name}{', keeping' * keeps}{', takes a state' * takes_state}{', gives a state' * gives_state}",
        (
            *reads("x"),
            *reads("units", "factors", of="vec4<f32>"),
            *reads("steps", *(["before"] if takes_state else [])),
            *writes("out", *(["states"] if keeps else []), *(["behind"] if gives_state else [])),
        ),
        ("keys", "values", "deep", "tokens", "chunks", "xs", "us", "fs", "ss", "os", "states", "scale:f32"),
        f"""
  let c0 = group.x * {s.columns}u;
  let head = group.y;
  let v0 = 2u * p.keys * p.deep + head * {s.value}u;
  let q0 = head % p.keys * {deep}u;
  let k0 = q0 + p.keys * {deep}u;
  if (lane == 0u) {{ place = run_of(group.z, head); }}
  let run = workgroupUniformLoad(&place);
  if (run.x == run.y) {{ return; }}{each(s.key, f)}
      let places = four(c);
      state[e] = {start};
    }}
  for (var n = run.x; n < run.y; n++) {{
    let t0 = n * {c}u;
    let count = min({c}u, p.tokens - t0);
    let f0 = (n * p.values + head) * p.fs;
    let mine = n > run.x || group.z == 0u;
    workgroupBarrier();{kept}{each(c, f)}
      var sum = vec4<f32>();
      if (i < count) {{{times_state(s, "k0")}
        let places = four(c);
        let v = {gathered("x", "(t0 + i) * p.xs + v0")};
        sum = steps[(t0 + i) * p.ss + p.values + head] * (v - steps[(t0 + i) * p.ss + head] * sum);
      }}
      right[e] = sum;
    }}
    workgroupBarrier();{each(c, f)}
      var sum = vec4<f32>();{_times_factor(s, 3, "right")}
      writes[e] = sum;
    }}
    workgroupBarrier();{each(c, f)}
      if (i < count && mine) {{
        var sum = vec4<f32>();{times_state(s, "q0")}
        sum *= p.scale * steps[(t0 + i) * p.ss + head];{_times_factor(s, 1, "writes")}
        let at = (t0 + i) * p.os + head * {s.value}u;{put("out", out, "sum", s)}
        {put("out", inner, "writes[e]", s) if keeps else ""}
      }}
    }}
{next_state(s, [("k", "w")], token)}
  }}{"workgroupBarrier();" + hand if gives_state else ""}
""",
        (LANES, 1),
        f"var<workgroup> state: array<vec4<f32>, {s.key * f}>;\nvar<workgroup> right: array<vec4<f32>, {c * f}>;\n"
        f"var<workgroup> writes: array<vec4<f32>, {c * f}>;\nvar<workgroup> place: vec2<u32>;",
        cut(c) + _RUN + columns(s),
    )
