"""One schedule: the list of squares that a product is made of, in the engine's order.

A product sums terms, each a left operand times a stored matrix [N, K]:

    rows      out[t, n] = Σ_k x[t, k] W[n, k]      forward; the left operand is Rounded [T, K]
    columns   out[t, k] = Σ_n y[t, n] W[n, k]      backward; the left operand has bfloat16's values [T, N]

The engine works on tiles of 32 of the left operand's rows. For each 32 outputs it takes, term after term, the squares
of 32 x 32 weights along what is summed, and of each square its planes. Tile memory holds TILE blocks of 32 bytes for
each row (a block of bfloat16 takes two); a longer sum is cut into parts, whose results are added in float32 outside.

Twin, driver, cycles and tests all follow `parts` and `squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anytune.fpga.formats import BLOCK, Matrix

TILE = 256  # blocks of tile memory
SQUARE = np.dtype(
    [("term", "u2"), ("plane", "u1"), ("row", "u4"), ("column", "u4"), ("at", "u2"), ("first", "?"), ("last", "?")]
)

# format -> planes, whether the last is of ones, whether scales have more bits than float16's
PLANES = {
    "Q4_0": (1, False, False),
    "Q8_0": (2, False, False),
    "Q4_1": (2, True, False),
    "Q5_0": (2, False, False),
    "Q5_1": (3, True, False),
    "Q4_K": (2, True, True),
}


@dataclass(frozen=True)
class Shape:
    """What the schedule needs to know of a matrix: blocks along N and K, planes, and what a square takes in the stream.

    ones: the last plane has no codes; wide: scales take 32 bits. `PLANES` has them for each format.
    """

    rows: int
    columns: int
    planes: int
    ones: bool = False
    wide: bool = False

    @staticmethod
    def of(matrix: Matrix) -> Shape:
        n, k = matrix.shape
        return Shape(n // BLOCK, k // BLOCK, matrix.planes, matrix.ones, matrix.wide)

    @staticmethod
    def named(name: str, n: int, k: int) -> Shape:
        """Of a weight [n, k] of a format of the file, n of any size."""
        return Shape(-(-n // BLOCK), k // BLOCK, *PLANES[name])

    @property
    def beats(self) -> int:
        """Beats of 8 bytes of a square of all planes: a head, scales and codes of each."""
        return self.planes * (17 if self.wide else 9) + 64 * (self.planes - self.ones)

    def length(self, direction: str) -> int:
        """Blocks along what is summed."""
        return self.columns if direction == "rows" else self.rows

    def groups(self, direction: str) -> int:
        """Blocks of outputs."""
        return self.rows if direction == "rows" else self.columns


def parts(direction: str, shapes: Sequence[Shape]) -> list[list[tuple[int, int, int]]]:
    """[[(term, first block, end block)]]: what of the sum tile memory holds at a time."""
    room = TILE if direction == "rows" else TILE // 2
    found: list[list[tuple[int, int, int]]] = [[]]
    left = room
    for term, shape in enumerate(shapes):
        at, end = 0, shape.length(direction)
        while at < end:
            if not left:
                found.append([])
                left = room
            take = min(left, end - at)
            found[-1].append((term, at, at + take))
            at, left = at + take, left - take
    return found


def squares(direction: str, shapes: Sequence[Shape], part: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The squares [.] of one part of a product for one tile, dtype SQUARE."""
    one = [
        (term, plane, block, at)
        for at, (term, block) in enumerate((term, block) for term, low, high in part for block in range(low, high))
        for plane in range(shapes[term].planes)
    ]
    groups = shapes[part[0][0]].groups(direction)
    out = np.zeros((groups, len(one)), SQUARE)
    term, plane, block, at = (np.array(values) for values in zip(*one))
    outputs = np.arange(groups)[:, None]
    out["term"], out["plane"], out["at"] = term, plane, at
    out["row"], out["column"] = (outputs, block) if direction == "rows" else (block, outputs)
    out["first"][:, 0] = out["last"][:, -1] = True
    return out.reshape(-1)


def count(direction: str, shapes: Sequence[Shape]) -> int:
    """Squares of a product for one tile."""
    return shapes[0].groups(direction) * sum(shape.length(direction) * shape.planes for shape in shapes)
