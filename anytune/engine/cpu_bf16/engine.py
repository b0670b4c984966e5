"""The bf16 CPU engine: NumpyEngine with its matrix products and attention in bf16."""

from __future__ import annotations

import time

import numpy as np

from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.rows import ACTIVATIONS
from anytune.engine.numpy.plain import GELU

from . import attention as _attention
from . import linear as _linear
from . import loss as _loss
from . import sides as _sides
from . import attend, gemm, rowwise, tiles
from .budget import Bf16Budget
from .gemm import SPARE, depth_of, pack_rows, packed_words, product, round_rows, row_bytes
from .rows import Rows, address, aligned, make


class CpuBf16Engine(NumpyEngine):
    """float32 on CPU threads, but products take bf16 operands and add in float32 (AVX-512 BF16, through Numba)."""

    name = "cpu-bf16"
    tolerance = 2e-2
    gemm, tiles, rowwise, attend = gemm, tiles, rowwise, attend  # a dry run has none of them

    def __init__(self, threads: int = 1, compiled: bool | None = None):
        super().__init__(threads, compiled)
        self._forget_scratch()

    def _forget_scratch(self) -> None:
        # for each worker {name: (words, address)} of its scratch: a step asks for them thousands of times
        self.scratch_at: list[dict[str, tuple[int, int]]] = [{} for _ in range(self.workers.count)]

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self._forget_scratch()

    def release(self) -> None:
        super().release()
        self._forget_scratch()

    linear = _linear.linear
    linear_backward = _linear.linear_backward
    attention = _attention.attention
    attention_backward = _attention.attention_backward
    cross_entropy = _loss.cross_entropy

    def array(self, rows: int, columns: int, row_padding: int | None = None, slots: int = 1) -> np.ndarray:
        """As NumpyEngine's, without padding: low-rank columns are in bf16 rows here."""
        return super().array(rows, columns, 0, slots)

    def join(self, parts):
        if all(isinstance(p, Rows) for p in parts) and all(b.follows(a) for a, b in zip(parts, parts[1:])):
            return parts[0].part(0, sum(p.shape[1] for p in parts))
        return super().join(tuple(p.float32() if isinstance(p, Rows) else p for p in parts))

    def scale(self, x, factor):
        return super().scale(self.view(x), factor)

    def scatter(self, y, rows, tokens: int):
        return super().scatter(self.view(y), rows, tokens)

    def host(self, x) -> np.ndarray:
        return x.float32() if isinstance(x, Rows) else super().host(x)

    def view(self, x) -> np.ndarray:
        return self.host(x) if isinstance(x, Rows) else x

    def flops_per_second(self) -> float:
        """As NumpyEngine's, of bf16 products."""
        n, stride = 384, row_bytes(384)
        left, packed = (
            aligned(self, 0, name, words)
            for name, words in (("edge", (n + SPARE) * stride // 4), ("packed", packed_words(n, n)))
        )
        out = self.scratch(0, "tile", n * n)
        out[...] = 0
        round_rows(address(out), 4 * n, n, n, left, stride)
        pack_rows(address(out), 4 * n, n, n, 4, packed, depth_of(n), 0)
        started = time.perf_counter()
        for _ in range(8):
            product(left, stride, packed, depth_of(n), address(out), 4 * n, n, n, n, 0)
        return self.workers.count * 0.7 * 8 * 2 * n**3 / max(time.perf_counter() - started, 1e-9)

    def budget(self, weights, memory: int | None) -> Bf16Budget:
        return Bf16Budget(self, weights, memory)

    # ---- what is cheap to make goes straight into the bf16 rows of the product that reads it ----------------

    def norm_linear(self, x, gain, eps: float, group):
        return self.linear(self._normed(x, gain, eps, group), group)

    def norm_linear_backward(
        self, dys, x, gain, eps: float, group, residual, need_dx: bool = True, then=None, into=None
    ):
        dh = self.linear_backward(dys, self._normed(x, gain, eps, group), group, need_dx or into is not None)
        if into is not None:
            self.gain_gradient(dh, x, eps, into)
        return self.rms_norm_backward(dh, x, gain, eps, residual) if need_dx else None

    def glu_linear(self, gate, up, activation: str, group):
        return self.linear(self._gated(gate, up, activation, group), group)

    def glu_linear_backward(self, dy, gate, up, activation: str, group, then, need_dx: bool = True):
        da = self.linear_backward((dy,), self._gated(gate, up, activation, group), group, need_dx)
        return self.glu_backward(da, gate, up, activation) if need_dx else None

    def _normed(self, x, gain, eps: float, group):
        """rms_norm(x) as the group's left side; float32 where dropout needs it so."""
        if group.dropout and self.training:
            return self.rms_norm(x, gain, eps)
        columns, at, gains = x.shape[1], address(x), address(gain)

        def write(number: int, low: int, high: int, rows: Rows) -> None:
            self.rowwise.norm(
                at + low * x.strides[0],
                x.strides[0],
                gains,
                eps,
                high - low,
                columns,
                aligned(self, number, "edge", 3 * (columns + 15)),
                rows.address + low * rows.stride,
                rows.stride,
            )

        return _sides.left_rows(self, x.shape[0], group, write)

    def _gated(self, gate, up, activation: str, group):
        """glu(gate, up), as _normed()."""
        if group.dropout and self.training:
            return self.glu(gate, up, activation)
        columns, gelu, one, two = gate.shape[1], ACTIVATIONS[activation] == GELU, address(gate), address(up)

        def write(number: int, low: int, high: int, rows: Rows) -> None:
            self.rowwise.glu(
                one + low * gate.strides[0],
                gate.strides[0],
                two + low * up.strides[0],
                up.strides[0],
                high - low,
                columns,
                gelu,
                aligned(self, number, "edge", 3 * (columns + 15)),
                rows.address + low * rows.stride,
                rows.stride,
            )

        return _sides.left_rows(self, gate.shape[0], group, write)

    def glu_backward(self, dy, gate, up, activation: str):
        """(dgate, dup) side by side as bf16 rows, padded for the low-rank columns."""
        tokens, columns = gate.shape
        gelu = ACTIVATIONS[activation] == GELU
        both = make(self, tokens, 2 * columns + self.row_padding)
        dgate, dup = both.part(0, columns), both.part(columns, columns)

        def work(number: int, low: int, high: int) -> None:
            self.rowwise.glu_backward(
                address(dy) + low * dy.strides[0],
                dy.strides[0],
                address(gate) + low * gate.strides[0],
                gate.strides[0],
                address(up) + low * up.strides[0],
                up.strides[0],
                high - low,
                columns,
                gelu,
                aligned(self, number, "edge", 4 * (columns + 15)),
                dgate.address + low * both.stride,
                dup.address + low * both.stride,
                both.stride,
            )

        _sides.by_rows(self, tokens, work)
        return dgate, dup
