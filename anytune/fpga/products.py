"""The products of linears with low-rank pairs, forward and backward, each on the one engine.

    U = X Aᵀ                  rows      X rounded to Q8_0, see `terms`; A and B stored as Q8_0
    Y = X Wᵀ + (s U) Bᵀ       rows      s U rounded to Q8_0
    V = dY B                  columns   dY rounded to bfloat16
    dX = dY W + (s V) A       columns   s V rounded to bfloat16
    dA = (s V)ᵀ X             columns   X's first term, as stored rows; the tokens are what is summed
    dBᵀ = (s U)ᵀ dY           columns   dY 2^p rounded to Q8_0, as stored rows; p keeps its scales within float16

An engine here is whatever has `rows` and `columns` as twin.Twin: the twin, or the RTL in a simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anytune.fpga.formats import BLOCK, Matrix, Rounded, bf16, q8_0, stored
from anytune.fpga.schedule import Shape

F = np.float32
# Linears whose input is a sum of two Q8_0 terms: what gated products give has outliers that leave the other 31 of their
# block few digits.
TWO_TERMS = ("ffn_down",)


class Products(Protocol):
    def rows(self, terms: Sequence[tuple[Rounded, Matrix]]) -> np.ndarray: ...
    def columns(self, terms: Sequence[tuple[np.ndarray, Matrix]]) -> np.ndarray: ...


class Pair:
    """A low-rank pair as the engine stores it: a [r, K], b [N, r] float32, scale; padded with zeros to blocks."""

    def __init__(self, a: np.ndarray, b: np.ndarray, scale: float):
        self.rank, self.scale = len(a), F(scale)
        self.a, self.b = stored(a), stored(b)


@dataclass(frozen=True)
class Saved:
    """What a backward needs of its forward: x rounded, and s U of each pair (or None), float32 [T, r padded]."""

    x: Rounded
    u: tuple[np.ndarray | None, ...]


def terms_of(name: str) -> int:
    """How many Q8_0 terms the input of a tensor of this name (blk.0.ffn_down.weight) is rounded to: 1 or 2."""
    return 2 if any(part in TWO_TERMS for part in name.split(".")) else 1


def rounded(x: np.ndarray, terms: int = 1) -> list[Rounded]:
    """x float32 [T, K] as a sum of Q8_0 terms, each of what those before it left."""
    found = [q8_0(x)]
    while len(found) < terms:
        x = x - (found[-1].q.reshape(len(x), -1, BLOCK) * found[-1].scale[..., None]).reshape(x.shape)
        found.append(q8_0(x))
    return found


def forward(
    engine: Products, x: np.ndarray, weights: Sequence[Matrix], pairs: Sequence[Pair | None], terms: int = 1
) -> tuple[list[np.ndarray], Saved]:
    """x float32 [T, K] -> for each of the linears that share it float32 [T, N], and what the backward needs."""
    left = rounded(x, terms)
    outputs, kept = [], []
    for w, pair in zip(weights, pairs):
        products = [(part, w) for part in left]
        kept.append(low_rank(engine, left, pair))
        if pair is not None:
            products.append((q8_0(kept[-1]), pair.b))
        outputs.append(engine.rows(products)[:, : w.rows])
    return outputs, Saved(left[0], tuple(kept))


def low_rank(engine: Products, left: Sequence[Rounded], pair: Pair | None) -> np.ndarray | None:
    """s U = s X Aᵀ, float32 [T, r padded to a block], X the sum of `left`."""
    return None if pair is None else engine.rows([(part, pair.a) for part in left]) * pair.scale


def backward(
    engine: Products,
    dys: Sequence[np.ndarray],
    saved: Saved,
    weights: Sequence[Matrix],
    pairs: Sequence[Pair | None],
    need_dx: bool = True,
) -> tuple[np.ndarray | None, list[tuple[np.ndarray, np.ndarray] | None]]:
    """dys float32 [T, N] -> (dX float32 [T, K] or None, (dA [r, K], dB [N, r]) for each pair)."""
    terms: list[tuple[np.ndarray, Matrix]] = []
    gradients: list[tuple[np.ndarray, np.ndarray] | None] = []
    stored_x = _tokens(saved.x)
    for dy, u, w, pair in zip(dys, saved.u, weights, pairs):
        gradient = bf16(_pad(dy, 1))
        terms.append((gradient, w))
        if pair is None or u is None:
            gradients.append(None)
            continue
        v = bf16(engine.columns([(gradient, pair.b)]) * pair.scale)
        terms.append((v, pair.a))
        da = engine.columns([(_turned(v), stored_x)])[: pair.rank]
        up = _power(dy)
        db = engine.columns([(_turned(bf16(u)), _tokens(q8_0(_pad(dy, 1) * up)))])[: pair.rank, : dy.shape[1]] / up
        gradients.append((da, db.T.copy()))
    return (engine.columns(terms) if need_dx else None), gradients


def listed(
    shapes: Sequence[tuple[Shape, int]], need_dx: bool = True, terms: int = 1
) -> tuple[list[tuple[str, str, list[Shape], bool]], list[tuple[str, str, list[Shape], bool]]]:
    """The products above as (name, direction, shapes, tokens are its rows) for (W's shape, rank or 0) of each linear:
    those of the forward, those of the backward. terms: of their input. Shapes of X and dY as stored are of one block of
    tokens: multiply their rows. Where tokens are not the left operand's rows, 32 * ceil(rank / 32) are.
    """
    ahead, back, dx = [], [], []
    for w, rank in shapes:
        r = -(-rank // BLOCK)
        dx.append(w)
        if not r:
            ahead.append(("Y", "rows", [w] * terms, True))
            continue
        a, b = Shape(r, w.columns, 2), Shape(w.rows, r, 2)
        ahead += [("U", "rows", [a] * terms, True), ("Y", "rows", [w] * terms + [b], True)]
        dx.append(a)
        back += [
            ("V", "columns", [b], True),
            ("dA", "columns", [Shape(1, w.columns, 2)], False),
            ("dB", "columns", [Shape(1, w.rows, 2)], False),
        ]
    return ahead, back + ([("dX", "columns", dx, True)] if need_dx else [])


def _pad(x: np.ndarray, axis: int) -> np.ndarray:
    extra = [(0, 0), (0, 0)]
    extra[axis] = (0, -x.shape[axis] % BLOCK)
    return np.pad(x.astype(F, copy=False), extra)


def _turned(y: np.ndarray) -> np.ndarray:
    """[T, r] -> [r, T padded]."""
    return _pad(y, 0).T.copy()


def _tokens(x: Rounded) -> Matrix:
    """Rounded rows as a stored matrix, padded to a multiple of 32 of them."""
    return Rounded(np.pad(x.q, ((0, -len(x.q) % BLOCK), (0, 0))), _pad(x.scale, 0)).matrix()


def _power(dy: np.ndarray) -> np.float32:
    """The power of two that brings the largest |dy| to 2^12 up to 2^13: its Q8_0 scales then span float16's range."""
    peak = float(np.abs(dy).max(initial=0))
    return F(2.0 ** int(np.clip(12 - np.floor(np.log2(peak)), -100, 100))) if peak > 0 else F(1)
