"""Frozen matrices on a torch device, and the linears that share an input as one matrix.

A weight is held in one of four ways (`hold`):

- "dense": dequantized once, in the dtype of the products (2 bytes a weight), inside its group's matrix;
- "blocks": the file's bytes on the device, dequantized into a scratch matrix at each use;
- "stream": the file's bytes in pinned host memory, copied to the device at each use (for models larger than it);
- "shard": a slice of the file's bytes on each process's device, gathered at each use (see slices.py). The output head
  and the embedding table stay whole: gathering them would take more memory than it saves.

A group's matrix is [width + R, in + R]: the weights W, to their right B, below them s·A (R columns of rank, padded to a
multiple of 16). So [x | s x Aᵀ] times the rows of [W | B] is the whole forward, and [dy | dy B] times [W ; s A] the
whole input gradient: LoRA costs no pass over the outputs of its own, and one matrix serves both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anytune.engine.trains import Trains

from .plain_low import Block, Part

Tensor = torch.Tensor
PAD = 16  # ranks are padded to a multiple of this many columns: what tensor cores take at once
ALIGN = 64  # elements: rows of matrices and activations start at whole 128-byte lines in bf16
PIECE = 64 << 20  # bytes of blocks that are dequantized at a time while loading
WHOLE = ("output.weight", "token_embd.weight")  # never held as slices


def align(columns: int) -> int:
    return -(-columns // ALIGN) * ALIGN


class Weight:
    """One matrix [out, in] of a GGUF on an engine's device.
    Not trained: it has no gradient (trained.py has those that do)."""

    slow, gradient = False, None

    def __init__(self, engine, gguf, name: str, hold: str):
        info = gguf.tensors[name]
        self.engine, self.name, self.type = engine, name, info.type
        self.out_features, self.in_features = info.rows, info.shape[-1]
        self.row_bytes, self.block = info.row_bytes, info.type.block_size
        self.hold = hold
        self._gguf, self._raw = gguf, None
        self.home: Tensor | None = None  # [out, in] in a dense group's matrix
        self.slices: Any = None  # where the other processes' rows come from

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in the file."""
        return self.out_features * self.row_bytes

    def change_hold(self, how: str) -> None:
        if how == "shard" and self.name in WHOLE:
            how = "blocks"
        if how != self.hold:
            self.hold, self._raw, self.home, self.slices = how, None, None, None

    def adopt(self, raw: Tensor) -> None:
        """These are the file's bytes on the device, within a larger tensor."""
        self._raw = raw

    def read(self, low: int, high: int, pinned: bool = False) -> Tensor:
        """The file's bytes of rows low…high in host memory: uint8 [rows, row_bytes]."""
        out = torch.empty((high - low, self.row_bytes), dtype=torch.uint8, pin_memory=pinned)
        self._gguf.read_into(self.name, low, high, out.view(-1).numpy())
        return out

    def blocks(self) -> Tensor:
        """The file's bytes on the device: uint8 [out, row_bytes]; those of a streamed weight for this use."""
        if self._raw is None:
            e, step = self.engine, max(1, PIECE // self.row_bytes)
            if self.hold == "stream" and e.device.type != "cpu":
                self._raw = self.read(0, self.out_features, pinned=e.device.type == "cuda")
            else:
                raw = torch.empty((self.out_features, self.row_bytes), dtype=torch.uint8, device=e.device)
                for low in range(0, self.out_features, step):
                    high = min(low + step, self.out_features)
                    raw[low:high].copy_(self.read(low, high))
                self._raw = raw
        if self._raw.device != self.engine.device:
            return self._raw.to(self.engine.device, non_blocking=True)
        return self._raw

    def rows(self, low: int, high: int, out: Tensor) -> None:
        """Dequantize rows low…high into out [high - low, in], of any dtype and row stride."""
        if self.hold == "shard":
            for first, part in self.slices.take(self):
                begin, end = max(low, first), min(high, first + len(part))
                if end > begin:
                    self.engine.dequantize(
                        part[begin - first : end - first], self.type.name, out[begin - low : end - low]
                    )
            return
        self.engine.dequantize(self.blocks()[low:high], self.type.name, out)

    def piece(self, low: int, high: int, tile: Tensor) -> Tensor:
        """Rows low…high in tile's dtype: dequantized into its first rows (of a trained matrix perhaps as they lie)."""
        self.rows(low, high, tile[: high - low])
        return tile[: high - low]

    def load_rows(self, out: Tensor) -> None:
        """Dequantize the whole matrix into `out` from the file, keeping no blocks."""
        if self._raw is not None:
            self.rows(0, self.out_features, out)
            return
        step = max(1, PIECE // self.row_bytes)
        for low in range(0, self.out_features, step):
            high = min(low + step, self.out_features)
            raw = self.read(low, high).to(self.engine.device)
            self.engine.dequantize(raw, self.type.name, out[low:high])

    def gather(self, ids: Tensor, out: Tensor, scale: float) -> None:
        """out[i] = scale * row ids[i]."""
        if self.home is not None:
            torch.mul(self.home.index_select(0, ids), scale, out=out)
            return
        self.engine.lookup(self.blocks(), ids, self.type.name, out, scale)


@dataclass
class LoraPair:
    """The low-rank pair of one linear: a [r, in], b [out, r] and their gradients (or None), float32."""

    a: Tensor
    b: Tensor
    scale: float
    grad_a: Tensor | None = None
    grad_b: Tensor | None = None


class Group(Trains):
    """Linears that share an input: weights, biases (or None each), low-rank pairs (or None each)."""

    def __init__(self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None):
        self.weights = tuple(weights)
        self.bias_gradients = tuple(bias_gradients or ()) or (None,) * len(self.weights)
        self.pairs: tuple[LoraPair | None, ...] = tuple(pairs or ()) or (None,) * len(self.weights)
        self.dropout, self.number, self.cap = dropout, number, 0.0
        self.in_features = self.weights[0].in_features
        self.bounds = np.cumsum([0] + [w.out_features for w in self.weights]).tolist()
        self.width = self.bounds[-1]
        self.spans, at = [], 0  # for each linear its columns among the low-rank ones
        for pair in self.pairs:
            size = 0 if pair is None else pair.a.shape[0]
            self.spans.append((at, at + size))
            at += size
        self.rank = -(-at // PAD) * PAD
        self.columns = self.in_features + self.rank  # of [x | s x Aᵀ]
        self.stride = align(self.columns)  # of the matrix's rows
        self._biases = biases
        self._bias = None if self.trains_bias else _bias(biases, self.bounds)
        self.dense: Tensor | None = None  # the matrix, where it is held
        self.low: Tensor | None = None  # s x Aᵀ of the forward, from there to its backward
        self.eight: Any = None  # the matrix in fp8, for input gradients; see fp8.py
        self.peak: Tensor | None = None  # of the forward's gated product; see fp8.between
        self.has_b = False  # gradients of every B were made already by what read dy before
        self.gradient_table: Any = None  # where gradients and pairs lie, for kernels: see prepare()
        self.place_table: Any = None
        self.raw = self.up = self.down = None  # for generation, see decode.py

    @property
    def scale(self) -> float:
        return next((s.scale for s in self.pairs if s is not None), 1.0)

    @property
    def bias(self) -> Tensor | None:
        """float32 [width], or None; remade at each use if it is trained."""
        return _bias(self._biases, self.bounds) if self.trains_bias else self._bias

    @property
    def size(self) -> int:
        """Elements of the whole matrix."""
        return (self.width + self.rank) * self.stride

    @property
    def hold(self) -> str:
        """How its matrix is held: not at all if a part of it is trained."""
        return "trained" if self.trains_matrix else self.weights[0].hold

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """One view of y [T, width] for each linear."""
        return tuple(y[:, low:high] for low, high in zip(self.bounds, self.bounds[1:]))

    def fill(self, matrix: Tensor) -> None:
        """Dequantize all weights into matrix [width + R, stride]."""
        for weight, low, high in zip(self.weights, self.bounds, self.bounds[1:]):
            weight.rows(0, weight.out_features, matrix[low:high, : self.in_features])

    def load(self, matrix: Tensor) -> None:
        """As fill(), once and for all: the matrix is the weights' only home."""
        matrix.zero_()
        for weight, low, high in zip(self.weights, self.bounds, self.bounds[1:]):
            weight.load_rows(matrix[low:high, : self.in_features])
        self.dense = matrix

    def parts(self, vector: Tensor, gradients: bool = False) -> tuple[Part | None, ...]:
        """Where the pairs (or their gradients) lie in the flat vector that they are views of."""
        out = []
        for pair, low, high, (first, last) in zip(self.pairs, self.bounds, self.bounds[1:], self.spans):
            a, b = (None, None) if pair is None else (pair.grad_a, pair.grad_b) if gradients else (pair.a, pair.b)
            out.append(
                None
                if a is None
                else Part(
                    low,
                    high,
                    first,
                    last,
                    a.storage_offset() - vector.storage_offset(),
                    b.storage_offset() - vector.storage_offset(),
                    pair.scale,
                )
            )
        return tuple(out)

    def block(self, at: int, vector: Tensor) -> Block:
        """What place() needs to know of a matrix that begins at element `at` of an arena."""
        return Block(at, self.stride, self.in_features, self.width, self.parts(vector))

    def put_pairs(self, matrix: Tensor) -> None:
        """Write every B beside and every s·A below the weights, wherever the pairs lie."""
        for pair, low, high, (first, last) in zip(self.pairs, self.bounds, self.bounds[1:], self.spans):
            if pair is not None:
                matrix[low:high, self.in_features + first : self.in_features + last] = pair.b
                matrix[self.width + first : self.width + last, : self.in_features] = pair.a * pair.scale


def _bias(biases, bounds) -> Tensor | None:
    if not biases or all(b is None for b in biases):
        return None
    like = next(b for b in biases if b is not None)
    out = torch.zeros(bounds[-1], dtype=like.dtype, device=like.device)
    for bias, low, high in zip(biases, bounds, bounds[1:]):
        if bias is not None:
            out[low:high] = bias
    return out
