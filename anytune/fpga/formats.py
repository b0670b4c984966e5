"""What enters the array: matrices as planes of 5-bit codes with a scale for each 32, and rounded operands.

A plane is a weight's summand that the array can take: codes in -8..15 times a float scale for each block of 32. A
format is a sum of planes, exactly:

    Q4_0   d (n - 8)                       one plane
    Q8_0   16 d high + d low               two: the byte's signed high half, its low half
    Q4_1   d n + m                         two: the nibbles; ones, times m (the minimum term)
    Q5_0   d n + 16 d (h - 1)              two: nibbles; the fifth bit
    Q5_1   d n + 16 d h + m                three
    Q4_K   (d s) n - (dmin m)              two, of scales with 17 significant bits

The bytes of the blocks are the file's; nothing is rounded here but what `q8_0` and `bf16` say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.errors import UserError
from anytune.gguf import quantizers

BLOCK = 32  # weights of a block, and so of a square's side
FORMATS = ("Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K")
# name -> (weights, bytes) of a block in the file
SIZES = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q4_K": (256, 144)}


@dataclass(frozen=True)
class Matrix:
    """A stored matrix [N, K], both multiples of 32, as planes.

    codes int8 [C, N, K]; offsets (C of 0 or 8: what the stored nibble lost); factors (P of 1 or 16); scales float32
    [P, N, K/32], P = C + 1 if the last plane is `ones` (every code 1, nothing stored), else C. `rows` of N are real.
    wide: scales have more bits than float16's.
    """

    codes: np.ndarray
    scales: np.ndarray
    offsets: tuple[int, ...]
    factors: tuple[int, ...]
    ones: bool
    rows: int
    wide: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[1:]

    @property
    def planes(self) -> int:
        return len(self.scales)

    def float64(self) -> np.ndarray:
        """The weights [rows, K], exactly."""
        n, k = self.shape
        out = np.zeros((n, k))
        for p, (scale, factor) in enumerate(zip(self.scales, self.factors)):
            wide = np.repeat(scale.astype(np.float64) * factor, BLOCK, axis=1)
            out += wide * self.codes[p] if p < len(self.codes) else wide
        return out[: self.rows]


@dataclass(frozen=True)
class Rounded:
    """Activations [T, K] as ggml's Q8_0 rounds them: q int8 [T, K], scale float32 [T, K/32] with float16's values."""

    q: np.ndarray
    scale: np.ndarray

    def matrix(self) -> Matrix:
        """The same as a stored matrix: what the gradients of a pair are summed over."""
        return _eight_bit(self.q, self.scale)

    def bytes(self) -> np.ndarray:
        """uint8 [T, K/32*34]: the bytes that a GGUF file would have."""
        scale = self.scale.astype("<f2").view(np.uint8).reshape(*self.scale.shape, 2)
        codes = self.q.reshape(len(self.q), -1, BLOCK).view(np.uint8)
        return np.concatenate([scale, codes], -1).reshape(len(self.q), -1)


def matrix(data: np.ndarray, name: str) -> Matrix:
    """Blocks of a GGUF file, uint8 [N, bytes], as planes; N is padded with zeros to a multiple of 32.

    Raises UserError for a format that the engine does not read (see FORMATS), and for scales that are no numbers.
    """
    if name not in SIZES:
        raise UserError(
            f"The hardware engine reads {', '.join(FORMATS)}, not {name}: quantize the model to one of these."
        )
    weights, size = SIZES[name]
    data = data.astype(np.uint8, "C", copy=False)
    if data.ndim != 2 or data.shape[1] % size:
        raise ValueError(f"{data.shape} is not a matrix of {name} blocks, of {size} bytes each")
    rows = len(data)
    data = np.pad(data, ((0, -rows % BLOCK), (0, 0)))
    found = _READ[name](data.reshape(len(data), -1, size), rows)
    if not np.isfinite(found.scales).all():
        raise UserError(f"A {name} block has a scale that is not a number: the file is damaged.")
    return found


def q8_0(x: np.ndarray) -> Rounded:
    """float32 [T, K] -> ggml's Q8_0: the file's bytes, as `gguf.quantizers` makes them."""
    raw = quantizers.q8_0(x.astype(np.float32, "C", copy=False).reshape(-1, BLOCK))
    scale = raw[:, :2].copy().view("<f2").astype(np.float32)
    return Rounded(raw[:, 2:].copy().view(np.int8).reshape(x.shape), scale.reshape(len(x), -1))


def stored(x: np.ndarray) -> Matrix:
    """float32 [N, K] rounded to Q8_0 and padded with zeros to multiples of 32: a matrix of a low-rank pair."""
    x = np.pad(x.astype(np.float32, copy=False), [(0, -n % BLOCK) for n in x.shape])
    return q8_0(x).matrix()


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16's values, ties to even; subnormals become zero."""
    bits = quantizers.bf16(x).view("<u2").astype(np.uint32) << np.uint32(16)
    return np.where(bits & np.uint32(0x7F800000), bits, 0).astype(np.uint32).view(np.float32).reshape(x.shape)


def _half(b: np.ndarray, at: int) -> np.ndarray:
    return b[..., at : at + 2].copy().view("<f2").astype(np.float32)[..., 0]


def _nibbles(b: np.ndarray) -> np.ndarray:
    """uint8 [N, blocks, 16] -> int8 [N, blocks * 32], 0..15, in ggml's order."""
    return np.concatenate([b & 15, b >> 4], -1).astype(np.int8).reshape(len(b), -1)


def _make(codes: list, scales: list, offsets: tuple, factors: tuple, rows: int, wide: bool = False) -> Matrix:
    return Matrix(np.stack(codes), np.stack(scales), offsets, factors, len(scales) > len(codes), rows, wide)


def _q4_0(b: np.ndarray, rows: int) -> Matrix:
    return _make([_nibbles(b[..., 2:]) - np.int8(8)], [_half(b, 0)], (8,), (1,), rows)


def _eight_bit(q: np.ndarray, d: np.ndarray) -> Matrix:
    return _make([q >> 4, q & 15], [d, d], (8, 0), (16, 1), len(q))


def _q8_0(b: np.ndarray, rows: int) -> Matrix:
    found = _eight_bit(b[..., 2:].copy().view(np.int8).reshape(len(b), -1), _half(b, 0))
    return Matrix(found.codes, found.scales, found.offsets, found.factors, False, rows)


def _q4_1(b: np.ndarray, rows: int) -> Matrix:
    return _make([_nibbles(b[..., 4:])], [_half(b, 0), _half(b, 2)], (0,), (1, 1), rows)


def _fifth(b: np.ndarray) -> np.ndarray:
    """uint8 [N, blocks, 4] -> int8 [N, blocks * 32] of 0 or 1."""
    return np.unpackbits(b, axis=-1, bitorder="little").astype(np.int8).reshape(len(b), -1)


def _q5_0(b: np.ndarray, rows: int) -> Matrix:
    d = _half(b, 0)
    return _make([_nibbles(b[..., 6:]), _fifth(b[..., 2:6]) - np.int8(1)], [d, d], (0, 8), (1, 16), rows)


def _q5_1(b: np.ndarray, rows: int) -> Matrix:
    d = _half(b, 0)
    return _make([_nibbles(b[..., 8:]), _fifth(b[..., 4:8])], [d, d, _half(b, 2)], (0, 0), (1, 16, 1), rows)


def _q4_k(b: np.ndarray, rows: int) -> Matrix:
    packed = b[..., 4:16]
    low, high, mixed = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([low & 63, mixed & 15 | low >> 6 << 4], -1).astype(np.float32)
    least = np.concatenate([high & 63, mixed >> 4 | high >> 6 << 4], -1).astype(np.float32)
    pairs = b[..., 16:].reshape(*b.shape[:2], 4, 32)  # 64 weights: low nibbles, then high nibbles
    q = np.stack([pairs & 15, pairs >> 4], -2).astype(np.int8).reshape(len(b), -1)
    scales = [(_half(b, at)[..., None] * part).reshape(len(b), -1) for at, part in ((0, scale), (2, -least))]
    return _make([q], scales, (0,), (1, 1), rows, wide=True)


_READ = {"Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k}
