"""What goes row by row: the embedding, sums, norms, rope and gated products, and rows that are picked and put back."""

from __future__ import annotations

import numpy as np
from anytune.engine.base import Heads
from . import plain
from .layout import slots_of
from .weights import Weight

ACTIVATIONS = {"silu": plain.SILU, "gelu": plain.GELU}


def embed(e, ids: np.ndarray, table: Weight, scale: float) -> np.ndarray:
    x = e.array(ids.shape[0], table.in_features)

    def rows(low: int, high: int) -> None:
        table.gather(ids[low:high], x[low:high])
        if scale != 1.0:
            x[low:high] *= np.float32(scale)

    e.workers.rows(ids.shape[0], rows, 128)
    return x


def gather(e, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = e.array(rows.shape[0], x.shape[1])

    def some(low: int, high: int) -> None:
        out[low:high] = x[rows[low:high]]

    e.workers.rows(rows.shape[0], some, 128)
    return out


def scatter(e, y: np.ndarray, rows: np.ndarray, tokens: int) -> np.ndarray:
    out = e.array(tokens, y.shape[1])
    out[...] = 0
    out[rows] = y
    return out


def rms_norm(e, x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    return e._norm(x, gain, eps, 1)


def _norm(e, x, gain, eps: float, heads: int) -> np.ndarray:
    y = e.array(*x.shape)
    e.workers.rows(x.shape[0], lambda a, b: e.kernels.rms_norm(x[a:b], gain, eps, heads, y[a:b]), 128)
    return y


def rms_norm_backward(e, dy, x, gain, eps: float, residual=None) -> np.ndarray:
    return e._norm_backward(dy, x, gain, eps, 1, residual, e.array(*x.shape))


def _norm_backward(e, dy, x, gain, eps: float, heads: int, residual, dx) -> np.ndarray:
    e.workers.rows(
        x.shape[0],
        lambda a, b: e.kernels.rms_norm_backward(
            dy[a:b], x[a:b], gain, eps, heads, None if residual is None else residual[a:b], dx[a:b]
        ),
        128,
    )
    return dx


def qk_norm_rope(e, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool):
    if gains is not None:
        q, k = (e._norm(x, gain, eps, n) for x, gain, n in zip((q, k), gains, (heads.n_heads, heads.n_kv_heads)))
    for x, n in ((q, heads.n_heads), (k, heads.n_kv_heads)):
        e._turn(x, table, positions, n, neox, 1.0)
    return q, k


def qk_norm_rope_backward(
    e, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
):
    for dx, x, n, at in ((dq, q, heads.n_heads, 0), (dk, k, heads.n_kv_heads, 1)):
        e._turn(dx, table, positions, n, neox, -1.0)
        if into[at] is not None:
            e.gain_gradient(dx, x, eps, into[at])
        if gains is not None:
            e._norm_backward(dx, x, gains[at], eps, n, None, dx)
    return dq, dk


def _turn(e, x, table, positions, heads: int, neox: bool, sign: float) -> None:
    cos, sin = table

    def rows(a: int, b: int) -> None:
        part = x[a:b]
        e.kernels.rope(part, cos, sin, positions[a:b], heads, neox, sign, part)

    e.workers.rows(x.shape[0], rows, 128)


def glu(e, gate, up, activation: str) -> np.ndarray:
    y, kind = e.array(*gate.shape, slots=slots_of(e, gate)), ACTIVATIONS[activation]
    e.workers.rows(gate.shape[0], lambda a, b: e.kernels.glu(gate[a:b], up[a:b], kind, y[a:b]), 32)
    return y


def glu_backward(e, dy, gate, up, activation: str):
    both, kind = e.array(gate.shape[0], 2 * gate.shape[1], slots=slots_of(e, gate)), ACTIVATIONS[activation]
    dgate, dup = both[:, : gate.shape[1]], both[:, gate.shape[1] :]
    e.workers.rows(
        gate.shape[0], lambda a, b: e.kernels.glu_backward(dy[a:b], gate[a:b], up[a:b], kind, dgate[a:b], dup[a:b]), 32
    )
    return dgate, dup


def add(e, x, y) -> np.ndarray:
    """x + y, written over y (which its caller gives up)."""
    e.workers.rows(x.shape[0], lambda a, b: e.kernels.add(x[a:b], y[a:b], y[a:b]), 128)
    return y


def scale(e, x, factor: float | np.ndarray) -> np.ndarray:
    y, by_row = e.array(*x.shape), np.ndim(factor) > 0

    def rows(low: int, high: int) -> None:
        np.multiply(x[low:high], factor[low:high] if by_row else np.float32(factor), out=y[low:high])

    e.workers.rows(x.shape[0], rows, 64)
    return y
