"""The block formats of GGUF as one table: how many weights and bytes a block has, and how to read it.

Layouts are those of ggml's `block_*` structs; the order of the float operations is ggml's too, so results are
bit-equal to the `gguf` package's. Little-endian, as GGUF is. Quantizers are in quantizers.py, formats with
code books (IQ1 to IQ3) in blocks_iq.py.

In this file: b is uint8 [n, type_size] (n blocks), and the result is float32 [n, block_size].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anytune.gguf import blocks_iq, quantizers
from anytune.gguf.fields import U16, fields, half, scaled, scaled_less, words

CODES_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
CODES_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # e2m1, doubled
CHUNK = 1 << 16  # weights converted at a time: the temporaries stay in the cache


@dataclass(frozen=True)
class BlockType:
    """One weight format: `dequantize` takes uint8 [n, type_size] and returns float32 [n, block_size]."""

    name: str
    id: int  # ggml's type number, as in the file
    block_size: int  # weights
    type_size: int  # bytes
    dequantize: Callable[[np.ndarray], np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray] | None = None  # the inverse, float32 -> uint8

    def row_bytes(self, weights: int) -> int:
        """Bytes of a row of `weights` weights, which must be a multiple of block_size."""
        return weights // self.block_size * self.type_size


def _plain(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda b: words(b, np.dtype(dtype)).astype(np.float32)


def _bf16(b):
    return (words(b, U16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q1_0(b):
    return half(b, 0) * (2 * fields(b[:, 2:], 1, 1).astype(np.float32) - np.float32(1))


def _q2_0(b):
    return half(b, 0) * (fields(b[:, 2:], 1, 2).astype(np.float32) - np.float32(1))


def _q4_0(b):
    return half(b, 0) * (fields(b[:, 2:], 16, 4).astype(np.float32) - np.float32(8))


def _q4_1(b):
    return half(b, 0) * fields(b[:, 4:], 16, 4).astype(np.float32) + half(b, 2)


def _five(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Four low bits from `low` [n, 16] and a fifth from the 32 bits of `high` [n, 4]."""
    return fields(low, 16, 4) | np.unpackbits(high, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(b):
    return half(b, 0) * (_five(b[:, 6:], b[:, 2:6]).astype(np.float32) - np.float32(16))


def _q5_1(b):
    return half(b, 0) * _five(b[:, 8:], b[:, 4:8]).astype(np.float32) + half(b, 2)


def _q8_0(b):
    return b[:, 2:].view(np.int8).astype(np.float32) * half(b, 0)


def _q2_k(b):
    scales = half(b, 80) * (b[:, :16] & np.uint8(15)).astype(np.float32)
    mins = half(b, 82) * (b[:, :16] >> np.uint8(4)).astype(np.float32)
    return scaled_less(scales, fields(b[:, 16:80], 32, 2), mins)


def _q3_k(b):
    scales = fields(b[:, 96:104], 8, 4) | fields(b[:, 104:108], 4, 2) << np.uint8(4)
    q = fields(b[:, 32:96], 32, 2) | fields(b[:, :32], 32, 1) << np.uint8(2)
    return scaled(half(b, 108) * (scales.astype(np.float32) - np.float32(32)), q.astype(np.float32) - np.float32(4))


def _six_bit_scales(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight 6-bit scales and eight 6-bit minimums packed into twelve bytes: float32 [n, 8] each.

    Bytes 0-3 and 4-7 hold the first four of each in their low bits and the top two bits of the last four.
    """
    low, high, tails = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = np.concatenate([low & 63, tails & 15 | low >> 6 << 4], axis=1)
    mins = np.concatenate([high & 63, tails >> 4 | high >> 6 << 4], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _q4_k(b):
    scales, mins = _six_bit_scales(b[:, 4:16])
    return scaled_less(half(b, 0) * scales, fields(b[:, 16:], 32, 4), half(b, 2) * mins)


def _q5_k(b):
    scales, mins = _six_bit_scales(b[:, 4:16])
    q = fields(b[:, 48:], 32, 4) | fields(b[:, 16:48], 32, 1) << np.uint8(4)
    return scaled_less(half(b, 0) * scales, q, half(b, 2) * mins)


def _q6_k(b):
    q = fields(b[:, :128], 64, 4) | fields(b[:, 128:192], 32, 2) << np.uint8(4)
    return scaled(half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32), q.astype(np.float32) - np.float32(32))


def _iq4_nl(b):
    return half(b, 0) * CODES_IQ4[fields(b[:, 2:], 16, 4)]


def _iq4_xs(b):
    high = words(b[:, 2:4], U16) >> np.arange(0, 16, 2, dtype=np.uint16) & np.uint16(3)
    scales = fields(b[:, 4:8], 1, 4) | high.astype(np.uint8) << np.uint8(4)
    scales = half(b, 0) * (scales.astype(np.float32) - np.float32(32))
    return scaled(scales, CODES_IQ4[fields(b[:, 8:], 16, 4)])


def _trits(b: np.ndarray, group: int, count: int) -> np.ndarray:
    """`count` base-3 digits a byte, highest first, the byte being a fraction of 256: -1, 0 or 1."""
    n, size = b.shape
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    digits = (b.reshape(n, size // group, 1, group) * powers).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    return digits.reshape(n, -1).astype(np.float32) - np.float32(1)


def _tq1_0(b):
    q = [_trits(b[:, :32], 32, 5), _trits(b[:, 32:48], 16, 5), _trits(b[:, 48:52], 4, 4)]
    return half(b, 52) * np.concatenate(q, axis=1)


def _tq2_0(b):
    return half(b, 64) * (fields(b[:, :64], 32, 2).astype(np.float32) - np.float32(1))


def _mxfp4(b):
    e = b[:, :1].astype(np.uint32)  # a power of two (e8m0), halved since CODES_FP4 is doubled
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (e - 1) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32) * CODES_FP4[fields(b[:, 1:], 16, 4)]


def _nvfp4(b):
    exponent, mantissa = (b[:, :4] >> np.uint8(3) & np.uint8(15)).astype(np.int32), b[:, :4] & np.uint8(7)
    small = mantissa * np.float32(2**-9)
    large = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 7).astype(np.float32)
    scales = np.where(exponent == 0, small, large) * np.float32(0.5)
    scales[b[:, :4] == 0x7F] = 0  # the code for NaN
    return scaled(scales, CODES_FP4[fields(b[:, 4:], 8, 4)])


TYPES = (
    BlockType("F32", 0, 1, 4, _plain("<f4"), quantizers.f32),
    BlockType("F16", 1, 1, 2, _plain("<f2"), quantizers.f16),
    BlockType("Q4_0", 2, 32, 18, _q4_0, quantizers.q4_0),
    BlockType("Q4_1", 3, 32, 20, _q4_1, quantizers.q4_1),
    BlockType("Q5_0", 6, 32, 22, _q5_0, quantizers.q5_0),
    BlockType("Q5_1", 7, 32, 24, _q5_1, quantizers.q5_1),
    BlockType("Q8_0", 8, 32, 34, _q8_0, quantizers.q8_0),
    BlockType("Q2_K", 10, 256, 84, _q2_k),
    BlockType("Q3_K", 11, 256, 110, _q3_k),
    BlockType("Q4_K", 12, 256, 144, _q4_k),
    BlockType("Q5_K", 13, 256, 176, _q5_k),
    BlockType("Q6_K", 14, 256, 210, _q6_k),
    BlockType("IQ2_XXS", 16, 256, 66, blocks_iq.iq2_xxs),
    BlockType("IQ2_XS", 17, 256, 74, blocks_iq.iq2_xs),
    BlockType("IQ3_XXS", 18, 256, 98, blocks_iq.iq3_xxs),
    BlockType("IQ1_S", 19, 256, 50, blocks_iq.iq1_s),
    BlockType("IQ4_NL", 20, 32, 18, _iq4_nl),
    BlockType("IQ3_S", 21, 256, 110, blocks_iq.iq3_s),
    BlockType("IQ2_S", 22, 256, 82, blocks_iq.iq2_s),
    BlockType("IQ4_XS", 23, 256, 136, _iq4_xs),
    BlockType("I8", 24, 1, 1, _plain("i1")),
    BlockType("I16", 25, 1, 2, _plain("<i2")),
    BlockType("I32", 26, 1, 4, _plain("<i4")),
    BlockType("I64", 27, 1, 8, _plain("<i8")),
    BlockType("F64", 28, 1, 8, _plain("<f8")),
    BlockType("IQ1_M", 29, 256, 56, blocks_iq.iq1_m),
    BlockType("BF16", 30, 1, 2, _bf16, quantizers.bf16),
    BlockType("TQ1_0", 34, 256, 54, _tq1_0),
    BlockType("TQ2_0", 35, 256, 66, _tq2_0),
    BlockType("MXFP4", 39, 32, 17, _mxfp4),
    BlockType("NVFP4", 40, 64, 36, _nvfp4),
    BlockType("Q1_0", 41, 128, 18, _q1_0),
    BlockType("Q2_0", 42, 64, 18, _q2_0),
)
BLOCKS: dict[str, BlockType] = {block.name: block for block in TYPES}
BLOCKS_BY_ID: dict[int, BlockType] = {block.id: block for block in TYPES}


def dequantize(data: np.ndarray, block: BlockType | str) -> np.ndarray:
    """Whole rows of blocks, uint8 [..., row_bytes], to float32 [..., weights]. ValueError on a torn block."""
    block = BLOCKS[block] if isinstance(block, str) else block
    flat, out = _split(data, np.uint8, block.type_size, block.block_size)
    step = max(1, CHUNK // block.block_size)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite and NaN scales are the file's, not ours
        for i in range(0, len(flat), step):
            out[i : i + step] = block.dequantize(flat[i : i + step])
    return out.reshape(*data.shape[:-1], -1) if data.size else out.reshape(*data.shape[:-1], 0)


def quantize(data: np.ndarray, block: BlockType | str) -> np.ndarray:
    """Rows of float32 [..., weights] to uint8 [..., row_bytes]. ValueError if there is no such quantizer."""
    block = BLOCKS[block] if isinstance(block, str) else block
    if block.quantize is None:
        raise ValueError(f"there is no quantizer for {block.name}")
    flat, out = _split(data, np.float32, block.block_size, block.type_size)
    step = max(1, CHUNK // block.block_size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in range(0, len(flat), step):
            out[i : i + step] = block.quantize(flat[i : i + step])
    return out.reshape(*data.shape[:-1], -1) if data.size else out.reshape(*data.shape[:-1], 0)


def _split(data: np.ndarray, dtype: type, unit: int, unit_out: int) -> tuple[np.ndarray, np.ndarray]:
    if data.dtype != dtype or data.ndim == 0 or data.shape[-1] % unit:
        raise ValueError(f"needs {np.dtype(dtype)} rows of {unit}s, not {data.dtype} {data.shape}")
    flat = np.ascontiguousarray(data).reshape(-1, unit)
    return flat, np.empty((len(flat), unit_out), np.uint8 if dtype is np.float32 else np.float32)
