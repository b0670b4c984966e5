"""Gated products: GLUs, the gates of mixers and of a shared expert, and gpt-oss's clamped product."""

from __future__ import annotations

from .arrays import Array, row_cuts
from .groups import Group
from .kernels import gates as _kernels
from .rows import by_element


def glu(e, gate: Array, up: Array, activation: str) -> Array:
    out = e.array(*gate.shape)
    by_element(e, _kernels.glu(activation), gate, up, out, flops=10.0)
    return out


def glu_backward(e, dy: Array, gate: Array, up: Array, activation: str) -> tuple[Array, Array]:
    dgate, dup = e.columns(gate.rows, gate.columns, gate.columns)
    by_element(e, _kernels.glu_backward(activation), dy, gate, up, dgate, dup, flops=20.0)
    return dgate, dup


def glu_linear_backward(e, dy, gate: Array, up: Array, activation: str, group: Group, then, need_dx: bool = True):
    """As composed.py's; the gradients lie where gate and up lay."""
    da = e.linear_backward((dy,), e.glu(gate, up, activation), group, need_dx)
    if not need_dx:
        return None
    by_element(e, _kernels.glu_backward(activation, over=True), da, gate, up, flops=20.0)
    return gate, up


def gated(e, x: Array, gate: Array, activation: str) -> Array:
    return e.glu(gate, x, activation)


def gated_backward(e, dy: Array, x: Array, gate: Array, activation: str) -> tuple[Array, Array]:
    dgate, dx = e.glu_backward(dy, gate, x, activation)
    return dx, dgate


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
