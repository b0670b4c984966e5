"""The bf16 CPU engine: NumpyEngine with its matrix products and attention in bf16."""

from __future__ import annotations

import numpy as np

from anytune.engine.numpy.engine import ACTIVATIONS, NumpyEngine
from anytune.engine.numpy.plain import GELU

from . import attention as _attention
from . import linear as _linear
from . import loss as _loss
from . import rowwise
from .rows import Rows, address, aligned, make

FEW = 16  # rows up to which a float32 result is worth more than a bf16 one


class CpuBf16Engine(NumpyEngine):
    """float32 on CPU threads, but products take bf16 operands and add in float32 (AVX-512 BF16, through Numba)."""

    name = "cpu-bf16"
    tolerance = 2e-2

    def __init__(self, threads: int = 1, compiled: bool | None = None):
        super().__init__(threads, compiled)

    linear = _linear.linear
    linear_backward = _linear.linear_backward
    attention = _attention.attention
    attention_backward = _attention.attention_backward
    cross_entropy = _loss.cross_entropy

    def array(self, rows: int, columns: int, room: int | None = None) -> np.ndarray:
        """As NumpyEngine's, without room: low-rank columns stand in bf16 rows here."""
        return super().array(rows, columns, 0)

    def host(self, x) -> np.ndarray:
        return x.float32() if isinstance(x, Rows) else super().host(x)

    def view(self, x) -> np.ndarray:
        return self.host(x) if isinstance(x, Rows) else x

    def linear_few(self, x, group):
        return super().linear_few(self.view(x), group)

    def rms_norm(self, x, gain, eps: float, into=None):
        if into is None or x.shape[0] <= FEW or (into.dropout and self.training):
            return super().rms_norm(x, gain, eps)
        columns = x.shape[1]

        def write(number: int, low: int, high: int, rows: Rows) -> None:
            rowwise.norm(address(x) + low * x.strides[0], x.strides[0], address(gain), eps, high - low, columns,
                            aligned(self, number, "edge", 3 * (columns + 15)), rows.address + low * rows.stride,
                            rows.stride)
        return _linear.left_rows(self, x.shape[0], into, write)

    def glu(self, gate, up, activation: str, into=None):
        if into is None or gate.shape[0] <= FEW or (into.dropout and self.training):
            return super().glu(gate, up, activation)
        columns, gelu = gate.shape[1], ACTIVATIONS[activation] == GELU

        def write(number: int, low: int, high: int, rows: Rows) -> None:
            rowwise.glu(address(gate) + low * gate.strides[0], gate.strides[0], address(up) + low * up.strides[0],
                           up.strides[0], high - low, columns, gelu,
                           aligned(self, number, "edge", 3 * (columns + 15)), rows.address + low * rows.stride,
                           rows.stride)
        return _linear.left_rows(self, gate.shape[0], into, write)

    def glu_backward(self, dy, gate, up, activation: str):
        """(dgate, dup) side by side as bf16 rows, with room for the low-rank columns behind."""
        tokens, columns = gate.shape
        gelu = ACTIVATIONS[activation] == GELU
        both = make(self, tokens, 2 * columns + self.room)
        dgate, dup = both.part(0, columns), both.part(columns, columns)

        def work(number: int, low: int, high: int) -> None:
            rowwise.glu_backward(address(dy) + low * dy.strides[0], dy.strides[0],
                                    address(gate) + low * gate.strides[0], gate.strides[0],
                                    address(up) + low * up.strides[0], up.strides[0], high - low, columns, gelu,
                                    aligned(self, number, "edge", 4 * (columns + 15)),
                                    dgate.address + low * both.stride, dup.address + low * both.stride, both.stride)
        _linear.by_rows(self, tokens, work)
        return dgate, dup
