"""Arrays of the torch engine: views into buffers with room behind them,
and sums that wait for the norm that follows."""

from __future__ import annotations

from contextvars import ContextVar

import torch

Tensor = torch.Tensor
STANDS_FOR: ContextVar[str] = ContextVar("STANDS_FOR", default="")  # the kind of device whose place `meta` takes


def on_nvidia(x: Tensor) -> bool:
    """Whether x is on a GPU of NVIDIA's, or would be: see dry.py."""
    return x.is_cuda and torch.version.hip is None or x.is_meta and STANDS_FOR.get() == "cuda"


def same_buffer(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage()._cdata == y.untyped_storage()._cdata


class Sum:
    """x + y that has not been added yet. A norm adds on its way (settle); whoever needs it sooner has it added."""

    __slots__ = ("engine", "x", "y", "value", "shape")

    def __init__(self, engine, x, y: Tensor):
        self.engine, self.x, self.y, self.value, self.shape = engine, x, y, None, y.shape

    def settle(self, value: Tensor) -> Tensor:
        self.value, self.x, self.y = value, None, None
        return value


def real(x) -> Tensor:
    """The tensor of an operand that may be a Sum."""
    if not isinstance(x, Sum):
        return x
    if x.value is None:
        out = own(x.engine.array(*x.shape))
        return x.settle(torch.add(real(x.x), x.y, out=out))
    return x.value


def padding_behind(x: Tensor) -> int:
    """Columns behind x that belong to nobody: none unless x ends a buffer that array() made."""
    return x.stride(0) - x.storage_offset() % x.stride(0) - x.shape[1] if getattr(x, "ends", False) else 0


def own(x: Tensor) -> Tensor:
    """Mark a view as the end of its buffer: the columns behind it are free for low-rank products."""
    x.ends = True
    return x
