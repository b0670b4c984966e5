"""Arrays without memory: a shape, a dtype and strides, on which NumPy's own expressions run and give such arrays.

What torch calls meta tensors. Views share their root's place in a ledger, and a root gives its bytes back when the last
of them is gone, so that code which runs on them is counted as it allocates.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from anytune.engine.dry import Ledger

from . import meta_functions

# Bytes that nobody reads or writes: views of them have the strides, and the distances, of views of an array.
_NOWHERE = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (min(1 << 50, sys.maxsize >> 1),), (1,))
_WITHOUT_COPY = {"copy": False} if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else None
_PLACES = (slice, int, type(None), type(Ellipsis), np.integer)
_NUMBERS = (int, float, bool)


class Memory:
    """Where arrays are allocated. kind: of the ledger, that they are entered as; times: how often, as so many workers
    do the same side by side."""

    def __init__(self, ledger: Ledger):
        self.ledger, self.kind, self.times = ledger, "bytes", 1

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> MetaArray:
        """As np.empty."""
        of = _nowhere(shape, dtype)
        return Root(self, of, self.kind, of.nbytes * self.times)

    def shared(self, shape: int | tuple[int, ...], dtype: Any = np.float32, kind: Hashable = "bytes") -> MetaArray:
        """What is there once, whoever makes it."""
        of = _nowhere(shape, dtype)
        return Root(self, of, kind, of.nbytes)

    def known(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> MetaArray:
        """What is there already, or is counted by somebody else."""
        return MetaArray(self, _nowhere(shape, dtype), None)

    def kept(self, kind: Hashable, size: int, dtype: Any) -> MetaArray:
        """A flat buffer of so many bytes that is there for good, and as large as the largest that is asked for."""
        self.ledger.touch(kind, size * self.times)
        return self.known(size // np.dtype(dtype).itemsize, dtype)


def _nowhere(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    dtype, size = np.dtype(dtype), math.prod(shape) if isinstance(shape, tuple) else shape
    return _NOWHERE[: size * dtype.itemsize].view(dtype).reshape(shape)


class MetaArray(NDArrayOperatorsMixin):
    """A view. base: the array that it is a view of, as ndarray's. Values that are asked for are 1, or true."""

    __slots__ = ("memory", "_of", "base", "__weakref__")

    def __init__(self, memory: Memory, of: np.ndarray, base: MetaArray | None):
        self.memory, self._of, self.base = memory, of, base

    shape = property(lambda self: self._of.shape)
    ndim = property(lambda self: self._of.ndim)
    size = property(lambda self: self._of.size)
    dtype = property(lambda self: self._of.dtype)
    nbytes = property(lambda self: self._of.nbytes)
    strides = property(lambda self: self._of.strides)
    T = property(lambda self: self._view(self._of.T))

    @property
    def __array_interface__(self) -> dict:
        """Its address alone: nothing can be read there."""
        return {"data": (self._of.__array_interface__["data"][0], True)}

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("an array of a dry run has no values")

    def __repr__(self) -> str:
        return f"MetaArray({self.shape}, {self.dtype})"

    def _view(self, of: np.ndarray) -> MetaArray:
        return MetaArray(self.memory, of, self if self.base is None else self.base)

    def __len__(self) -> int:
        return self._of.shape[0]

    def __iter__(self) -> Iterator[MetaArray]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return 1.0

    def __getitem__(self, key: Any) -> MetaArray:
        parts = key if type(key) is tuple else (key,)
        for part in parts:
            if not isinstance(part, _PLACES):
                return self.memory.empty(_picked(self.shape, parts), self.dtype)
        # the ellipsis keeps NumPy from reading a single number
        return self._view(self._of[parts if Ellipsis in parts else (*parts, ...)])

    def __setitem__(self, key: Any, values: Any) -> None:
        pass

    def reshape(self, *shape: Any) -> MetaArray:
        if type(shape[0]) is tuple:
            shape = shape[0]
        view = _reshaped(self._of, shape)
        if view is None:
            return self.memory.empty(meta_functions.whole_shape(shape, self.size), self.dtype)
        return self._view(view)

    def transpose(self, *axes: Any) -> MetaArray:
        return self._view(self._of.transpose(*axes))

    def swapaxes(self, one: int, other: int) -> MetaArray:
        return self._view(self._of.swapaxes(one, other))

    def view(self, dtype: Any) -> MetaArray:
        return self._view(self._of.view(dtype))

    def copy(self) -> MetaArray:
        return self.memory.empty(self.shape, self.dtype)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> MetaArray:
        if not copy and self.dtype == dtype and (order != "C" or self._of.flags.c_contiguous):
            return self
        return self.memory.empty(self.shape, dtype)

    def reduce(self, axis: Any = None, keepdims: bool = False, dtype: Any = None, **_: Any) -> Any:
        """What sums and the like give: a number, of all."""
        shape = meta_functions.reduced(self.shape, axis, keepdims)
        dtype = np.dtype(dtype or self.dtype)
        return self.memory.empty(shape, dtype) if shape else dtype.type(1)

    sum = mean = max = min = reduce

    def all(self, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(axis, keepdims, bool)

    def any(self, axis: Any = None, keepdims: bool = False) -> Any:
        found = self.reduce(axis, keepdims, bool)
        return found if isinstance(found, MetaArray) else False

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **how: Any) -> Any:
        if out is not None:
            return out[0] if len(out) == 1 else out
        if method == "reduce":
            return self.reduce(how.get("axis", 0), how.get("keepdims", False), how.get("dtype"))
        if method != "__call__":
            return None if method == "at" else NotImplemented
        shapes = [() if isinstance(x, _NUMBERS) else x.shape for x in inputs]
        if ufunc is np.matmul:
            shape = meta_functions.multiplied(*shapes)
        elif all(shape == shapes[0] for shape in shapes[1:]):
            shape = shapes[0]
        else:
            shape = np.broadcast_shapes(*shapes)
        kinds = tuple(type(x) if type(x) in _NUMBERS else x.dtype for x in inputs)
        return self.memory.empty(shape, _dtype(ufunc, kinds))

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        found = meta_functions.FUNCTIONS.get(function)
        return NotImplemented if found is None else found(self.memory.empty, *args, **kwargs)


class Root(MetaArray):
    """An array of its own, which gives back what it took."""

    __slots__ = ("_kind", "_units")

    def __init__(self, memory: Memory, of: np.ndarray, kind: Hashable, units: int):
        super().__init__(memory, of, None)
        self._kind, self._units = kind, units
        memory.ledger.take(kind, units)

    def __del__(self) -> None:
        self.memory.ledger.give(self._kind, self._units)


@functools.cache
def _dtype(ufunc: np.ufunc, kinds: tuple) -> np.dtype:
    """Of the first result."""
    kinds = tuple(int if kind is bool else kind for kind in kinds)
    return ufunc.resolve_dtypes((*kinds, *(None,) * ufunc.nout))[ufunc.nin]


def _picked(shape: tuple[int, ...], parts: tuple) -> tuple[int, ...]:
    """The shape of an array with such an index, of arrays and numbers with whole axes before them and behind."""
    before = 0
    while before < len(parts) and isinstance(parts[before], slice) and parts[before] == slice(None):
        before += 1
    chosen = parts[before:]
    if any(isinstance(p, slice | type(None) | type(Ellipsis)) for p in chosen):
        raise TypeError(f"an array of a dry run cannot be read at {parts}")
    return (*shape[:before], *np.broadcast_shapes(*map(np.shape, chosen)), *shape[before + len(chosen) :])


def _reshaped(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A view of x, or None if there is none of this shape."""
    if _WITHOUT_COPY is None:
        view = x[...]
        try:
            view.shape = shape
        except AttributeError:
            return None
        return view
    try:
        return x.reshape(shape, **_WITHOUT_COPY)
    except ValueError:
        return None
