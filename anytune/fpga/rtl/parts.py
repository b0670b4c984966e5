"""Registers and shifts that all designs use. Data registers have no reset, only what says whether data counts."""

from __future__ import annotations

from collections.abc import Iterable

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.memory import Memory


def register(m: Module, value, reset: bool = False) -> Signal:
    """value a cycle later. reset: zero after a reset, for what controls."""
    value = Value.cast(value)
    out = Signal(value.shape(), reset_less=not reset)
    m.d.sync += out.eq(value)
    return out


def chain(m: Module, value, n: int, reset: bool = False) -> list[Value]:
    """[value, a cycle later, … n cycles later]."""
    out = [Value.cast(value)]
    for _ in range(n):
        out.append(register(m, out[-1], reset))
    return out


def late(m: Module, value, n: int, reset: bool = False) -> Value:
    """value n cycles later."""
    return chain(m, value, n, reset)[n]


def copies(m: Module, value, n: int) -> list[Signal]:
    """n registers of the same value, for readers that lie far apart: verilog.py keeps synthesis from merging them."""
    found = []
    for i in range(n):
        found.append(Signal(len(Value.cast(value)), reset_less=True, name=f"copy{i}"))
        m.d.sync += found[-1].eq(value)
    return found


def zeros(n: int) -> Const:
    return Const(0, n)


def left(x: Value, n: int) -> tuple[Value, Value]:
    """(x shifted up by n if its top n bits are zero, whether they are)."""
    empty = x[-n:] == 0
    return Mux(empty, Cat(zeros(n), x[:-n]), x), empty


def right(x: Value, n: int, on: Value) -> Value:
    """x shifted down by n if `on`; bit 0 gathers what falls out."""
    return Mux(on, Cat(x[1 : n + 1].any() | x[0], x[n + 1 :], zeros(n)), x)


def memory(m: Module, name: str, width: int, depth: int, domain: str = "sync") -> tuple:
    """(read port, write port) of a memory; what a read gives that meets a write of its address is not defined."""
    m.submodules[name] = mem = Memory(shape=width, depth=depth, init=[])
    return mem.read_port(domain=domain), mem.write_port()


def either(values: Iterable[Value]) -> Value:
    out = None
    for value in values:
        out = value if out is None else out | value
    return out


def half_to_scale(m: Module, h: Value) -> tuple[Value, int]:
    """A float16 as scales are kept: 16 bits of fraction, 8 of exponent (biased 127, 0: zero), sign. (value, cycles)."""
    fraction = h[:10]
    place, wide = Signal(4), Signal(10)
    for i in range(10):  # a subnormal's leading one
        with m.If(fraction[i]):
            m.d.comb += [place.eq(i), wide.eq(Cat(zeros(10 - i), fraction[:i]))]
    first = register(m, Cat(h, place, wide))
    h, place, wide = first[:16], first[16:20], first[20:30]
    small = Mux(h[:10] == 0, 0, Cat(wide, (place + 103)[:8]))
    body = Mux(h[10:15] == 0, small, Cat(h[:10], (h[10:15] + 112)[:8]))
    return register(m, Cat(zeros(6), body[:18], h[15])), 2
