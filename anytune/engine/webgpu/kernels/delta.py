"""The gated delta net row by row: lengths and gates before the recurrence, norms behind it, and single tokens.

units [tokens, 2 keys, key_size]: queries and keys of length 1, with zeros behind up to a multiple of four; gates
[tokens, 2, values]: logarithms of decays, and write strengths. grid, where not given: (heads, rows).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from anytune.engine.base import DeltaHeads

from ..kernel import Kernel, element, reads, strided_total, total, writes

LANES = 64  # invocations for a head of a token
ROOM = 16000  # bytes of workgroup memory


@dataclass(frozen=True)
class Sizes:
    """Tokens of a chunk, widths of a head's keys, with zeros, and values."""

    chunk: int
    key: int
    value: int

    @classmethod
    def of(cls, chunk: int, heads: DeltaHeads) -> Sizes:
        return cls(chunk, -(-heads.key_size // 4) * 4, heads.value_size)

    @property
    def columns(self) -> int:
        """Columns of a state that a workgroup walks with, by fours."""
        room = ROOM // (4 * (self.key + 3 * self.chunk))
        return 16 if room >= 16 else 8 if room >= 8 else 4

    @property
    def name(self) -> str:
        return f"{self.key}x{self.value}, chunks of {self.chunk}"


@functools.cache
def units() -> Kernel:
    """y = x over its length, which counts as eps at least, for heads of queries and keys; r = 1 / that."""
    return Kernel(
        "delta, units",
        (*reads("x"), *writes("y", "r")),
        ("size", "wide", "xs", "ys", "rs", "eps:f32"),
        f"""
  let at = group.y * p.xs + group.x * p.size;
  let to = group.y * p.ys + group.x * p.wide;
  var sum = 0.0;
  for (var i = lane; i < p.size; i += {LANES}u) {{ sum = fma(x[at + i], x[at + i], sum); }}
  let inverse = 1.0 / max(sqrt(total_sums(sum, lane)), p.eps);
  for (var i = lane; i < p.size; i += {LANES}u) {{ y[to + i] = x[at + i] * inverse; }}
  if (lane < p.wide - p.size) {{ y[to + p.size + lane] = 0.0; }}
  if (lane == 0u) {{ r[group.y * p.rs + group.x] = inverse; }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )


SOFT = """
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }
fn softplus(x: f32) -> f32 { return max(x, 0.0) + log(1.0 + exp(-abs(x))); }"""


@functools.cache
def gates() -> Kernel:
    """gates of each token and head.  grid: one invocation per element."""
    return Kernel(
        "delta, gates",
        (*reads("beta", "alpha", "a", "bias"), *writes("gates")),
        ("n", "bs", "as_", "a0", "bias0", "gs"),
        element()
        + """
  gates[t * p.gs + i] = a[p.a0 + i] * softplus(alpha[t * p.as_ + i] + bias[p.bias0 + i]);
  gates[t * p.gs + p.n + i] = sigmoid(beta[t * p.bs + i]);""",
        functions=SOFT,
    )


@functools.cache
def norm() -> Kernel:
    """y = y / sqrt(mean y² + eps) * gain, over each head."""
    return Kernel(
        "delta, norm",
        (*reads("gain"), *writes("y")),
        ("size", "ys", "g0", "eps:f32"),
        f"""
  let at = group.y * p.ys + group.x * p.size;
  var sum = 0.0;
  for (var i = lane; i < p.size; i += {LANES}u) {{ sum = fma(y[at + i], y[at + i], sum); }}
  let r = 1.0 / sqrt(total_sums(sum, lane) / f32(p.size) + p.eps);
  for (var i = lane; i < p.size; i += {LANES}u) {{ y[at + i] *= r * gain[p.g0 + i]; }}
""",
        (LANES, 1),
        functions=total(size=LANES),
    )


@functools.cache
def cached(s: Sizes) -> Kernel:
    """Results before their norm of new rows, token by token from their slots' states, for slots low…high.

    grid: (columns / s.columns, values, rows): the workgroup of a span's first row takes the whole span.
    """
    b = s.columns
    own = f"for (var d = lane / {b}u; d < p.deep; d += {256 // b}u)"
    at = f"(place.x - p.low) * p.size + (head * p.deep + d) * {s.value}u + column"
    return Kernel(
        f"delta_cached, {s.name}",
        (*reads("x", "units", "gates"), *reads("slot", "position", of="u32"), *writes("cache", "out")),
        (
            *("keys", "values", "deep", "rows", "size", "slot0", "position0", "low", "high", "base"),
            *("xs", "us", "gs", "os", "scale:f32"),
        ),
        f"""
  let head = group.y;
  if (lane == 0u) {{
    let s = slot[p.slot0 + group.z];
    var end = group.z;
    var mine = s >= p.low && s < p.high;
    if (group.z > 0u) {{ mine = mine && slot[p.slot0 + group.z - 1u] != s; }}
    while (mine && end < p.rows) {{
      if (slot[p.slot0 + end] != s) {{ break; }}
      end++;
    }}
    spans = vec2<u32>(s, end);
  }}
  let place = workgroupUniformLoad(&spans);
  if (place.y == group.z) {{ return; }}
  let to = lane % {b}u;
  let column = min(group.x * {b}u + to, {s.value - 1}u);
  let fresh = position[p.position0 + group.z] == 0u;
  {own} {{
    if (fresh) {{ state[d * {b}u + to] = 0.0; }} else {{ state[d * {b}u + to] = cache[p.base + {at}]; }}
  }}
  for (var t = group.z; t < place.y; t++) {{
    let q = t * p.us + head % p.keys * {s.key}u;
    let k = q + p.keys * {s.key}u;
    let decay = exp(gates[t * p.gs + head]);
    var sum = 0.0;
    {own} {{
      state[d * {b}u + to] *= decay;
      sum = fma(units[k + d], state[d * {b}u + to], sum);
    }}
    let v = x[t * p.xs + 2u * p.keys * p.deep + head * {s.value}u + column];
    let write = gates[t * p.gs + p.values + head] * (v - strided_total(sum, lane));
    sum = 0.0;
    {own} {{
      state[d * {b}u + to] = fma(units[k + d], write, state[d * {b}u + to]);
      sum = fma(units[q + d], state[d * {b}u + to], sum);
    }}
    sum = strided_total(sum, lane);
    if (lane < {b}u && group.x * {b}u + to < {s.value}u) {{
      out[t * p.os + head * {s.value}u + column] = p.scale * sum;
    }}
  }}
  if (group.x * {b}u + to < {s.value}u) {{
    {own} {{ cache[p.base + {at}] = state[d * {b}u + to]; }}
  }}
""",
        shared=f"var<workgroup> state: array<f32, {s.key * b}>;\nvar<workgroup> spans: vec2<u32>;",
        functions=strided_total(b),
    )
