"""One column's float32 sums: each cycle an integer times its scales, rounded once, is added to one of 128 sums.

P sa sw is rounded to float32, then added in float32, both to nearest, ties to even; what would be subnormal is zero.
The numbers of the comments count cycles.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal, signed

from anytune.fpga.rtl.parts import chain, late, left, memory, register, right, zeros

SCALE = 25  # bits: fraction 16, exponent 8, sign


class Lane(Elaboratable):
    """In: `p`; `sa` (10 bits of fraction, 8 of exponent); `high`: times 16; `valid`, `first`, `last`, `at`: which sum,
    and whether it begins or ends. `sw` is taken when `load`, one cycle before the first p that it is for.
    Out, DEPTH cycles later: `out`, `out_at`, and `out_valid` if it was the last.
    """

    DEPTH = 21

    def __init__(self) -> None:
        self.p, self.sa, self.high = Signal(signed(17)), Signal(18), Signal()
        self.sw, self.load = Signal(SCALE), Signal()
        self.valid, self.first, self.last, self.at = Signal(), Signal(), Signal(), Signal(7)
        self.out, self.out_valid, self.out_at = Signal(32), Signal(), Signal(7)

    def elaborate(self, platform) -> Module:
        m = Module()
        valid = chain(m, self.valid, self.DEPTH, reset=True)
        rest = chain(m, Cat(self.first, self.last, self.at), self.DEPTH)
        y = self._product(m)  # 8
        read, write = memory(m, "sums", 32, 128)
        m.d.comb += read.addr.eq(rest[5][2:])
        x = register(m, Mux(rest[7][0], 0, register(m, read.data)))  # 8
        out = self._add(m, x, y)  # 21
        m.d.comb += [
            write.addr.eq(rest[21][2:]),
            write.data.eq(out),
            write.en.eq(valid[21]),
            self.out.eq(out),
            self.out_valid.eq(valid[21] & rest[21][1]),
            self.out_at.eq(rest[21][2:]),
        ]
        return m

    def _product(self, m: Module) -> Signal:
        sw = Signal(SCALE, reset_less=True)
        with m.If(self.load):
            m.d.sync += sw.eq(self.sw)
        one = Const(1, 1)
        size = Signal(17)
        m.d.comb += size.eq(Mux(self.p[16], -self.p, self.p))
        # 1: magnitudes
        p, negative = register(m, size[:16]), register(m, self.p[16] ^ sw[24])
        ma, mw = register(m, Cat(self.sa[:10], one)), register(m, Cat(sw[:16], one))
        e = register(m, (self.sa[10:] + sw[16:24] + Mux(self.high, 4, 0))[:10])
        zero = register(m, (size == 0) | (self.sa[10:] == 0) | (sw[16:24] == 0))
        # 2, 3: the leading one of |P|; the product of the scales
        scales = late(m, ma * mw, 2)
        a, by8 = left(p, 8)
        a, by4 = left(a, 4)
        p, shift = register(m, a), register(m, Cat(by4, by8))
        a, by2 = left(p, 2)
        a, by1 = left(a, 1)
        p, shift = register(m, a), register(m, Cat(by1, by2, shift))
        # 4, 5: 16 bits times 28
        low, high = register(m, p * scales[:14]), register(m, p * scales[14:])
        e = register(m, (late(m, e, 2) - shift)[:11])
        product, e = register(m, ((high << 14) + low)[:44]), register(m, e)
        # 6: 24 bits, one to round by, and whether anything is left; 7: rounded
        kept, sticky, e6 = Signal(25, reset_less=True), Signal(reset_less=True), Signal(11, reset_less=True)
        with m.If(product[43]):
            m.d.sync += [kept.eq(product[19:44]), sticky.eq(product[:19].any()), e6.eq(e - 110)]
        with m.Elif(product[42]):
            m.d.sync += [kept.eq(product[18:43]), sticky.eq(product[:18].any()), e6.eq(e - 111)]
        with m.Else():
            m.d.sync += [kept.eq(product[17:42]), sticky.eq(product[:17].any()), e6.eq(e - 112)]
        m7 = register(m, (kept[1:] + (kept[0] & (sticky | kept[1])))[:25])
        e7, negative, zero = register(m, e6), late(m, negative, 6), late(m, zero, 6)
        body = Signal(34)
        m.d.comb += body.eq(Cat(Mux(m7[24], m7[1:24], m7[:23]), (e7 + m7[24])[:11]))
        return register(m, Mux(zero | body[31:34].any() | (body[23:31] == 0), 0, Cat(body[:31], negative)))

    def _add(self, m: Module, x: Signal, y: Signal) -> Signal:
        # 9: compare; 10: swap; 11: distance
        less, x, y = register(m, x[:31] < y[:31]), register(m, x), register(m, y)
        big, small = register(m, Mux(less, y, x)), register(m, Mux(less, x, y))
        distance = Signal(8)
        m.d.comb += distance.eq(big[23:31] - small[23:31])
        by = register(m, Mux(distance > 31, 31, distance)[:5])
        mb = register(m, Cat(big[:23], big[23:31].any()))
        ms = register(m, Cat(small[:23], small[23:31].any()))
        apart, e, sign = register(m, big[31] ^ small[31]), register(m, big[23:31]), register(m, big[31])
        # 12-15: align; three bits below the last
        a = Cat(zeros(3), ms)
        for n in (16, 8, 4):
            a, by = register(m, right(a, n, by[-1])), register(m, by[:-1])
        a = register(m, right(right(a, 2, by[1]), 1, by[0]))
        mb, apart15 = Cat(zeros(3), late(m, mb, 4)), late(m, apart, 4)
        # 16: add; 17-19: the leading one; 20, 21: round
        total = register(m, Mux(apart15, mb - a, mb + a)[:28])
        a, by16 = left(total, 16)
        a, by16 = register(m, a), register(m, by16)
        a, by8 = left(a, 8)
        a, by4 = left(a, 4)
        a, shift = register(m, a), register(m, Cat(by4, by8, by16))
        a, by2 = left(a, 2)
        a, by1 = left(a, 1)
        a, shift = register(m, a), register(m, Cat(by1, by2, shift))
        e = register(m, (late(m, e, 8) + 1 - shift)[:10])  # signed; not above 0: nothing is left
        m20, up = register(m, a[4:]), register(m, a[3] & (a[:3].any() | a[4]))
        full = Signal(31)
        m.d.comb += full.eq(Cat(m20[:23], e[:8]) + up)
        gone = ~m20[23] | e[9] | (e[:9] == 0)
        return register(m, Mux(gone, 0, Cat(full, late(m, sign, 9))))
