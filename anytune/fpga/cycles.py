"""What a product costs on the engine: cycles, squares and bytes, from its schedule alone.

The count is the RTL's own when no stream waits; the tests compare the two. A tile is loaded, then squares follow each
other every 128 cycles; sums leave at 512 cycles for each 32 outputs, which is the longer where a sum has fewer than
four squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anytune.fpga.formats import BLOCK
from anytune.fpga.schedule import Shape, parts

SQUARE = 128  # cycles of a square: 32³ products on 32 x 8 cells
LOAD = {"rows": 136, "columns": 256}  # beats of a block of the left operand's tile
FILL = {"rows": 214, "columns": 343}  # from the tile's last beat to the first sum, less one square
DRAIN = BLOCK * BLOCK // 2  # beats of the sums of 32 outputs


@dataclass(frozen=True)
class Cost:
    """cycles of the clock; squares computed; bytes that enter and leave through the streams."""

    cycles: int = 0
    squares: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.cycles + other.cycles,
            self.squares + other.squares,
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.cycles * times, self.squares * times, self.bytes_in * times, self.bytes_out * times)


def cost(direction: str, shapes: Sequence[Shape], tokens: int) -> Cost:
    """Of one product for `tokens` rows of the left operand, with streams that never wait."""
    total, groups = Cost(), shapes[0].groups(direction)
    for part in parts(direction, shapes):
        blocks = sum(high - low for _, low, high in part)
        length = sum((high - low) * shapes[term].planes for term, low, high in part)
        beats = sum((high - low) * shapes[term].beats for term, low, high in part) * groups
        load = LOAD[direction] * blocks  # and a head for each term
        total += Cost(
            load
            + FILL[direction]
            + max(SQUARE * length * groups + DRAIN, SQUARE * length + DRAIN * groups)
            + len(part)
            - 1
            + shapes[part[0][0]].wide,
            length * groups,
            8 * (load + len(part) + beats),
            8 * DRAIN * groups,
        )
    return total * -(-tokens // BLOCK)
