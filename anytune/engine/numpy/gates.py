"""Gates: of a clamped product, of an expert that all tokens go to, of what attention gave, whose heads come in two."""

from __future__ import annotations

import numpy as np

from .convolution import sigmoid
from .layout import slots_of


def _clamped(gate, up):
    g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
    with np.errstate(over="ignore"):
        return g, u, sigmoid(np.float32(1.702) * g)


def clamped_glu(e, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """As base.py has it."""
    y = e.array(*gate.shape, slots=slots_of(e, gate))

    def rows(low: int, high: int) -> None:
        g, u, s = _clamped(gate[low:high], up[low:high])
        np.multiply(g * s, u + 1, out=y[low:high])

    e.workers.rows(gate.shape[0], rows, 64)
    return y


def clamped_glu_backward(e, dy, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = gate.shape[1]
    both = e.array(gate.shape[0], 2 * width, slots=slots_of(e, gate))
    dgate, dup = both[:, :width], both[:, width:]

    def rows(low: int, high: int) -> None:
        g, u, s = _clamped(gate[low:high], up[low:high])
        slope = s * (1 + np.float32(1.702) * g * (1 - s))
        dgate[low:high] = dy[low:high] * (u + 1) * slope * (gate[low:high] <= 7)
        dup[low:high] = dy[low:high] * g * s * (np.abs(up[low:high]) <= 7)

    e.workers.rows(gate.shape[0], rows, 64)
    return dgate, dup


def gate_rows(e, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    out, by = e.array(*x.shape), sigmoid(gate)
    np.multiply(x, by, out=out)
    return out


def gate_rows_backward(e, dy: np.ndarray, x: np.ndarray, gate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dx, dgate, by = e.array(*x.shape), e.array(*gate.shape), sigmoid(gate)
    np.multiply(dy, by, out=dx)
    dgate[...] = np.einsum("tn,tn->t", dy, x)[:, None] * by * (1 - by)
    return dx, dgate


def split_heads(e, x: np.ndarray, heads: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As base.py has it."""
    tokens, width = x.shape
    at = first or width // heads // 2
    made = e.array(tokens, heads * at), e.array(tokens, width - heads * at)

    def rows(low: int, high: int) -> None:
        whole = x[low:high].reshape(high - low, heads, -1)
        for out, part in zip(made, (whole[:, :, :at], whole[:, :, at:])):
            out[low:high].reshape(high - low, heads, -1)[...] = part

    e.workers.rows(tokens, rows, 128)
    return made


def join_heads(e, first: np.ndarray, second: np.ndarray, heads: int) -> np.ndarray:
    """As base.py has it."""
    tokens, at = len(first), first.shape[1] // heads
    x = e.array(tokens, first.shape[1] + second.shape[1])

    def rows(low: int, high: int) -> None:
        whole = x[low:high].reshape(high - low, heads, -1)
        whole[:, :, :at] = first[low:high].reshape(high - low, heads, -1)
        whole[:, :, at:] = second[low:high].reshape(high - low, heads, -1)

    e.workers.rows(tokens, rows, 128)
    return x


def gated(e, x: np.ndarray, gate: np.ndarray, activation: str) -> np.ndarray:
    """As base.py has it."""
    y = e.array(*x.shape)

    def rows(low: int, high: int) -> None:
        np.multiply(x[low:high], gate[low:high] if activation == "none" else sigmoid(gate[low:high]), out=y[low:high])
        if activation == "silu":
            y[low:high] *= gate[low:high]

    e.workers.rows(x.shape[0], rows, 128)
    return y


def gated_backward(
    e, dy: np.ndarray, x: np.ndarray, gate: np.ndarray, activation: str
) -> tuple[np.ndarray, np.ndarray]:
    """As base.py has it."""
    dx, dgate = e.array(*x.shape), e.array(*x.shape)

    def rows(low: int, high: int) -> None:
        if activation == "none":
            np.multiply(dy[low:high], x[low:high], out=dgate[low:high])
            np.multiply(dy[low:high], gate[low:high], out=dx[low:high])
            return
        value = s = sigmoid(gate[low:high])
        slope = s * (1 - s)
        if activation == "silu":
            value, slope = s * gate[low:high], s + slope * gate[low:high]
        dgate[low:high] = dy[low:high] * x[low:high] * slope
        np.multiply(dy[low:high], value, out=dx[low:high])

    e.workers.rows(x.shape[0], rows, 128)
    return dx, dgate
