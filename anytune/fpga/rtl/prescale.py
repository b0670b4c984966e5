"""Scales put into the gradients: y d for 32 outputs of a token, as int8 times a power of two.

Eight at a time, four cycles for a token. The largest of the 32 gets 64 to 127 steps; ties to even.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.lane import SCALE
from anytune.fpga.rtl.parts import chain, late, register, zeros


class Prescale(Elaboratable):
    """In: `y`, 8 bfloat16, and `d`, 8 scales; `start` with a token's first eight. Out, DEPTH cycles later: `q`, 8 int8;
    `e`, the exponent (biased 127) of the token's step, 0 if that is too small, with each of them.
    """

    DEPTH = 16

    def __init__(self) -> None:
        self.start, self.y, self.d = Signal(), Signal(8 * 16), Signal(8 * SCALE)
        self.q, self.e = Signal(8 * 8), Signal(8)

    def elaborate(self, platform) -> Module:
        m = Module()
        one = Const(1, 1)
        start = chain(m, self.start, self.DEPTH)
        numbers, exponents = [], []
        for i in range(8):
            y, d = self.y[16 * i : 16 * i + 16], self.d[SCALE * i : SCALE * i + SCALE]
            p = register(m, register(m, Cat(y[:7], one) * Cat(d[:16], one)))  # 2: 25 bits
            e = late(m, y[7:15] + d[16:24], 2)
            zero, sign = late(m, (y[7:15] == 0) | (d[16:24] == 0), 2), late(m, y[15] ^ d[24], 2)
            n = register(m, Mux(p[24], p[:25], p[:25] << 1)[:25])  # 3
            e = register(m, Mux(zero, 0, e + p[24])[:9])
            exponents.append(e)
            numbers.append(Cat(n, e, register(m, sign)))
        while len(exponents) > 1:  # 6
            exponents = [register(m, Mux(a > b, a, b)) for a, b in zip(exponents[::2], exponents[1::2])]
        peak, so_far = exponents[0], Signal(9, reset_less=True)
        top = Mux(start[6] | (peak > so_far), peak, so_far)
        m.d.sync += so_far.eq(top)  # 7: at 10 of all four
        step = Signal(9, reset_less=True)
        with m.If(start[10]):
            m.d.sync += step.eq(so_far)  # 11, for four cycles
        for i, number in enumerate(numbers):
            m.d.comb += self.q[8 * i : 8 * i + 8].eq(self._round(m, late(m, number, 8), step))
        m.d.comb += self.e.eq(late(m, Mux(step < 134, 0, (step - 133)[:8]), 5))
        return m

    def _round(self, m: Module, number, step: Signal) -> Signal:
        n, e, sign = number[:25], number[25:34], number[34]
        gap = Signal(9)
        m.d.comb += gap.eq(step - e)
        by = register(m, Mux((gap > 8) | (e == 0), 8, gap)[:4])  # 12
        n = register(m, n)
        w, gone = register(m, (Cat(zeros(8), n) >> by[:3])[:33]), register(m, by[3])  # 13: 2^-26 of a step
        up, kept = register(m, ~gone & w[25] & (w[:25].any() | w[26])), register(m, Mux(gone, 0, w[26:33]))
        size = register(m, (kept + up)[:8])  # 15
        clipped = Mux(size[7], 127, size[:7])
        return register(m, Mux(late(m, sign, 4), -clipped, clipped)[:8])
