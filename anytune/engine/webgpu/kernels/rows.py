"""Row by row: norms, rotations, gated products, sums, and rows taken and put.

Strides (xs, ys, …) are elements from row to row. A workgroup takes a row (or a head of a row), or invocations an
element each, with x along the columns and y along the rows.
"""

from __future__ import annotations

import functools

from ..kernel import CAPPED, Kernel, element, reads, total, writes

HEADS = 64  # invocations for a head of a row
GAIN = """
fn gain(i: u32, head: u32) -> f32 {
  if (head < p.queries) { return gain_q[i]; }
  return gain_k[i];
}"""
SILU = """
fn activate(x: f32) -> f32 { return x / (1.0 + exp(-x)); }
fn slope(x: f32) -> f32 { let s = 1.0 / (1.0 + exp(-x)); return s * (1.0 + x * (1.0 - s)); }"""
# tanh by exp: some drivers' own gives NaN for large arguments
GELU = """
fn inner(x: f32) -> f32 { return 1.0 - 2.0 / (exp(2.0 * 0.7978845608028654 * (x + 0.044715 * x * x * x)) + 1.0); }
fn activate(x: f32) -> f32 { return 0.5 * x * (1.0 + inner(x)); }
fn slope(x: f32) -> f32 {
  let t = inner(x);
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x);
}"""
SIGMOID = """
fn activate(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }
fn slope(x: f32) -> f32 { let s = activate(x); return s * (1.0 - s); }"""
NONE = """
fn activate(x: f32) -> f32 { return x; }
fn slope(x: f32) -> f32 { return 1.0; }"""
# gpt-oss's: gate at most 7, up between -7 and 7, plus 1; what is clamped gets no gradient
CLAMPED = """
fn activate(x: f32) -> f32 { let g = min(x, 7.0); return g / (1.0 + exp(-1.702 * g)); }
fn slope(x: f32) -> f32 {
  let s = 1.0 / (1.0 + exp(-1.702 * x));
  return select(0.0, s * (1.0 + 1.702 * x * (1.0 - s)), x <= 7.0);
}
fn factor(u: f32) -> f32 { return clamp(u, -7.0, 7.0) + 1.0; }
fn factor_slope(u: f32) -> f32 { return select(0.0, 1.0, abs(u) <= 7.0); }"""
UP = """
fn factor(u: f32) -> f32 { return u; }
fn factor_slope(u: f32) -> f32 { return 1.0; }"""
ACTIVATIONS = {"silu": SILU + UP, "gelu": GELU + UP, "sigmoid": SIGMOID + UP, "none": NONE + UP, "clamped": CLAMPED}


@functools.cache
def rms_norm(adds: bool) -> Kernel:
    """y = x / sqrt(mean x² + eps) * gain over each row; adds: x += more first."""
    sum_ = (
        """
    x[at + i] += more[group.x * p.ms + i];"""
        if adds
        else ""
    )
    return Kernel(
        "rms_norm" + " of a sum" * adds,
        (*(writes("x") if adds else reads("x")), *reads("gain", *(["more"] if adds else [])), *writes("y")),
        ("n", "xs", "ys", "eps:f32", *(["ms"] if adds else [])),
        f"""
  let at = group.x * p.xs;
  var square = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{{sum_}
    square = fma(x[at + i], x[at + i], square);
  }}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.n) + p.eps);
  for (var i = lane; i < p.n; i += 256u) {{ y[group.x * p.ys + i] = x[at + i] * r * gain[i]; }}
""",
        functions=total(),
    )


@functools.cache
def rms_norm_backward(adds: bool) -> Kernel:
    """dx = r (dy gain - x mean(dy gain x) r²), r = 1 / sqrt(mean x² + eps); adds: plus a residual."""
    plus = " + residual[group.x * p.rs + i]" if adds else ""
    return Kernel(
        "rms_norm_backward" + " with a residual" * adds,
        (*reads("dy", "x", "gain", *(["residual"] if adds else [])), *writes("dx")),
        ("n", "ds", "xs", "ys", "eps:f32", *(["rs"] if adds else [])),
        f"""
  var square = 0.0;
  var through = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{
    let v = x[group.x * p.xs + i];
    square = fma(v, v, square);
    through = fma(dy[group.x * p.ds + i] * gain[i], v, through);
  }}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.n) + p.eps);
  let back = total_sums(through, lane) * r * r / f32(p.n);
  for (var i = lane; i < p.n; i += 256u) {{
    dx[group.x * p.ys + i] = r * (dy[group.x * p.ds + i] * gain[i] - x[group.x * p.xs + i] * back){plus};
  }}
""",
        functions=total(),
    )


# each invocation meets the same elements in every loop, so it may read back what it wrote
_PAIRS = """
  for (var i = lane; i < p.pairs + rest; i += HEADSu) {
    let turns = i < p.pairs;
    let a = select(i + p.pairs, FIRST, turns);
    let b = select(a, SECOND, turns);
    INNER
  }"""


def _pairs(neox: bool, inner: str) -> str:
    first, second = ("i", "i + p.pairs") if neox else ("2u * i", "2u * i + 1u")
    return _PAIRS.replace("HEADS", str(HEADS)).replace("FIRST", first).replace("SECOND", second).replace("INNER", inner)


@functools.cache
def qk_norm_rope(normed: bool, neox: bool) -> Kernel:
    """A head of a token: normed (RMSNorm with a gain) or not, then its pairs turned by the token's angle, in place if
    it is not normed. Heads up to `queries` are queries, keys may follow them."""
    start = """
  let at = group.y * p.xs + group.x * p.size;
  let to = group.y * p.ys + group.x * p.size;
  let rest = p.size - 2u * p.pairs;
  let angle = position[p.token0 + group.y] * p.pairs;"""
    value = "(x[at + {0}] * r * gain({0}, group.x))" if normed else "x[at + {0}]"
    if normed:
        square = _pairs(
            neox,
            """square = fma(x[at + a], x[at + a], square);
    if (turns) { square = fma(x[at + b], x[at + b], square); }""",
        )
        start += f"""
  var square = 0.0;{square}
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.size) + p.eps);"""
    turn = _pairs(
        neox,
        f"""let u = {value.format("a")};
    if (turns) {{
      let v = {value.format("b")};
      let c = cosine[angle + i];
      let s = sine[angle + i];
      y[to + a] = u * c - v * s;
      y[to + b] = u * s + v * c;
    }} else {{ y[to + a] = u; }}""",
    )
    if not normed:
        start, turn = start.replace("  let to = group.y * p.ys + group.x * p.size;\n", ""), turn.replace("y[to", "x[at")
    arrays = (
        (*reads("x", "gain_q", "gain_k", "cosine", "sine"), *reads("position", of="u32"), *writes("y"))
        if normed
        else (*writes("x"), *reads("cosine", "sine"), *reads("position", of="u32"))
    )
    return Kernel(
        f"qk_norm_rope, {'neox' if neox else 'interleaved'}{', normed' * normed}",
        arrays,
        ("size", "pairs", "xs", "ys", "eps:f32", "queries", "token0"),
        start + turn,
        (HEADS, 1),
        functions=total(size=HEADS) + GAIN if normed else "",
    )


@functools.cache
def qk_norm_rope_backward(normed: bool, neox: bool) -> Kernel:
    """dx over dy: turned back, then through the head's norm."""
    back = """let c = cosine[angle + i];
      let s = sine[angle + i];
      let u = dx[at + a];
      let v = dx[at + b];
      dx[at + a] = u * c + v * s;
      dx[at + b] = v * c - u * s;"""
    start = """
  let at = group.y * p.ds + group.x * p.size;
  let rest = p.size - 2u * p.pairs;
  let angle = position[p.token0 + group.y] * p.pairs;"""
    if not normed:
        body = start + _pairs(neox, f"if (turns) {{\n      {back}\n    }}")
        return Kernel(
            f"qk_norm_rope_backward, {'neox' if neox else 'interleaved'}",
            (*writes("dx"), *reads("cosine", "sine"), *reads("position", of="u32")),
            ("size", "pairs", "ds", "xs", "eps:f32", "queries", "token0"),
            body,
            (HEADS, 1),
        )
    sums = """square = fma(x[from_ + {0}], x[from_ + {0}], square);
      through = fma(dx[at + {0}] * gain({0}, group.x), x[from_ + {0}], through);"""
    norm = "dx[at + {0}] = r * (dx[at + {0}] * gain({0}, group.x) - x[from_ + {0}] * mean);"
    body = (
        start
        + """
  let from_ = group.y * p.xs + group.x * p.size;
  var square = 0.0;
  var through = 0.0;"""
        + _pairs(
            neox,
            f"""if (turns) {{
      {back}
      {sums.format("b")}
    }}
    {sums.format("a")}""",
        )
        + """
  let r = 1.0 / sqrt(total_sums(square, lane) / f32(p.size) + p.eps);
  let mean = total_sums(through, lane) * r * r / f32(p.size);"""
        + _pairs(
            neox,
            f"""{norm.format("a")}
    if (turns) {{ {norm.format("b")} }}""",
        )
    )
    return Kernel(
        f"qk_norm_rope_backward, {'neox' if neox else 'interleaved'}, normed",
        (*writes("dx"), *reads("x", "gain_q", "gain_k", "cosine", "sine"), *reads("position", of="u32")),
        ("size", "pairs", "ds", "xs", "eps:f32", "queries", "token0"),
        body,
        (HEADS, 1),
        functions=total(size=HEADS) + GAIN,
    )


@functools.cache
def glu(activation: str) -> Kernel:
    """y = act(gate) * up; CLAMPED has a factor of its own."""
    return Kernel(
        f"glu, {activation}",
        (*reads("gate", "up"), *writes("y")),
        ("n", "gs", "us", "ys"),
        element()
        + """
  y[t * p.ys + i] = activate(gate[t * p.gs + i]) * factor(up[t * p.us + i]);""",
        functions=ACTIVATIONS[activation],
    )


@functools.cache
def glu_backward(activation: str) -> Kernel:
    """dgate = dy up act'(gate), dup = dy act(gate)."""
    return Kernel(
        f"glu_backward, {activation}",
        (*reads("dy", "gate", "up"), *writes("dgate", "dup")),
        ("n", "ds", "gs", "us", "dgs", "dus"),
        element()
        + """
  let g = gate[t * p.gs + i];
  let u = up[t * p.us + i];
  let d = dy[t * p.ds + i];
  dgate[t * p.dgs + i] = d * factor(u) * slope(g);
  dup[t * p.dus + i] = d * activate(g) * factor_slope(u);""",
        functions=ACTIVATIONS[activation],
    )


@functools.cache
def glu_backward_over(activation: str) -> Kernel:
    """As glu_backward, over gate and up."""
    return Kernel(
        f"glu_backward over, {activation}",
        (*reads("dy"), *writes("gate", "up")),
        ("n", "ds", "gs", "us"),
        element()
        + """
  let g = gate[t * p.gs + i];
  let u = up[t * p.us + i];
  let d = dy[t * p.ds + i];
  gate[t * p.gs + i] = d * factor(u) * slope(g);
  up[t * p.us + i] = d * activate(g) * factor_slope(u);""",
        functions=ACTIVATIONS[activation],
    )


@functools.cache
def cap() -> Kernel:
    """y = cap * tanh(y / cap), in place."""
    return Kernel(
        "cap",
        writes("y"),
        ("n", "ys", "cap:f32"),
        element()
        + """
  y[t * p.ys + i] = capped(y[t * p.ys + i], p.cap);""",
        functions=CAPPED,
    )


@functools.cache
def scale(each: bool) -> Kernel:
    """y = x * f; each: of the row, else one number."""
    return Kernel(
        "scale" + " rows" * each,
        (*reads("x", *(["f"] if each else [])), *writes("y")),
        ("n", "xs", "ys", "fs" if each else "f:f32"),
        element()
        + f"""
  y[t * p.ys + i] = x[t * p.xs + i] * {"f[t * p.fs]" if each else "p.f"};""",
    )


@functools.cache
def add() -> Kernel:
    """y = x + y."""
    return Kernel(
        "add",
        (*reads("x"), *writes("y")),
        ("n", "xs", "ys"),
        element()
        + """
  y[t * p.ys + i] += x[t * p.xs + i];""",
    )


@functools.cache
def gather() -> Kernel:
    """y[t] = x[row[t]] for rows low…high of x, which begin at x; a number behind the last row takes the last."""
    return Kernel(
        "gather",
        (*reads("x"), *reads("row", of="u32"), *writes("y")),
        ("n", "xs", "ys", "x0", "row0", "low", "high", "last"),
        element()
        + """
  let from_ = min(row[p.row0 + t], p.last);
  if (from_ >= p.low && from_ < p.high) { y[t * p.ys + i] = x[p.x0 + (from_ - p.low) * p.xs + i]; }""",
    )


@functools.cache
def fill() -> Kernel:
    """y = a value."""
    return Kernel(
        "fill",
        writes("y"),
        ("n", "ys", "y0", "value:f32"),
        element()
        + """
  y[p.y0 + t * p.ys + i] = p.value;""",
    )


@functools.cache
def scatter() -> Kernel:
    """y[row[t]] = x[t] for rows low…high of y."""
    return Kernel(
        "scatter",
        (*reads("x"), *reads("row", of="u32"), *writes("y")),
        ("n", "xs", "ys", "row0", "low", "high"),
        element()
        + """
  let to = row[p.row0 + t];
  if (to >= p.low && to < p.high) { y[(to - p.low) * p.ys + i] = x[t * p.xs + i]; }""",
    )


@functools.cache
def copy() -> Kernel:
    """y = x, from and to any column."""
    return Kernel(
        "copy",
        (*reads("x"), *writes("y")),
        ("n", "xs", "ys", "x0", "y0"),
        element()
        + """
  y[p.y0 + t * p.ys + i] = x[p.x0 + t * p.xs + i];""",
    )


@functools.cache
def dropout(adds: bool) -> Kernel:
    """y = x with a mask that (key, number, element) decides, and 1 / (1 - rate); adds: y += that."""
    return Kernel(
        "dropout" + ", added" * adds,
        (*reads("x"), *reads("key", of="u32"), *writes("y")),
        ("n", "xs", "ys", "key0", "number:i32", "t0", "rate:f32"),
        element()
        + f"""
  var h = mix(key[p.key0] ^ 0x9e3779b9u);
  h = mix(h ^ key[p.key0 + 1u]);
  h = mix(h ^ key[p.key0 + 2u]);
  h = mix(h ^ bitcast<u32>(p.number));
  h = mix(h ^ (t + p.t0));
  h = mix(h ^ i);
  let kept = f32(h >> 8u) * (1.0 / 16777216.0) >= p.rate;
  y[t * p.ys + i] {"+=" if adds else "="} select(0.0, x[t * p.xs + i] / (1.0 - p.rate), kept);""",
        functions="""
fn mix(a: u32) -> u32 {
  var h = a;
  h = (h ^ (h >> 16u)) * 0x7feb352du;
  h = (h ^ (h >> 15u)) * 0x846ca68bu;
  return h ^ (h >> 16u);
}""",
    )
