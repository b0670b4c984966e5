"""32 bfloat16 a cycle -> a block of Q8_0, ggml's bytes.

ggml: the largest size m gives d = m / 127, the codes are x (1 / d) to the nearest integer, halves away from zero, each
operation rounded to float32, and d is stored as float16. m has eight significant bits, so d and 1 / d are each one of
128 mantissas, and one of two exponents beside m's.
"""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal

from anytune.fpga.rtl.parts import late, register, zeros
from anytune.fpga.rtl.quantizer import by_inverse, rounded_to_24
from anytune.fpga.rtl.streamed import Streamed, words


def mantissas() -> tuple[list[int], list[int]]:
    """For m = 1 + i/128: d = RN(m / 127) and RN(1 / d), each as 24 bits of float32 and, above them, one that is set if
    d >= 2^-6, or 1 / d >= 2^6."""
    m = (1 + np.arange(128) / 128).astype(np.float32)
    d = m / np.float32(127)
    found = []
    for values, edge in ((d, 2.0**-6), (np.float32(1) / d, 64.0)):
        bits = values.view(np.uint32)
        found.append([int(b & 0x7FFFFF | 1 << 23 | (v >= edge) << 24) for b, v in zip(bits.tolist(), values.tolist())])
    return found[0], found[1]


class QuantizerQ8(Streamed):
    """s_axis: 32 bfloat16, finite, the largest of them 0 or at least 2^-118. m_axis: the 34 bytes of the block."""

    IN, OUT, STAGES = 512, 272, 13

    def pipeline(self, m: Module, data: Signal):
        sizes = [x[:15] for x in words(data, 16)]
        while len(sizes) > 1:  # 5
            sizes = [register(m, Mux(b > a, b, a)) for a, b in zip(sizes[::2], sizes[1::2])]
        peak, x = sizes[0], late(m, data, 7)
        scale, inverse = Signal(25), Signal(25)
        with m.Switch(peak[:7]):
            for i, (d, by) in enumerate(zip(*mantissas())):
                with m.Case(i):
                    m.d.comb += [scale.eq(d), inverse.eq(by)]
        exponent, inverse = late(m, peak[7:], 2), late(m, inverse, 2)  # 7
        lanes = [self._lane(m, word, inverse, exponent) for word in words(x, 16)]
        return Cat(late(m, self._half(m, register(m, scale), register(m, peak[7:])), 3), *lanes)

    def _half(self, m: Module, scale, exponent):
        """d as float16; from 6 to 10. exponent: of m, biased 127; 0: all is zero."""
        place = Signal(10)  # of d, biased 15, in two's complement
        m.d.comb += place.eq(exponent - 119 + scale[24])
        below = Signal(10)
        m.d.comb += below.eq(1 - place)
        small = place[9] | (place == 0)
        by = register(m, Mux(small, Mux(below > 14, 14, below), 0)[:4])  # 7
        base = register(m, Mux(small, 0, place - 1)[:8])
        zero, huge = register(m, exponent == 0), register(m, ~place[9] & (place > 30))
        wide = register(m, (Cat(zeros(14), register(m, scale[:24])) >> by)[:38])  # 8
        up = wide[26] & (wide[:26].any() | wide[27])
        size = register(m, (Cat(zeros(10), late(m, base, 1)[:5]) + wide[27:] + up)[:15])  # 9
        zero, huge = late(m, zero, 2), late(m, huge, 2)
        return register(m, Cat(Mux(zero, 0, Mux(huge, 0x7C00, size))[:15], zeros(1)))  # 10

    def _lane(self, m: Module, x, inverse, exponent):
        product, negative = by_inverse(m, x, inverse[:24]), late(m, x[15], 5)  # 9
        gap = Signal(9)
        m.d.comb += gap.eq(exponent - x[7:15])
        gap = late(m, Mux((x[7:15] == 0) | (gap > 31), 31, gap)[:5], 3)
        double = late(m, inverse[24], 3)
        rounded, big = rounded_to_24(m, product)  # 10
        high = Mux(big & double, rounded << 2, Mux(big | double, rounded << 1, rounded))
        shifted = register(m, (high >> gap)[:27])  # 11: 18 bits after the point
        code = register(m, (shifted + (1 << 17))[18:26])  # 12
        return register(m, Mux(negative, -code, code)[:8])  # 13
