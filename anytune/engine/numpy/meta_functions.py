"""What NumPy's functions give of arrays without memory: shapes and dtypes, by name. See meta.py.

Each takes `empty`, which allocates the result, and then what the function takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Empty = Callable[..., Any]
Shape = tuple[int, ...]


def whole_shape(shape: Sequence[int], size: int) -> Shape:
    """A shape with -1 in it, of an array with so many elements."""
    shape = tuple(int(n) for n in shape)
    if -1 in shape:
        others = -math.prod(shape)
        shape = tuple(size // max(others, 1) if n == -1 else n for n in shape)
    if math.prod(shape) != size:
        raise ValueError(f"{size} elements have no shape {shape}")
    return shape


def reduced(shape: Shape, axis: Any, keepdims: bool) -> Shape:
    if axis is None:
        return (1,) * len(shape) if keepdims else ()
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes)


def multiplied(a: Shape, b: Shape) -> Shape:
    """Of matmul."""
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    if a[-1] != b[-2 if len(b) > 1 else 0]:
        raise ValueError(f"{a} cannot be multiplied with {b}")
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *rows, *columns)


def _reduce(_: Empty, x: Any, axis: Any = None, dtype: Any = None, out: Any = None, **how: Any) -> Any:
    return out if out is not None else x.reduce(axis, how.get("keepdims", False), dtype)


def _concatenate(empty: Empty, parts: Sequence, axis: int = 0, out: Any = None) -> Any:
    if out is not None:
        return out
    axis %= parts[0].ndim
    shape = parts[0].shape
    total = sum(p.shape[axis] for p in parts)
    return empty((*shape[:axis], total, *shape[axis + 1 :]), np.result_type(*(p.dtype for p in parts)))


def _stack(empty: Empty, parts: Sequence, axis: int = 0) -> Any:
    return empty((len(parts), *parts[0].shape), np.result_type(*(p.dtype for p in parts)))


def _where(empty: Empty, chosen: Any, x: Any, y: Any) -> Any:
    dtypes = [z.dtype if hasattr(z, "dtype") else type(z)(0) for z in (x, y)]
    return empty(np.broadcast_shapes(*(getattr(z, "shape", ()) for z in (chosen, x, y))), np.result_type(*dtypes))


def _repeat(empty: Empty, x: Any, times: int, axis: int) -> Any:
    axis %= x.ndim
    return empty((*x.shape[:axis], times * x.shape[axis], *x.shape[axis + 1 :]), x.dtype)


def _repeat_or_flat(empty: Empty, x: Any, repeats: int, axis: int | None = None) -> Any:
    return empty((repeats * x.size,), x.dtype) if axis is None else _repeat(empty, x, repeats, axis)


def _einsum(empty: Empty, indices: str, *parts: Any, out: Any = None, dtype: Any = None) -> Any:
    if out is not None:
        return out
    names, result = indices.split("->")
    sizes = {n: size for name, part in zip(names.split(","), parts) for n, size in zip(name, part.shape)}
    dtype = np.dtype(dtype or np.result_type(*(p.dtype for p in parts)))
    return empty(tuple(sizes[n] for n in result), dtype) if result else dtype.type(1)


def _like(empty: Empty, x: Any, dtype: Any = None) -> Any:
    return empty(x.shape, dtype or x.dtype)


def _same(empty: Empty, x: Any, *_: Any, **__: Any) -> Any:
    return empty(x.shape, x.dtype)


def _places(empty: Empty, x: Any, *_: Any, **__: Any) -> Any:
    return empty(x.shape, np.intp)


def _found(empty: Empty, table: Any, x: Any) -> Any:
    return empty(x.shape, np.intp)


def _along(empty: Empty, x: Any, places: Any, axis: int) -> Any:
    return empty(places.shape, x.dtype)


def _take(empty: Empty, x: Any, places: Any, axis: int = 0, out: Any = None, mode: str = "raise") -> Any:
    return empty((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]), x.dtype) if out is None else out


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _solve(empty: Empty, a: Any, b: Any) -> Any:
    return empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), np.result_type(a.dtype, b.dtype))


def _pad(empty: Empty, x: Any, widths: Sequence[tuple[int, int]], *_: Any, **__: Any) -> Any:
    return empty(tuple(n + low + high for n, (low, high) in zip(x.shape, widths)), x.dtype)


def _unpack(empty: Empty, x: Any, axis: int = -1, **_: Any) -> Any:
    return empty((*x.shape[:-1], 8 * x.shape[-1]), np.uint8)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((np.sum, np.mean, np.max, np.min), _reduce),
    **dict.fromkeys((np.zeros_like, np.empty_like, np.ones_like), _like),
    **dict.fromkeys((np.tril, np.clip, np.copy), _same),
    **dict.fromkeys((np.argsort, np.argpartition), _places),
    **dict.fromkeys((np.copyto, np.put_along_axis), _nothing),
    np.ndim: lambda _, x: x.ndim,
    np.shape: lambda _, x: x.shape,
    np.concatenate: _concatenate,
    np.stack: _stack,
    np.where: _where,
    np.repeat: _repeat_or_flat,
    np.einsum: _einsum,
    np.searchsorted: _found,
    np.take_along_axis: _along,
    np.take: _take,
    np.linalg.solve: _solve,
    np.pad: _pad,
    np.unpackbits: _unpack,
}
