"""A block of Q4_0 or Q8_0 a cycle -> 32 bfloat16: scale times code, rounded once to nearest, ties to even."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from anytune.fpga.rtl.parts import late, left, register
from anytune.fpga.rtl.streamed import Streamed, words


class Dequantizer(Streamed):
    """s_axis: 280 bits: a block as the file has it (34 bytes; 18 of them for Q4_0), then a byte that is 1 for Q8_0.
    m_axis: 32 bfloat16 in the file's order. The scale must be finite."""

    IN, OUT, STAGES = 280, 512, 10

    def pipeline(self, m: Module, data: Signal):
        scale, payload, eight = data[:16], data[16:272], data[272]
        nibbles = [word[half : half + 4] for half in (0, 4) for word in words(payload[:128], 8)]
        mantissa = late(m, Cat(scale[:10], scale[10:15].any()), 2)
        exponent = late(m, Mux(scale[10:15].any(), scale[10:15], 1) + 120, 8)
        sign = late(m, scale[15], 2)
        lanes = []
        for nibble, byte in zip(nibbles, words(payload, 8)):
            code = register(m, Mux(eight, byte, Cat(nibble[:3], ~nibble[3], *[~nibble[3]] * 4)))  # 1
            lanes.append(self._lane(m, code, mantissa, exponent, sign))
        return Cat(*lanes)

    def _lane(self, m: Module, code: Signal, mantissa, exponent, sign):
        code = register(m, code)  # 2
        negative = late(m, sign ^ code[7], 7)
        product = late(m, code.as_signed() * mantissa, 2)  # 4: multipliers lie far from what takes them
        product = register(m, Mux(product[-1], -product, product)[:19])  # 5
        a, by16 = left(product, 16)
        a, by8 = left(a, 8)
        zero = late(m, register(m, product == 0), 3)
        a, shift = register(m, a), register(m, Cat(by8, by16))  # 6
        a, by4 = left(a, 4)
        a, by2 = left(a, 2)
        a, shift = register(m, a), register(m, Cat(by2, by4, shift))  # 7
        a, by1 = left(a, 1)
        a, shift = register(m, a), register(m, Cat(by1, shift))  # 8
        e = register(m, (exponent - shift)[:8])  # 9
        kept, up = register(m, a[11:18]), register(m, a[10] & (a[:10].any() | a[11]))
        body = (Cat(kept, e) + up)[:15]
        return register(m, Cat(Mux(zero, Const(0, 15), body), negative))  # 10
