"""Operands and squares as the engine's packets (rtl/packets.py), and its beats back into sums.

In this file: beats are uint64 [.]; a tile is 32 rows of the left operand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anytune.fpga.formats import BLOCK, Matrix, Rounded
from anytune.fpga.schedule import Shape, parts, squares

ACTIVATIONS, GRADIENTS, SQUARE = 1, 2, 3
BY_COLUMNS, FIRST, LAST, HIGH, WHOLE, ONES, WIDE = (1 << bit for bit in range(2, 9))
BEATS_OUT = BLOCK * BLOCK // 2  # of a group of 32 outputs


def _padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, BLOCK - len(x)), (0, 0)))


def activations(x: Rounded, at: int) -> np.ndarray:
    """A tile's packet: x of up to 32 rows, into blocks of tile memory from `at` on."""
    q, scale = _padded(x.q), _padded(x.scale)
    blocks = q.shape[1] // BLOCK
    codes = q.reshape(8, 4, blocks, BLOCK).transpose(2, 0, 1, 3).reshape(blocks, 8, 128)
    halves = scale.reshape(8, 4, blocks).transpose(2, 0, 1).astype("<f2", order="C").view(np.uint8)
    return _packet(ACTIVATIONS | at << 16 | blocks << 32, np.concatenate([halves, codes.view(np.uint8)], -1))


def gradients(y: np.ndarray, at: int) -> np.ndarray:
    """A tile's packet: y float32 of bfloat16's values, up to 32 rows."""
    y = _padded(y)
    blocks = y.shape[1] // BLOCK
    halves = (np.ascontiguousarray(y, np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return _packet(GRADIENTS | at << 16 | blocks << 32, halves.reshape(BLOCK, blocks, BLOCK).transpose(1, 0, 2))


def _packet(head: int, payload: np.ndarray) -> np.ndarray:
    body = np.ascontiguousarray(payload).reshape(-1).view(np.uint8).view("<u8")
    return np.concatenate([np.array([head], "<u8"), body])


class Stored:
    """A matrix as it lies in the engine's memory: for each square of each plane its beats, without the first.

    The same bytes as the file's, square by square: one copy for both directions.
    """

    def __init__(self, w: Matrix):
        self.shape, self.heads, self.bodies = Shape.of(w), [], []
        for p in range(w.planes):
            ones = p == len(w.codes)
            whole = ones or w.offsets[p] == 0
            self.heads.append(SQUARE | HIGH * (w.factors[p] == 16) | WHOLE * whole | ONES * ones | WIDE * w.wide)
            self.bodies.append(self._body(w, p, ones))

    def _body(self, w: Matrix, p: int, ones: bool) -> np.ndarray:
        """[rows of squares, columns of squares, beats]."""
        n, k = self.shape.rows, self.shape.columns
        scale = w.scales[p].reshape(n, 8, 4, k).transpose(0, 3, 1, 2)  # [n, k, four, row]
        raw = np.ascontiguousarray(scale).astype("<f4" if w.wide else "<f2").view(np.uint8).reshape(n, k, 8, -1)
        if not ones:
            nibbles = (w.codes[p] + np.int8(w.offsets[p])).astype(np.uint8).reshape(n, 8, 4, k, 2, 16)
            packed = nibbles[..., 0, :] | nibbles[..., 1, :] << 4  # as ggml packs a block
            raw = np.concatenate([raw, packed.transpose(0, 3, 1, 2, 4).reshape(n, k, 8, 64)], -1)
        return np.ascontiguousarray(raw).reshape(n, k, -1).view("<u8")

    @property
    def bytes(self) -> int:
        return sum(body.nbytes for body in self.bodies)


def packets(
    direction: str, lefts: Sequence[Rounded | np.ndarray], stored: Sequence[Stored], first: int
) -> list[tuple[np.ndarray, int]]:
    """[(beats, groups of sums that come back)], one for each part of the sum; the tile begins at row `first`."""
    shapes, found = [s.shape for s in stored], []
    for part in parts(direction, shapes):
        beats, at = [], 0
        for term, low, high in part:
            beats.append(_tile(direction, lefts[term], first, low, high, at))
            at += high - low
        for s in squares(direction, shapes, part):
            w = stored[s["term"]]
            head = w.heads[s["plane"]] | int(s["at"]) << 16 | FIRST * bool(s["first"]) | LAST * bool(s["last"])
            head |= BY_COLUMNS * (direction == "columns")
            beats += [np.array([head], "<u8"), w.bodies[s["plane"]][s["row"], s["column"]]]
        found.append((np.concatenate(beats), shapes[0].groups(direction)))
    return found


def _tile(direction: str, left: Rounded | np.ndarray, first: int, low: int, high: int, at: int) -> np.ndarray:
    rows, columns = slice(first, first + BLOCK), slice(low * BLOCK, high * BLOCK)
    if direction == "rows":
        return activations(Rounded(left.q[rows, columns], left.scale[rows, low:high]), at)
    return gradients(left[rows, columns], at)


def sums(beats: np.ndarray, groups: int) -> np.ndarray:
    """Beats of some groups -> float32 [32, 32 groups]."""
    return beats.view("<f4").reshape(groups, BLOCK, BLOCK).transpose(1, 0, 2).reshape(BLOCK, -1)
