"""Arrays in their buffers: the padding behind their rows, and arrays that lie side by side."""

from __future__ import annotations

import numpy as np


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def slots_of(e, x: np.ndarray) -> int:
    """How many rows of x a token has at the most: arrays of one size then serve all streams."""
    return max(1, -(-x.shape[0] // max(int(e._starts[-1]), 1)))


def extend(e, x: np.ndarray, columns: int, slots: int = 1) -> np.ndarray:
    """x [T, n] with `columns` more, undefined: in place if x ends at its buffer's row_padding, else a copy."""
    at, stride = _place(x)
    if columns <= e.row_padding and at >= 0 and at + x.shape[1] + e.row_padding == stride:
        return _window(x, at, stride, x.shape[1] + columns)
    wider = e.array(x.shape[0], x.shape[1] + columns, slots=slots)
    wider[:, : x.shape[1]] = x
    return wider


def joined(e, parts: tuple[np.ndarray, ...], slots: int = 1) -> np.ndarray:
    """The parts [T, n_i] side by side: one view if they lie so, else a copy."""
    if len(parts) == 1:
        return parts[0]
    width = sum(p.shape[1] for p in parts)
    at, stride = _place(parts[0])
    end, together = at, at >= 0 and at + width <= stride
    for part in parts:
        together = together and part.base is parts[0].base and _place(part) == (end, stride)
        end += part.shape[1]
    if together:
        return _window(parts[0], at, stride, width)
    out = e.array(parts[0].shape[0], width, slots=slots)
    np.concatenate(parts, axis=1, out=out)
    return out


def _place(x: np.ndarray) -> tuple[int, int]:
    """(column of its buffer's rows where x starts, floats of such a row); column -1 if x is not a pool's view."""
    owner, stride = x.base, x.strides[0] // 4
    if isinstance(owner, memoryview) or getattr(owner, "ndim", 0) != 1 or x.shape[0] == 0:
        return -1, stride
    return (address(x) - address(owner)) // 4 % stride, stride


def _window(x: np.ndarray, at: int, stride: int, columns: int) -> np.ndarray:
    """The same rows of x's buffer, columns at…at+columns; its base stays the buffer (the pool counts on it)."""
    first = (address(x) - address(x.base)) // 4 - at
    whole = x.base[first : first + x.shape[0] * stride].reshape(x.shape[0], stride)
    return whole[:, at : at + columns]
