"""GGUF blocks to weights in plain torch, on any device: the twin of anytune.gguf.dequantize, bit for bit.

Only operations that CUDA, MPS, XPU and the CPU all have: no unsigned words wider than a byte. A multiplication
and an addition are never fused, since the reference rounds after each.

In this file: b is uint8 [n, type_size] (n blocks), and the result is float32 [n, block_size].
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from anytune.gguf.blocks import BLOCKS, CODES_FP4, CODES_IQ4
from anytune.gguf.blocks_iq import EVEN_SIGNS
from anytune.gguf.codebooks import BOOKS, book

CHUNK = 1 << 21  # weights converted at a time: temporaries of some tens of MiB at most
TABLES: dict[str, Callable[[], np.ndarray]] = {
    "IQ4": lambda: CODES_IQ4,
    "FP4": lambda: CODES_FP4,
    "EVEN_SIGNS": lambda: EVEN_SIGNS,
    **{name: functools.partial(book, name) for name in BOOKS},
}


@functools.cache
def _table(name: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(TABLES[name]().copy()).to(device)


@functools.cache
def _shifts(bits: int, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.arange(0, bits * count, bits, dtype=dtype, device=device)


def _look_up(name: str, index: torch.Tensor) -> torch.Tensor:
    """Entries of a table, side by side: index [n, k] to [n, k * entry]."""
    return _table(name, index.device)[index.int()].reshape(len(index), -1)


def _view(b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as little-endian words: [n, bytes / itemsize]."""
    b = b.contiguous()
    return (b.clone() if b.storage_offset() % dtype.itemsize else b).view(dtype)


def _half(b: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block: float32 [n, 1]."""
    return _view(b[:, at : at + 2], torch.float16).float()


def _words(b: torch.Tensor) -> torch.Tensor:
    """Bytes as 16-bit words: int32 [n, bytes / 2] from 0 to 65535."""
    return _view(b, torch.int16).int() & 0xFFFF


def _fields(b: torch.Tensor, group: int, bits: int, count: int | None = None) -> torch.Tensor:
    """Small integers packed `count` to a byte, as fields.fields has them: uint8 [n, bytes * count]."""
    n, size = b.shape
    shifts = _shifts(bits, count or 8 // bits, torch.uint8, b.device)
    packed = b.reshape(n, size // group, 1, group)
    return torch.bitwise_and(packed >> shifts[:, None], (1 << bits) - 1).reshape(n, -1)


def _parts(w: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The low `count` fields of each word of w int32 [n, k]: [n, k * count]."""
    return (w[:, :, None] >> _shifts(bits, count, torch.int32, w.device) & (1 << bits) - 1).reshape(len(w), -1)


def _scaled(scales: torch.Tensor, q: torch.Tensor, mins: torch.Tensor | None = None) -> torch.Tensor:
    """Each of the s scales [n, s] times its equal share of q [n, w], less its minimum."""
    n, s = scales.shape
    y = scales[:, :, None] * q.float().reshape(n, s, -1)
    return (y if mins is None else y - mins[:, :, None]).reshape(n, -1)


def _plain(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda b: _view(b, dtype).float()


def _q1_0(b):
    return _half(b, 0) * (2 * _fields(b[:, 2:], 1, 1).float() - 1)


def _q2_0(b):
    return _half(b, 0) * (_fields(b[:, 2:], 1, 2).float() - 1)


def _q4_0(b):
    return _half(b, 0) * (_fields(b[:, 2:], 16, 4).float() - 8)


def _q4_1(b):
    return _half(b, 0) * _fields(b[:, 4:], 16, 4).float() + _half(b, 2)


def _five(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Four low bits from `low` [n, 16] and a fifth from the 32 bits of `high` [n, 4]."""
    return _fields(low, 16, 4) | _fields(high, 1, 1) << 4


def _q5_0(b):
    return _half(b, 0) * (_five(b[:, 6:], b[:, 2:6]).float() - 16)


def _q5_1(b):
    return _half(b, 0) * _five(b[:, 8:], b[:, 4:8]).float() + _half(b, 2)


def _q8_0(b):
    return _view(b[:, 2:], torch.int8).float() * _half(b, 0)


def _q2_k(b):
    scales, mins = _half(b, 80) * (b[:, :16] & 15).float(), _half(b, 82) * (b[:, :16] >> 4).float()
    return _scaled(scales, _fields(b[:, 16:80], 32, 2), mins)


def _q3_k(b):
    scales = _fields(b[:, 96:104], 8, 4) | _fields(b[:, 104:108], 4, 2) << 4
    q = _fields(b[:, 32:96], 32, 2) | _fields(b[:, :32], 32, 1) << 2
    return _scaled(_half(b, 108) * (scales.float() - 32), q.float() - 4)


def _six_bit_scales(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales and the minimums of a Q4_K or Q5_K block: float32 [n, 8] each."""
    low, high, tails = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([low & 63, tails & 15 | low >> 6 << 4], 1)
    mins = torch.cat([high & 63, tails >> 4 | high >> 6 << 4], 1)
    return _half(b, 0) * scales.float(), _half(b, 2) * mins.float()


def _q4_k(b):
    scales, mins = _six_bit_scales(b)
    return _scaled(scales, _fields(b[:, 16:], 32, 4), mins)


def _q5_k(b):
    scales, mins = _six_bit_scales(b)
    return _scaled(scales, _fields(b[:, 48:], 32, 4) | _fields(b[:, 16:48], 32, 1) << 4, mins)


def _q6_k(b):
    q = _fields(b[:, :128], 64, 4) | _fields(b[:, 128:192], 32, 2) << 4
    return _scaled(_half(b, 208) * _view(b[:, 192:208], torch.int8).float(), q.float() - 32)


def _iq4_nl(b):
    return _half(b, 0) * _look_up("IQ4", _fields(b[:, 2:], 16, 4))


def _iq4_xs(b):
    scales = _fields(b[:, 4:8], 1, 4) | _fields(b[:, 2:4], 1, 2) << 4
    return _scaled(_half(b, 0) * (scales.float() - 32), _look_up("IQ4", _fields(b[:, 8:], 16, 4)))


def _trits(b: torch.Tensor, group: int, count: int) -> torch.Tensor:
    """`count` base-3 digits a byte, highest first, the byte being a fraction of 256: -1, 0 or 1."""
    n, size = b.shape
    packed, digits = b.int().reshape(n, size // group, group), []
    for _ in range(count):
        packed = packed * 3
        digits.append(packed >> 8)
        packed = packed & 255
    return torch.stack(digits, 2).reshape(n, -1).float() - 1


def _tq1_0(b):
    q = [_trits(b[:, :32], 32, 5), _trits(b[:, 32:48], 16, 5), _trits(b[:, 48:52], 4, 4)]
    return _half(b, 52) * torch.cat(q, 1)


def _tq2_0(b):
    return _half(b, 64) * (_fields(b[:, :64], 32, 2).float() - 1)


def _mxfp4(b):
    e = b[:, :1].int()  # a power of two (e8m0), halved since the codes are doubled
    bits = torch.where(e < 2, (e + 1) << 21, (e - 1).clamp(min=0) << 23)
    return bits.view(torch.float32) * _look_up("FP4", _fields(b[:, 1:], 16, 4))


def _nvfp4(b):
    code = b[:, :4].int()  # e4m3 without a sign, halved since the codes are doubled
    exponent, mantissa = code >> 3 & 15, (code & 7).float()
    normal = ((exponent + 119) << 23).view(torch.float32) * (1 + mantissa / 8)
    scales = torch.where(exponent == 0, mantissa * 2.0**-10, normal)
    scales = torch.where(code == 0x7F, torch.zeros_like(scales), scales)  # the code for NaN
    return _scaled(scales, _look_up("FP4", _fields(b[:, 4:], 8, 4)))


def _signs(b: torch.Tensor) -> torch.Tensor:
    """A sign bit for each weight: [n, 32] bytes to float32 [n, 256] of 1 and -1."""
    return 1 - 2 * _fields(b, 1, 1).float()


def _signs_and_scale(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Words of four times seven sign bits and a 4-bit scale, [n, 32] bytes: (signs [n, 256], scales [n, 8])."""
    w = _view(b, torch.int32)
    return _signs(_look_up("EVEN_SIGNS", _parts(w, 7, 4))), (w >> 28 & 15).float()


def _iq2_xxs(b):
    pairs = b[:, 2:].reshape(len(b), 8, 2, 4)
    signs, scales = _signs_and_scale(pairs[:, :, 1].reshape(len(b), 32))
    index = pairs[:, :, 0].reshape(len(b), 32)
    return _scaled(_half(b, 0) * (0.5 + scales) * 0.25, _look_up("IQ2_XXS", index)) * signs


def _iq2_xs(b):
    q = _words(b[:, 2:66])
    scales = _half(b, 0) * (0.5 + _fields(b[:, 66:], 1, 4).float()) * 0.25
    return _scaled(scales, _look_up("IQ2_XS", q & 511)) * _signs(_look_up("EVEN_SIGNS", q >> 9))


def _iq2_s(b):
    index = b[:, 2:34].int() | _fields(b[:, 66:74], 1, 2).int() << 8
    scales = _half(b, 0) * (0.5 + _fields(b[:, 74:], 1, 4).float()) * 0.25
    return _scaled(scales, _look_up("IQ2_S", index)) * _signs(b[:, 34:66])


def _iq3_xxs(b):
    signs, scales = _signs_and_scale(b[:, 66:])
    return _scaled(_half(b, 0) * (0.5 + scales) * 0.5, _look_up("IQ3_XXS", b[:, 2:66])) * signs


def _iq3_s(b):
    index = b[:, 2:66].int() | _fields(b[:, 66:74], 1, 1).int() << 8
    scales = _half(b, 0) * (2 * _fields(b[:, 106:], 1, 4) + 1).float()
    return _scaled(scales, _look_up("IQ3_S", index)) * _signs(b[:, 74:106])


def _iq1_s(b):
    high = _words(b[:, 34:])
    index = b[:, 2:34].int() | _parts(high, 3, 4) << 8
    delta = 0.125 - 0.25 * (high >> 15).float()
    scales = _half(b, 0) * (2 * (high >> 12 & 7) + 1).float()
    return _scaled(scales, _look_up("IQ1_S", index) + delta.repeat_interleave(32, 1))


def _iq1_m(b):
    high, w = _fields(b[:, 32:48], 1, 4), _words(b[:, 48:])
    top = w >> 12  # the block's float16 scale is in the top four bits of four words
    d = top[:, :1] | top[:, 1:2] << 4 | top[:, 2:3] << 8 | top[:, 3:] << 12
    d = torch.stack([d & 255, d >> 8], 2).to(torch.uint8).reshape(len(b), 2).view(torch.float16).float()
    index = b[:, :32].int() | (high & 7).int() << 8
    delta = 0.125 - 0.25 * (high >> 3).float()
    return _scaled(d * (2 * _parts(w, 3, 4) + 1).float(), _look_up("IQ1_S", index) + delta.repeat_interleave(8, 1))


TYPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
}


def _convert(raw: torch.Tensor, name: str, out: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Rows of blocks uint8 [rows, row_bytes] into out [rows, n], rounded once, some rows at a time."""
    if out.ndim == 3:  # parts of equally many rows
        for part, rows in zip(out, raw.view(len(out), -1, raw.shape[1])):
            _convert(rows, name, part, scale)
        return out
    block, of = BLOCKS[name], TYPES[name]
    step = max(1, CHUNK // max(1, out.shape[1]))
    for i in range(0, len(raw), step):
        rows = raw[i : i + step]
        y = of(rows.reshape(-1, block.type_size)).reshape(len(rows), -1)
        out[i : i + step] = y if scale is None else y * scale
    return out


def weights(raw: torch.Tensor, name: str) -> int:
    """Weights in a row of raw [rows, row_bytes]. ValueError if it is no matrix of whole blocks."""
    size = BLOCKS[name].type_size
    if name not in TYPES or raw.dtype != torch.uint8 or raw.ndim != 2 or raw.shape[1] % size:
        raise ValueError(f"{name} needs uint8 rows of {size}s, not {raw.dtype} {tuple(raw.shape)}")
    return raw.shape[1] // size * BLOCKS[name].block_size


def dequantize_into(raw: torch.Tensor, name: str, out: torch.Tensor) -> None:
    """Blocks of type `name`, uint8 [rows, row_bytes], into out [rows, n], or [parts, rows of each, n], of any float
    type and strides."""
    if (out.numel() // max(out.shape[-1], 1), out.shape[-1]) != (len(raw), weights(raw, name)):
        raise ValueError(f"{tuple(raw.shape)} bytes of {name} are no {tuple(out.shape)} weights")
    _convert(raw, name, out)


def dequantize(raw: torch.Tensor, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Blocks of type `name`, uint8 [rows, row_bytes], to [rows, n]: computed in float32, then rounded to dtype."""
    return _convert(raw, name, raw.new_empty((len(raw), weights(raw, name)), dtype=dtype))


def gather_into(raw: torch.Tensor, ids: torch.Tensor, name: str, out: torch.Tensor, scale: float = 1.0) -> None:
    """out[i] = scale * row ids[i] of an embedding table: ids integers [k], out [k, n], or [parts, rows of each, n]."""
    if (out.numel() // max(out.shape[-1], 1), out.shape[-1]) != (ids.numel(), weights(raw, name)):
        raise ValueError(f"{ids.numel()} rows of {name} are no {tuple(out.shape)} weights")
    _convert(raw.index_select(0, ids.reshape(-1)), name, out, scale)


def gather(
    raw: torch.Tensor, ids: torch.Tensor, name: str, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> torch.Tensor:
    """As gather_into, for ids of any shape: [*ids.shape, n] of dtype."""
    out = raw.new_empty((ids.numel(), weights(raw, name)), dtype=dtype)
    gather_into(raw, ids, name, out, scale)
    return out.reshape(*ids.shape, -1)
