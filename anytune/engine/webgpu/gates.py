"""The gate of a shared expert, and gpt-oss's clamped product."""

from __future__ import annotations

from .arrays import Array, row_cuts
from .kernels import experts as _kernels


def gate_rows(e, x: Array, gate: Array) -> Array:
    out = e.array(*x.shape)
    for a, b in row_cuts(e.device.max_binding, x, gate, out):
        e.commands.run(
            _kernels.gate_rows(),
            [x.bind(a, b), gate.bind(a, b), out.bind(a, b)],
            (x.columns, x.stride, gate.stride, out.stride),
            e.grid(x.columns, b - a),
        )
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
    out = e.array(*gate.shape)
    for a, b in row_cuts(e.device.max_binding, gate, up, out):
        e.commands.run(
            _kernels.clamped_glu(),
            [gate.bind(a, b), up.bind(a, b), out.bind(a, b)],
            (gate.columns, gate.stride, up.stride, out.stride),
            e.grid(gate.columns, b - a),
            10.0 * (b - a) * gate.columns,
        )
    return out


def clamped_glu_backward(e, dy: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    dgate, dup = e.columns(gate.rows, gate.columns, gate.columns)
    for a, b in row_cuts(e.device.max_binding, dy, gate, up, dgate):
        e.commands.run(
            _kernels.clamped_glu_backward(),
            [dy.bind(a, b), gate.bind(a, b), up.bind(a, b), dgate.bind(a, b), dup.bind(a, b)],
            (gate.columns, dy.stride, gate.stride, up.stride, dgate.stride),
            e.grid(gate.columns, b - a),
            20.0 * (b - a) * gate.columns,
        )
    return dgate, dup
