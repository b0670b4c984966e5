"""What a product costs on the engine: cycles, squares and bytes, from its schedule alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytune.fpga.formats import BLOCK
from anytune.fpga.schedule import Shape, count, parts

SQUARE = 128                                      # cycles of a square: 32³ products on 32 x 8 cells
FILL = {"rows": 200, "columns": 329}              # from the first square's start to its last sum


@dataclass(frozen=True)
class Cost:
    """cycles of the clock; squares computed; bytes that enter and leave through the streams."""
    cycles: int
    squares: int
    bytes_in: int
    bytes_out: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cycles + other.cycles, self.squares + other.squares, self.bytes_in + other.bytes_in,
                    self.bytes_out + other.bytes_out)


def cost(direction: str, shapes: Sequence[Shape], tokens: int) -> Cost:
    """Of one product for `tokens` rows of the left operand, with streams that never wait."""
    tiles, pieces = -(-tokens // BLOCK), parts(direction, shapes)
    blocks = sum(high - low for part in pieces for _, low, high in part)
    squares, groups = count(direction, shapes), shapes[0].groups(direction)
    load = blocks * (136 if direction == "rows" else 256) + len(pieces)
    cycles = squares * SQUARE + load + FILL[direction] * len(pieces)
    return Cost(tiles * cycles, tiles * squares, tiles * (8 * load + squares * 584),
                tiles * groups * len(pieces) * BLOCK * BLOCK * 4)
