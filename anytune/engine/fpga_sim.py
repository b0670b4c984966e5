"""Training with the hardware cores' arithmetic: NumpyEngine with its products computed by their exact twin.

Every linear, the head among them, runs as anytune/fpga computes it: weights as the file's blocks, activations and
low-rank pairs rounded to Q8_0 (ffn_down's input to two terms of it), gradients to bfloat16 and then to int8 times a
power of two for each 32. Norms, attention, gated products, the softmax and the optimizer are float32, as on the host
beside the hardware. Types that the cores do not read are rounded to Q8_0 once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from anytune.engine.answers import Answer
from anytune.engine.budget import Way

from anytune.engine.numpy.budget import NumpyBudget
from anytune.engine.numpy.dry import Dry, DryWeight, dry
from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.linear import Group, LoraPair
from anytune.engine.numpy.meta import Memory, MetaArray
from anytune.engine.numpy.weights import Weight
from anytune.errors import UserError
from anytune.fpga import formats, products
from anytune.fpga.twin import Twin
from anytune.gguf import dequantize

F = np.float32
LOGITS = 1 << 24  # of the head at a time, float32
HOST = 16  # of a row's gradients by logits, the largest: the host adds these rows of the head, in float32.
#                      Left to the cores, one near 1 leaves the 31 others of its block no digits. A pair needs all.


class Stored(Weight):
    """A weight as the cores store it: `matrix` has its planes, made once unless nothing is to be held."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._matrix: formats.Matrix | None = None
        self._making = threading.Lock()

    def matrix(self) -> formats.Matrix:
        if self.hold == "stream":
            raw = self.empty(self.nbytes, np.uint8)
            return self._planes(self._read(0, self.out_features, raw))
        with self._making:
            if self._matrix is None:
                self._matrix = self._planes(self._held())
            return self._matrix

    def _planes(self, raw: np.ndarray) -> formats.Matrix:
        rows = raw.reshape(self.out_features, self.row_bytes)
        if self.type.name in formats.FORMATS:
            return formats.matrix(rows, self.type.name)
        made = formats.stored(self._dense(rows))
        return formats.Matrix(made.codes, made.scales, made.offsets, made.factors, made.ones, self.out_features)

    def _dense(self, rows: np.ndarray) -> np.ndarray:
        return dequantize(rows, self.type)

    def change_hold(self, hold: str) -> None:
        super().change_hold(hold)
        if hold == "stream":
            self._matrix = None

    def forget(self) -> None:
        super().forget()
        self._matrix = None

    @property
    def slow(self) -> bool:
        """Blocks are read as they are: nothing is gained by dequantizing them once."""
        return False


class FpgaSimEngine(NumpyEngine):
    """float32 on CPU threads, products as the hardware cores compute them, to the bit.

    compiled: the twin with Numba (None: if it is installed). Pairs are trained; a model's own weights are not.
    """

    name, adapters_only = "fpga-sim", True
    offers = NumpyEngine.offers - {"experts", "expert scales"}  # whose products it would not round
    tolerance = 4e-2  # of products of random numbers in eight bits, at their worst element: 2e-2, 3e-2 of capped ones

    def __init__(self, threads: int = 1, compiled: bool | None = None):
        super().__init__(threads, compiled)
        self._compiled = compiled
        self.twin = Twin(compiled, threads)

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self.twin = Twin(self._compiled, count)

    def weight(self, gguf, name: str, hold: str = "blocks") -> Stored:
        return Stored(gguf, name, "stream" if hold == "lookup" else hold, self.dequantizers)

    def trained(self, values: np.ndarray, gradient: np.ndarray):
        raise UserError("the hardware cores train only LoRA adapters: omit --full, or use another --device")

    def group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ) -> Group:
        if dropout and any(pair is not None for pair in pairs or ()):
            raise UserError("the hardware cores do not support dropout: set --lora-dropout to 0")
        return super().group(weights, biases, pairs, dropout, number, bias_gradients)

    def budget(self, weights, memory: int | None) -> SimBudget:
        return SimBudget(self, weights, memory)

    def flops_per_second(self) -> float:
        """Of products of one plane, by a short run."""
        rng = np.random.default_rng(0)
        x, w = (
            formats.q8_0(rng.standard_normal((64, 256)).astype(F)),
            formats.matrix(np.zeros((512, 256 // 32 * 18), np.uint8), "Q4_0"),
        )
        self.twin.rows([(x, w)])
        start = time.perf_counter()
        for _ in range(4):
            self.twin.rows([(x, w)])
        return 4 * 2 * 64 * 256 * 512 / max(time.perf_counter() - start, 1e-9)

    # ---- operations

    def linear(self, x: np.ndarray, group: Group) -> tuple[np.ndarray, ...]:
        y = self.array(x.shape[0], group.width, row_padding=0)
        for part, value in zip(group.split(y), self._forward(x, group), strict=True):
            part[...] = value
        return group.split(y)

    linear_decode = linear

    def logits(self, h: np.ndarray, head: Group) -> np.ndarray:
        """Capped, where the head is, by the host."""
        z = self._forward(h, head)[0]
        return F(head.cap) * np.tanh(z / F(head.cap)) if head.cap else z

    def _forward(self, x: np.ndarray, group: Group) -> list[np.ndarray]:
        weights = [w.matrix() for w in group.weights]
        found = products.forward(self.twin, _wide(x, weights), weights, _pairs(group), _terms(group))[0]
        for y, bias in zip(found, group.biases, strict=True):
            if bias is not None:
                y += bias
        return found

    def linear_backward(
        self, dys: tuple[np.ndarray, ...], x: np.ndarray, group: Group, need_dx: bool = True
    ) -> np.ndarray | None:
        if not (need_dx or group.trains):
            return None
        weights, pairs = [w.matrix() for w in group.weights], _pairs(group)
        left = products.rounded(_wide(x, weights), _terms(group))
        saved = products.Saved(left[0], tuple(products.low_rank(self.twin, left, pair) for pair in pairs))
        dx, gradients = products.backward(self.twin, dys, saved, weights, pairs, need_dx)
        for pair, gradient in zip(group.pairs, gradients, strict=True):
            if pair is not None and pair.grad_a is not None and gradient is not None:
                pair.grad_a += gradient[0][:, : group.in_features]
                pair.grad_b += gradient[1]
        if dx is None:
            return None
        out = self.array(x.shape[0], group.in_features)
        out[...] = dx[:, : group.in_features]
        return out

    def cross_entropy(self, h: np.ndarray, head: Group, targets: np.ndarray, scale: float, gradient: bool):
        """Some rows at a time: the cores' logits, softmax in float32, and the cores' backward."""
        total, step = 0.0, max(32, LOGITS // head.width)
        dh = self.array(*h.shape) if gradient else None
        for low in self.each(range(0, len(h), step)):
            part = slice(low, low + step)
            z, wanted = self.logits(h[part], head), targets[part]
            slope = F(1) - np.square(z / F(head.cap)) if head.cap else None
            rows = np.arange(len(z))
            z -= z.max(axis=1, keepdims=True)
            picked = z[rows, wanted].astype(np.float64)
            np.exp(z, out=z)
            sums = z.sum(axis=1, dtype=np.float64)
            total += float((np.log(sums) - picked).sum())
            if dh is not None:
                z *= (scale / sums)[:, None].astype(F)
                z[rows, wanted] -= F(scale)
                if slope is not None:
                    z *= slope
                large = _take_largest(z) if head.pairs[0] is None else ((), ())
                dh[part] = self.linear_backward((z,), h[part], head)
                for ids, values in zip(*large, strict=True):
                    dh[part] += values[:, None] * self.embed(ids, head.weights[0], 1.0)
        return total, dh

    # ---- known answers of its own

    def own_answers(self) -> list[Answer]:
        """The twin's two products in the form that runs here against plain NumPy: equal to the bit or wrong."""
        rng, plain = np.random.default_rng(0), Twin(False)
        found = []
        for kind in formats.FORMATS:
            w = formats.matrix(_blocks(rng, kind), kind)
            x = formats.q8_0(rng.standard_normal((37, w.shape[1])).astype(F))
            y = formats.bf16(rng.standard_normal((37, w.shape[0])).astype(F))
            for name in ("rows", "columns"):
                left = x if name == "rows" else y
                ours, theirs = (getattr(twin, name)([(left, w)]) for twin in (self.twin, plain))
                same = np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
                found.append(Answer(f"cores' {name}, {kind}, to the bit", 0.0 if same else float("inf")))
        return found


def _blocks(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Random weights [64, 256] in blocks: uint8 [64, bytes]."""
    from anytune.gguf.encode import encode

    return encode(rng.standard_normal((64, 256)).astype(F), kind, compiled=False)


def _take_largest(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The HOST largest of each row of z [n, vocabulary], which become zero: (their columns int32 [HOST, n], values)."""
    count = min(HOST, z.shape[1])
    places = np.argpartition(np.abs(z), -count, axis=1)[:, -count:]
    values = np.take_along_axis(z, places, 1)
    np.put_along_axis(z, places, 0, 1)
    return places.T.astype(np.int32, "C"), values.T.copy()


def _terms(group: Group) -> int:
    return max(products.terms_of(w.name) for w in group.weights)


def _pairs(group: Group) -> list[products.Pair | None]:
    return [None if pair is None else _pair(pair) for pair in group.pairs]


def _pair(pair: LoraPair) -> products.Pair:
    return products.Pair(pair.a, pair.b, pair.scale)


def _wide(x: np.ndarray, weights: Sequence[formats.Matrix]) -> np.ndarray:
    """x [T, in] contiguous, with zeros up to whole blocks."""
    missing = weights[0].shape[1] - x.shape[1]
    return np.pad(x, ((0, 0), (0, missing))) if missing else x.astype(F, "C", copy=False)


class SimBudget(NumpyBudget):
    """NumpyEngine's, for weights that are held as planes too."""

    def dry(self, way: Way, capacity: int) -> Dry:
        return dry(self.engine, way.sizes, capacity, DrySim)


class DryStored(DryWeight, Stored):
    def _dense(self, rows: MetaArray) -> MetaArray:
        return self.empty(self.shape, F)


class DryTwin(Twin):
    """The twin without its kernels, of operands that are not looked at."""

    def __init__(self, memory: Memory):
        super().__init__(False)
        self.zeros = memory.empty

    def _check(self, *_: Any) -> None:
        pass

    def _add(self, *_: Any) -> None:
        pass


class DrySim(Dry):
    matrix = DryStored

    def __init__(self, *of: Any):
        super().__init__(*of)
        self.twin = DryTwin(self.memory)
