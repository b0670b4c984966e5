"""Optimizers of whole weights: what each keeps, its rule as a reference, and the 8-bit codes of its moments.

adamw (Loshchilov & Hutter 2019): two float32 moments, 8 bytes a weight. adamw8bit (Dettmers et al. 2022): the same
with moments in blocks of 256 codes of 8 bits, 2 bytes a weight; of the second its root is kept, since the codes reach
over seven decades and a square that they rounded to zero would let an update grow without bound. adafactor (Shazeer &
Stern 2018, without a first moment, the rate from outside): one mean of squares for each row and each column, next to
nothing a weight.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

KINDS = ("adamw", "adamw8bit", "adafactor")
BLOCK = 256  # weights that share a scale in adamw8bit
SMALL = 4096  # tensors of fewer weights keep float32 moments: norms, where an error in one weight is felt
TINY, THRESHOLD, DECAY = 1e-30, 1.0, -0.8  # adafactor's epsilon, the update's largest RMS, beta2 = 1 - step^DECAY


@dataclass(frozen=True)
class Rule:
    """One step. factor: of the gradients (from clipping their norm); step counts from 1; decay: of the weights."""

    factor: float
    lr: float
    step: int
    beta1: float
    beta2: float
    eps: float
    decay: float


def state_shapes(kind: str, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], type]]:
    """{name: (shape, dtype)} of what `kind` keeps for a tensor of `shape`."""
    size = int(np.prod(shape))
    if kind == "adafactor":
        if len(shape) < 2:
            return {"square": ((size,), np.float32)}
        return {"row": ((shape[0],), np.float32), "column": ((shape[1],), np.float32)}
    if kind == "adamw" or size < SMALL:
        return {"first": ((size,), np.float32), "second": ((size,), np.float32)}
    scales = ((-(-size // BLOCK),), np.float32)
    return {"first": ((size,), np.uint8), "first_scale": scales, "root": ((size,), np.uint8), "root_scale": scales}


@functools.cache
def codes(signed: bool) -> np.ndarray:
    """float32 [256], rising: dynamic tree quantization's values (Dettmers 2016), 0 and 1 among them.

    Seven decades; the e-th above the smallest is cut into 2^e equal parts
    (2^(e+1) without a sign), whose middles count.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(values)).astype(np.float32)


@functools.cache
def middles(signed: bool) -> np.ndarray:
    """float32 [255]: where the nearest code changes; x's code is the number of them that are below x."""
    table = codes(signed).astype(np.float64)
    return ((table[1:] + table[:-1]) / 2).astype(np.float32)


@functools.cache
def first_guess(signed: bool) -> np.ndarray:
    """uint8 [65536]: by a float32's upper 16 bits, the code of the least value that has them.
    x's own is that, or the next."""
    top = np.arange(1 << 16, dtype=np.uint32)
    least = ((top << 16) | np.where(top >> 15, 0xFFFF, 0).astype(np.uint32)).view(np.float32)
    with np.errstate(invalid="ignore"):
        return np.searchsorted(middles(signed), np.nan_to_num(least)).clip(0, 255).astype(np.uint8)


def encode(x: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] -> (codes uint8 [n], the largest magnitude of each block float32 [ceil(n / BLOCK)])."""
    blocks = np.zeros((-(-x.size // BLOCK), BLOCK), np.float32)
    blocks.reshape(-1)[: x.size] = x
    scale = np.abs(blocks).max(1)
    unit = blocks / np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.searchsorted(middles(signed), unit).astype(np.uint8).reshape(-1)[: x.size], scale


def decode(packed: np.ndarray, scale: np.ndarray, signed: bool) -> np.ndarray:
    """What encode() made, as float32 [n]."""
    return np.take_along_axis(codes(signed), packed, 0) * np.repeat(scale, BLOCK)[: packed.size]


def start(kind: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The state before the first step: zeros (as codes: the code of zero)."""
    made = {name: np.zeros(s, dtype) for name, (s, dtype) in state_shapes(kind, shape).items()}
    for name, array in made.items():
        if array.dtype == np.uint8:
            array[...] = np.searchsorted(codes(name == "first"), 0.0)
    return made


def reference(
    kind: str, p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], shape: tuple[int, ...], rule: Rule
) -> None:
    """One step in plain NumPy, in place, as base.Engine.optimize() has it: what every engine's is held against."""
    g = g * np.float32(rule.factor)
    if kind == "adafactor":
        p *= np.float32(1 - rule.lr * rule.decay)
        p -= np.float32(rule.lr) * _adafactor(g, state, shape, rule)
        return
    first, second = moments(state)
    first = np.float32(rule.beta1) * first + np.float32(1 - rule.beta1) * g
    second = np.float32(rule.beta2) * second + np.float32(1 - rule.beta2) * g * g
    root = np.sqrt(second) / np.float32(np.sqrt(1 - rule.beta2**rule.step)) + np.float32(rule.eps)
    p *= np.float32(1 - rule.lr * rule.decay)
    p -= np.float32(rule.lr / (1 - rule.beta1**rule.step)) * first / root
    if "root" in state:
        state["first"][...], state["first_scale"][...] = encode(first, True)
        state["root"][...], state["root_scale"][...] = encode(np.sqrt(second), False)
    else:
        state["first"][...], state["second"][...] = first, second


def moments(state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """AdamW's two moments as float32, whatever they are kept as."""
    if "root" not in state:
        return state["first"], state["second"]
    return (
        decode(state["first"], state["first_scale"], True),
        np.square(decode(state["root"], state["root_scale"], False)),
    )


def _adafactor(g: np.ndarray, state: dict[str, np.ndarray], shape: tuple[int, ...], rule: Rule) -> np.ndarray:
    keep = np.float32(1 - rule.step**DECAY)
    square = g * g + np.float32(TINY)
    if "square" in state:
        state["square"][...] = keep * state["square"] + (1 - keep) * square
        update = g / np.sqrt(state["square"])
    else:
        square = square.reshape(shape)
        row, column = state["row"], state["column"]
        row[...] = keep * row + (1 - keep) * square.mean(1)
        column[...] = keep * column + (1 - keep) * square.mean(0)
        update = (g.reshape(shape) / np.sqrt(row / row.mean())[:, None] / np.sqrt(column)).reshape(-1)
    return update / max(1.0, float(np.sqrt(np.mean(update * update))) / THRESHOLD)
