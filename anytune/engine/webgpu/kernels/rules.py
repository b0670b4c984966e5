"""The rules of optimizers of whole weights; engine/optimizers.py has their formulas.

hyper: the numbers of a step, at the places of HYPER; scalars: [the sum of Adafactor's row means, what its update is
multiplied with]. 8-bit codes lie four to a word; codes: the 256 signed values and the 255 middles between them, then
those without a sign.
"""

from __future__ import annotations

import functools

from anytune.engine.optimizers import BLOCK, TINY, THRESHOLD

from ..kernel import Kernel, reads, total, writes

# factor of the gradients; 1 - lr * decay; lr; AdamW: lr / (1 - beta1^step), 1 / sqrt(1 - beta2^step), the betas and
# what they lack of 1, epsilon; Adafactor: its beta2 and what that lacks of 1
HYPER = ("factor", "shrink", "lr", "rate", "unroot", "beta1", "gain1", "beta2", "gain2", "eps", "keep", "gain")
PIECE = 8192  # elements of a workgroup that also sums them
ROWS = 1024  # rows that a partial sum of columns takes
WIDE = 32768  # workgroups in a row


def _named(body: str) -> str:
    """$name -> its place in hyper."""
    for place, name in sorted(enumerate(HYPER), key=lambda row: -len(row[1])):
        body = body.replace(f"${name}", f"hyper[{place}]")
    return body


@functools.cache
def adamw() -> Kernel:
    """One step on n elements; zeroes g."""
    return Kernel(
        "adamw, a tensor",
        (*writes("w", "g", "first", "second"), *reads("hyper")),
        ("n", "w0", "g0", "m0", "v0"),
        _named("""
  let i = thread.x + thread.y * 8388608u;
  if (i >= p.n) { return; }
  let slope = g[p.g0 + i] * $factor;
  g[p.g0 + i] = 0.0;
  let m = $beta1 * first[p.m0 + i] + $gain1 * slope;
  let v = $beta2 * second[p.v0 + i] + $gain2 * slope * slope;
  first[p.m0 + i] = m;
  second[p.v0 + i] = v;
  w[p.w0 + i] = w[p.w0 + i] * $shrink - $rate * m / (sqrt(v) * $unroot + $eps);
"""),
    )


def _encoded(name: str, value: str, table: int) -> str:
    """The lane's value as a code, and its block's scale."""
    return f"""
  let {name}_most = total_sums(select(0.0, abs({value}), inside), lane);
  codes_of_block[lane] = nearest({value} / select(1.0, {name}_most, {name}_most > 0.0), {table + 256}u);
  workgroupBarrier();
  if (lane < {BLOCK // 4}u && block * {BLOCK}u + lane * 4u < p.n) {{
    {name}[block * {BLOCK // 4}u + lane] = codes_of_block[lane * 4u] | (codes_of_block[lane * 4u + 1u] << 8u)
      | (codes_of_block[lane * 4u + 2u] << 16u) | (codes_of_block[lane * 4u + 3u] << 24u);
  }}
  if (lane == 0u) {{ {name}_scale[p.s0 + block] = {name}_most; }}
  workgroupBarrier();"""


@functools.cache
def adamw8bit() -> Kernel:
    """As adamw(), moments in blocks of codes, a workgroup each; of the second its root. Bindings begin with blocks."""
    return Kernel(
        "adamw, 8 bits",
        (
            *writes("w", "g"),
            *writes("first", of="u32"),
            *writes("first_scale"),
            *writes("root", of="u32"),
            *writes("root_scale"),
            *reads("hyper", "codes"),
        ),
        ("n", "w0", "g0", "s0"),
        _named(
            f"""
  let block = group.x + group.y * {WIDE}u;
  if (block * {BLOCK}u >= p.n) {{ return; }}
  let i = block * {BLOCK}u + lane;
  let inside = i < p.n;
  let at = min(i, p.n - 1u);
  let shift = (at & 3u) * 8u;
  let slope = g[p.g0 + at] * $factor;
  let old = codes[512u + ((root[at >> 2u] >> shift) & 255u)] * root_scale[p.s0 + block];
  let m = $beta1 * codes[(first[at >> 2u] >> shift) & 255u] * first_scale[p.s0 + block] + $gain1 * slope;
  let v = $beta2 * old * old + $gain2 * slope * slope;
  let deviation = sqrt(v);
  storageBarrier();
  workgroupBarrier();
  if (inside) {{
    g[p.g0 + i] = 0.0;
    w[p.w0 + i] = w[p.w0 + i] * $shrink - $rate * m / (deviation * $unroot + $eps);
  }}"""
            + _encoded("first", "m", 0)
            + _encoded("root", "deviation", 512)
        ),
        shared=f"var<workgroup> codes_of_block: array<u32, {BLOCK}>;",
        functions=total("max")
        + """
fn nearest(x: f32, middles: u32) -> u32 {
  var below = 0u;
  for (var step = 128u; step > 0u; step = step >> 1u) {
    if (codes[middles + below + step - 1u] < x) { below += step; }
  }
  return below;
}""",
    )


@functools.cache
def row_means() -> Kernel:
    """Adafactor's mean of squares for each of `rows` rows of g, a workgroup each."""
    return Kernel(
        "adafactor, rows",
        (*reads("g", "hyper"), *writes("row")),
        ("rows", "n", "g0", "row0"),
        _named(f"""
  let r = group.x + group.y * {WIDE}u;
  if (r >= p.rows) {{ return; }}
  var sum = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{
    let slope = g[p.g0 + r * p.n + i] * $factor;
    sum = fma(slope, slope, sum);
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ row[p.row0 + r] = $keep * row[p.row0 + r] + $gain * (all / f32(p.n) + {TINY}); }}
"""),
        functions=total(),
    )


@functools.cache
def column_means() -> Kernel:
    """Adafactor's mean of squares for each column, from `slices` partial sums over all `rows` rows."""
    return Kernel(
        "adafactor, columns",
        (*reads("partial", "hyper"), *writes("column")),
        ("n", "slices", "rows"),
        _named(f"""
  let i = thread.x;
  if (i >= p.n) {{ return; }}
  var sum = 0.0;
  for (var s = 0u; s < p.slices; s++) {{ sum += partial[s * p.n + i]; }}
  column[i] = $keep * column[i] + $gain * (sum / f32(p.rows) + {TINY});
"""),
    )


def _updates(name: str, arrays: tuple, numbers: tuple[str, ...], update: str) -> Kernel:
    """g becomes the update of PIECE elements a workgroup, partial[i] the sum of its squares."""
    return Kernel(
        f"adafactor, updates of a {name}",
        (*writes("g"), *arrays, *reads("hyper"), *writes("partial")),
        ("n", "g0", "to", *numbers),
        _named(f"""
  var sum = 0.0;
  let end = min(p.n, (group.x + 1u) * {PIECE}u);
  for (var i = group.x * {PIECE}u + lane; i < end; i += 256u) {{
    let slope = g[p.g0 + i] * $factor;{update}
    g[p.g0 + i] = update;
    sum = fma(update, update, sum);
  }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ partial[p.to + group.x] = all; }}
"""),
        functions=total(),
    )


@functools.cache
def matrix_updates() -> Kernel:
    """Of rows that begin where g and row are bound; scalars[0] / rows is the mean of row."""
    return _updates(
        "matrix",
        reads("row", "column", "scalars"),
        ("columns", "row0", "rows"),
        """
    let share = row[p.row0 + i / p.columns] / (scalars[0] / f32(p.rows));
    let update = slope / sqrt(share) / sqrt(column[i % p.columns]);""",
    )


@functools.cache
def vector_updates() -> Kernel:
    return _updates(
        "vector",
        writes("square"),
        ("v0",),
        f"""
    let v = $keep * square[p.v0 + i] + $gain * (slope * slope + {TINY});
    square[p.v0 + i] = v;
    let update = slope / sqrt(v);""",
    )


@functools.cache
def clip_updates() -> Kernel:
    """scalars[1] from the partial sums of `size` updates' squares: their RMS is at most THRESHOLD."""
    return Kernel(
        "adafactor, update clipping",
        (*reads("partial"), *writes("scalars")),
        ("n", "size"),
        f"""
  var sum = 0.0;
  for (var i = lane; i < p.n; i += 256u) {{ sum += partial[i]; }}
  let all = total_sums(sum, lane);
  if (lane == 0u) {{ scalars[1] = 1.0 / max(1.0, sqrt(all / f32(p.size)) / {THRESHOLD}); }}
""",
        functions=total(),
    )


@functools.cache
def apply() -> Kernel:
    """w from the updates in g; zeroes g."""
    return Kernel(
        "adafactor, step",
        (*writes("w", "g"), *reads("hyper", "scalars")),
        ("n", "w0", "g0"),
        _named("""
  let i = thread.x + thread.y * 8388608u;
  if (i >= p.n) { return; }
  w[p.w0 + i] = w[p.w0 + i] * $shrink - $lr * scalars[1] * g[p.g0 + i];
  g[p.g0 + i] = 0.0;
"""),
    )
