"""32 bfloat16 a cycle -> a block of Q4_0, ggml's bytes.

ggml: the number m that is largest in size (the first of equals) gives d = m / -8, the codes are x (1 / d) + 8.5 cut to
an integer, 15 at most, each operation rounded to float32, and d is stored as float16. m has eight significant bits, so
1 / d is one of 128 mantissas; the rest is a multiplication of 8 by 24 bits and its roundings.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from anytune.fpga.rtl.parts import late, register, zeros
from anytune.fpga.rtl.streamed import Streamed, words


def reciprocals() -> list[int]:
    """RN(2^24 / m) for m = 1 + i/128: the float32 mantissas of 1/m, 2^23 to 2^24."""
    found = []
    for i in range(128):
        whole, rest = divmod(128 << 24, 128 + i)
        found.append(whole + (2 * rest > 128 + i or (2 * rest == 128 + i and whole & 1)))
    return found


def by_inverse(m: Module, x, inverse) -> Signal:
    """The 8 bits of x's mantissa times 24 or 25 of 1 / d, in two multipliers; 2 cycles."""
    mantissa = Cat(x[:7], Const(1, 1))
    low, high = register(m, mantissa * inverse[:13]), register(m, mantissa * inverse[13:])
    return register(m, ((high << 13) + low)[:33])


def rounded_to_24(m: Module, product) -> tuple[Signal, Signal]:
    """A product of 31 or 32 bits as float32 rounds it: (24 bits, or 2^24; whether it had 32 bits); a cycle."""
    big = product[31]
    up = Mux(big, product[7] & (product[:7].any() | product[8]), product[6] & (product[:6].any() | product[7]))
    return register(m, (Mux(big, product[8:32], product[7:31]) + up)[:25]), register(m, big)


class Quantizer(Streamed):
    """s_axis: 32 bfloat16, finite, the largest of them 0 or at least 2^-120. m_axis: the 18 bytes of the block."""

    IN, OUT, STAGES = 512, 144, 13

    def pipeline(self, m: Module, data: Signal):
        peaks = words(data, 16)
        while len(peaks) > 1:  # 5
            peaks = [register(m, Mux(b[:15] > a[:15], b, a)) for a, b in zip(peaks[::2], peaks[1::2])]
        peak, x = peaks[0], late(m, data, 5)
        rom = Signal(25)
        with m.Switch(peak[:7]):
            for i, value in enumerate(reciprocals()):
                with m.Case(i):
                    m.d.comb += rom.eq(value)
        inverse, sign = late(m, rom, 2), late(m, ~peak[15], 2)  # 7
        exponent, nothing, x = late(m, peak[7:15], 2), late(m, peak[7:15] == 0, 2), late(m, x, 2)
        lanes = [self._lane(m, word, inverse, sign, exponent, nothing) for word in words(x, 16)]
        scale = late(m, self._half(m, peak), 4)
        return Cat(scale, *(Cat(a, b) for a, b in zip(lanes[:16], lanes[16:])))

    def _half(self, m: Module, peak: Signal):
        """d = peak / -8 as float16; 4 cycles."""
        exponent = peak[7:15]
        place = Signal(10)
        m.d.comb += place.eq(exponent - 115)  # of d, biased 15, in two's complement
        below = Signal(9)
        m.d.comb += below.eq(115 - exponent)
        by = register(m, Mux(place[9], Mux(below > 22, 23, below)[:5], 0))
        normal = register(m, ~place[9] & (place != 0))
        huge = register(m, ~place[9] & (place > 30))
        fraction, place, sign, zero = (register(m, v) for v in (peak[:7], place[:5], ~peak[15], exponent == 0))
        wide = register(m, (Cat(zeros(14), fraction, Const(1, 1)) >> by)[:22])
        up = wide[11] & (wide[:11].any() | wide[12])
        small = register(m, Mux(late(m, zero, 1), 0, (wide[12:22] + up)[:11]))
        normal, huge, fraction, place = (late(m, v, 2) for v in (normal & ~zero, huge, fraction, place))
        size = Mux(huge, Const(0x7C00, 15), Mux(normal, Cat(zeros(3), fraction, place), small))
        return register(m, Cat(size[:15], late(m, sign, 2)))

    def _lane(self, m: Module, x, inverse, sign, exponent, nothing):
        product, negative = by_inverse(m, x, inverse), late(m, x[15] ^ sign, 2)  # 9: 33 bits
        gap = Signal(9)
        m.d.comb += gap.eq(exponent - x[7:15])
        gap = late(m, Mux(nothing | (x[7:15] == 0) | (gap > 31), 31, gap)[:5], 2)
        rounded, big = rounded_to_24(m, product)  # 10
        negative, gap = register(m, negative), register(m, gap)
        shifted = register(m, (Mux(big, rounded << 4, rounded << 3) >> gap)[:29])  # 11
        negative = register(m, negative)
        half = Mux(negative, Mux(shifted >= (4 << 24), 0, 4), 8)  # what rounds to float32's last place
        total = Mux(negative, (17 << 23) - shifted, (17 << 23) + shifted)
        total, half = register(m, total[:30]), register(m, half)  # 12
        code = (total + half)[24:29]
        return register(m, Mux(code[4], 15, code[:4]))  # 13
