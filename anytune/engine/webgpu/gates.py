"""The gate of a shared expert, and gpt-oss's clamped product."""

from __future__ import annotations

from .arrays import Array, row_cuts
from .kernels import experts as _kernels
from .rows import by_element


def gate_rows(e, x: Array, gate: Array) -> Array:
    out = e.array(*x.shape)
    by_element(e, _kernels.gate_rows(), x, gate, out)
    return out


def gate_rows_backward(e, dy: Array, x: Array, gate: Array) -> tuple[Array, Array]:
    dx, dgate = e.array(*x.shape), e.array(*gate.shape)
    for a, b in row_cuts(e.device.max_binding, dy, x, gate, dx, dgate):
        e.commands.run(
            _kernels.gate_rows_backward(),
            [dy.bind(a, b), x.bind(a, b), gate.bind(a, b), dx.bind(a, b), dgate.bind(a, b)],
            (x.columns, dy.stride, x.stride, gate.stride, dx.stride, dgate.stride),
            (b - a,),
            4.0 * (b - a) * x.columns,
        )
    return dx, dgate


def clamped_glu(e, gate: Array, up: Array) -> Array:
    return e.glu(gate, up, "clamped")


def clamped_glu_backward(e, dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    return e.glu_backward(dy, gate, up, "clamped")
