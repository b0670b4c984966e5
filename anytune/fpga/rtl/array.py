"""The array: 32 x 8 cells that hold weights, and for each column the sum over its 32 rows of activation times weight.

Every 32 cycles a column takes 32 new weights, which were shifted down a chain behind it meanwhile; so it gives a sum
a cycle, for token after token. A weight n of 0..15 is two digits, n - 10 = 4 (n[3:2] - 2) + (n[1:0] - 2), and a digit
times an activation a is one of -2a, -a, 0, a: a lookup table of four inputs a bit, in ones' complement. What is left
out is added behind the adder trees: a one for each negative digit, counted as the weights pass, and 10 or 2 times the
sum of the activations, for codes n or n - 8.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, Value, signed

from anytune.fpga.rtl.parts import late, register

ROWS, COLUMNS = 32, 8
DEPTH = 8  # cycles from an activation to its sum, in column 0


def tree(m: Module, values: list[Value]) -> Value:
    """Their sum, a level of two-input adders a cycle."""
    while len(values) > 1:
        values = [register(m, values[i] + values[i + 1]) for i in range(0, len(values), 2)]
    return values[0]


def digit(m: Module, a: Value, code: Value) -> Value:
    """(code - 2) a, less one if the digit is negative: signed 9 bits, a cycle later. code: 2 bits."""
    bits, doubled = Cat(a, a[-1]), Cat(Const(0, 1), a)
    chosen = Mux(code[1], Mux(code[0], bits, 0), ~Mux(code[0], bits, doubled))
    return register(m, chosen[:9].as_signed())


class Array(Elaboratable):
    """In: `weights`, 8 codes of 4 bits, one for each column, 32 cycles for a sub-tile; `start` with its first; `latch`
    in the cycle after its last and before the first `activations` [32]; `whole`: codes stand for themselves (else for
    n - 8). Column c is c cycles late in everything. Out: `sums` [8], DEPTH + c cycles behind the activations.
    """

    def __init__(self) -> None:
        self.weights, self.start, self.latch, self.whole = Signal(4 * COLUMNS), Signal(), Signal(), Signal()
        self.activations = [Signal(signed(8), name=f"activation{r}") for r in range(ROWS)]
        self.sums = [Signal(signed(17), name=f"sum{c}") for c in range(COLUMNS)]

    def elaborate(self, platform) -> Module:
        m = Module()
        total = tree(m, self.activations)  # 5 cycles later
        whole = late(m, self.whole, 5)
        offset = register(m, (total << 1) + (Mux(whole, total, 0) << 3))  # 6
        row, start, latch = list(self.activations), self.start, self.latch
        for c in range(COLUMNS):
            codes = late(m, self.weights[4 * c : 4 * c + 4], c)
            self._column(m, c, row, codes, start, latch, offset)
            row, offset = [register(m, a) for a in row], register(m, offset)
            start, latch = register(m, start), register(m, latch)
        return m

    def _column(self, m: Module, c: int, row: list, code: Value, start: Value, latch: Value, offset: Value) -> None:
        negatives, held, ours = (Signal(8, reset_less=True, name=f"{n}{c}") for n in ("negatives", "held", "ours"))
        m.d.sync += negatives.eq(Mux(start, 0, negatives) + ~code[1] + (~code[3] << 2))
        with m.If(latch):
            m.d.sync += held.eq(negatives)
        with m.If(late(m, latch, 6)):
            m.d.sync += ours.eq(held)
        low, high, waiting = [], [], code
        for r in range(ROWS):
            waiting = register(m, waiting)
            active = Signal(4, reset_less=True, name=f"w{r}_{c}")
            with m.If(latch):
                m.d.sync += active.eq(waiting)
            a = row[ROWS - 1 - r]  # the first weight in goes furthest
            low.append(digit(m, a, active[:2]))
            high.append(digit(m, a, active[2:]))
        both = register(m, tree(m, low) + (tree(m, high) << 2))
        m.d.sync += self.sums[c].eq(both + register(m, offset + ours))
