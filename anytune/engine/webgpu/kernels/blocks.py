"""Four weights of a GGUF block at a time, in WGSL: the twin of anytune.gguf.blocks, formula for formula.

A kernel that reads weights binds the file's bytes as `w: array<u32>` and includes `blocks(type)`, which gives it
weight4(row, column): row * p.w_row + p.w_base is where the row's bytes begin, and column is a multiple of four.
Blocks have odd sizes, so words are read in pairs and shifted together.
"""

from __future__ import annotations

import functools

import numpy as np

from anytune.gguf.blocks import BLOCKS, CODES_FP4, CODES_IQ4

NUMBERS = ("w_base", "w_row")  # bytes

_BYTES = """
fn byte1(at: u32) -> u32 { return (w[at >> 2u] >> ((at & 3u) * 8u)) & 255u; }
fn byte2(at: u32) -> u32 {
  let s = (at & 3u) * 8u;
  let low = w[at >> 2u] >> s;
  if (s == 24u) { return (low | (w[(at >> 2u) + 1u] << 8u)) & 65535u; }
  return low & 65535u;
}
fn byte4(at: u32) -> u32 {
  let s = (at & 3u) * 8u;
  return (w[at >> 2u] >> s) | ((w[(at >> 2u) + 1u] << 1u) << (31u - s));
}
fn half(at: u32) -> f32 { return unpack2x16float(byte2(at)).x; }
fn each(b: u32) -> vec4<f32> {
  return vec4<f32>(f32(b & 255u), f32((b >> 8u) & 255u), f32((b >> 16u) & 255u), f32(b >> 24u));
}
fn signed(b: u32) -> vec4<f32> {
  let i = bitcast<i32>(b);
  return vec4<f32>(f32((i << 24u) >> 24u), f32((i << 16u) >> 24u), f32((i << 8u) >> 24u), f32(i >> 24u));
}
fn signed1(b: u32) -> f32 { return f32(bitcast<i32>(b << 24u) >> 24u); }
fn bits(b: u32, c: u32) -> u32 {
  let f = b >> c;
  return (f & 1u) | ((f & 2u) << 7u) | ((f & 4u) << 14u) | ((f & 8u) << 21u);
}"""

_TABLE = """
const codes = array<f32, 16>({});
fn coded(b: u32) -> vec4<f32> {{
  return vec4<f32>(codes[b & 15u], codes[(b >> 8u) & 15u], codes[(b >> 16u) & 15u], codes[(b >> 24u) & 15u]);
}}"""


def _table(values: np.ndarray) -> str:
    return _TABLE.format(", ".join(f"{float(v)}" for v in values))


# in a body: row_at is the byte where the row begins, b where the block does, c the place of the first weight in its
# block
_SIX = """
fn scale6(b: u32, j: u32) -> f32 {
  if (j < 4u) { return f32(byte1(b + j) & 63u); }
  return f32((byte1(b + 4u + j) & 15u) | ((byte1(b + j - 4u) >> 6u) << 4u));
}
fn min6(b: u32, j: u32) -> f32 {
  if (j < 4u) { return f32(byte1(b + 4u + j) & 63u); }
  return f32((byte1(b + 4u + j) >> 4u) | ((byte1(b + j) >> 6u) << 4u));
}"""
_NIBBLES = "(byte4(b + {0}u + (c & 15u)) >> ((c >> 4u) * 4u)) & 0x0f0f0f0fu"
_PLAIN = {
    "F32": """
  let at = row_at + column * 4u;
  return vec4<f32>(bitcast<f32>(byte4(at)), bitcast<f32>(byte4(at + 4u)), bitcast<f32>(byte4(at + 8u)),
                   bitcast<f32>(byte4(at + 12u)));""",
    "F16": """
  let at = row_at + column * 2u;
  return vec4<f32>(unpack2x16float(byte4(at)), unpack2x16float(byte4(at + 4u)));""",
    "BF16": """
  let at = row_at + column * 2u;
  let a = byte4(at);
  let b = byte4(at + 4u);
  return vec4<f32>(bitcast<f32>(a << 16u), bitcast<f32>(a & 0xffff0000u), bitcast<f32>(b << 16u),
                   bitcast<f32>(b & 0xffff0000u));""",
}
_BODIES = {
    "Q1_0": ("", "return half(b) * (2.0 * each(bits(byte1(b + 2u + (c >> 3u)), c & 7u)) - 1.0);"),
    "Q2_0": (
        "",
        """
  let q = byte1(b + 2u + (c >> 2u));
  let pairs = (q | (q << 12u)) & 0x000f000fu;
  return half(b) * (each((pairs | (pairs << 6u)) & 0x03030303u) - 1.0);""",
    ),
    "Q4_0": ("", f"return half(b) * (each({_NIBBLES.format(2)}) - 8.0);"),
    "Q4_1": ("", f"return half(b) * each({_NIBBLES.format(4)}) + half(b + 2u);"),
    "Q5_0": ("", f"return half(b) * (each(({_NIBBLES.format(6)}) | (bits(byte4(b + 2u), c) << 4u)) - 16.0);"),
    "Q5_1": ("", f"return half(b) * each(({_NIBBLES.format(8)}) | (bits(byte4(b + 4u), c) << 4u)) + half(b + 2u);"),
    "Q8_0": ("", "return signed(byte4(b + 2u + c)) * half(b);"),
    "Q2_K": (
        "",
        """
  let q = each((byte4(b + 16u + (c >> 7u) * 32u + (c & 31u)) >> (((c >> 5u) & 3u) * 2u)) & 0x03030303u);
  let s = byte1(b + (c >> 4u));
  return (half(b + 80u) * f32(s & 15u)) * q - half(b + 82u) * f32(s >> 4u);""",
    ),
    "Q3_K": (
        "",
        """
  let low = (byte4(b + 32u + (c >> 7u) * 32u + (c & 31u)) >> (((c >> 5u) & 3u) * 2u)) & 0x03030303u;
  let high = (byte4(b + (c & 31u)) >> (c >> 5u)) & 0x01010101u;
  let s = c >> 4u;
  let scale = ((byte1(b + 96u + (s & 7u)) >> ((s >> 3u) * 4u)) & 15u)
    | (((byte1(b + 104u + (s & 3u)) >> ((s >> 2u) * 2u)) & 3u) << 4u);
  return (half(b + 108u) * (f32(scale) - 32.0)) * (each(low | (high << 2u)) - 4.0);""",
    ),
    "Q4_K": (
        _SIX,
        """
  let q = each((byte4(b + 16u + (c >> 6u) * 32u + (c & 31u)) >> (((c >> 5u) & 1u) * 4u)) & 0x0f0f0f0fu);
  return (half(b) * scale6(b + 4u, c >> 5u)) * q - half(b + 2u) * min6(b + 4u, c >> 5u);""",
    ),
    "Q5_K": (
        _SIX,
        """
  let low = (byte4(b + 48u + (c >> 6u) * 32u + (c & 31u)) >> (((c >> 5u) & 1u) * 4u)) & 0x0f0f0f0fu;
  let high = (byte4(b + 16u + (c & 31u)) >> (c >> 5u)) & 0x01010101u;
  return (half(b) * scale6(b + 4u, c >> 5u)) * each(low | (high << 4u)) - half(b + 2u) * min6(b + 4u, c >> 5u);""",
    ),
    "Q6_K": (
        "",
        """
  let low = (byte4(b + (c >> 7u) * 64u + (c & 63u)) >> (((c >> 6u) & 1u) * 4u)) & 0x0f0f0f0fu;
  let high = (byte4(b + 128u + (c >> 7u) * 32u + (c & 31u)) >> (((c >> 5u) & 3u) * 2u)) & 0x03030303u;
  return (half(b + 208u) * signed1(byte1(b + 192u + (c >> 4u)))) * (each(low | (high << 4u)) - 32.0);""",
    ),
    "IQ4_NL": (_table(CODES_IQ4), f"return half(b) * coded({_NIBBLES.format(2)});"),
    "IQ4_XS": (
        _table(CODES_IQ4),
        """
  let s = c >> 5u;
  let scale = ((byte1(b + 4u + (s >> 1u)) >> ((s & 1u) * 4u)) & 15u)
    | (((byte1(b + 2u + (s >> 2u)) >> ((s & 3u) * 2u)) & 3u) << 4u);
  return (half(b) * (f32(scale) - 32.0))
    * coded((byte4(b + 8u + s * 16u + (c & 15u)) >> (((c >> 4u) & 1u) * 4u)) & 0x0f0f0f0fu);""",
    ),
    "MXFP4": (
        _table(CODES_FP4),
        f"""
  let e = byte1(b);   // a power of two, halved since the codes are doubled
  let d = bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << e, e < 2u));
  return d * coded({_NIBBLES.format(1)});""",
    ),
    "TQ1_0": (
        """
fn digit(packed: vec4<u32>, n: u32) -> vec4<f32> {
  var power = 1u;
  for (var i = 0u; i < n; i++) { power *= 3u; }
  return vec4<f32>((((packed * power) & vec4<u32>(255u)) * 3u) >> vec4<u32>(8u)) - 1.0;
}
fn apart(b: u32) -> vec4<u32> { return vec4<u32>(b & 255u, (b >> 8u) & 255u, (b >> 16u) & 255u, b >> 24u); }""",
        """
  let d = half(b + 52u);
  if (c < 160u) { return d * digit(apart(byte4(b + (c & 31u))), c >> 5u); }
  if (c < 240u) { return d * digit(apart(byte4(b + 32u + (c & 15u))), (c - 160u) >> 4u); }
  return d * digit(apart(byte4(b + 48u)), (c - 240u) >> 2u);""",
    ),
    "TQ2_0": (
        "",
        """
  let q = each((byte4(b + (c >> 7u) * 32u + (c & 31u)) >> (((c >> 5u) & 3u) * 2u)) & 0x03030303u);
  return half(b + 64u) * (q - 1.0);""",
    ),
}
TYPES = (*_PLAIN, *_BODIES)


@functools.cache
def blocks(name: str) -> str:
    """WGSL functions for one block type, weight4 among them."""
    if name in _PLAIN:
        extra, body = "", _PLAIN[name]
    else:
        extra, formula = _BODIES[name]
        block = BLOCKS[name]
        shift = block.block_size.bit_length() - 1
        body = f"""
  let b = row_at + (column >> {shift}u) * {block.type_size}u;
  let c = column & {block.block_size - 1}u;
  {formula.strip()}"""
    return f"""{_BYTES}{extra}
fn weight4(row: u32, column: u32) -> vec4<f32> {{
  let row_at = p.w_base + row * p.w_row;{body}
}}"""
