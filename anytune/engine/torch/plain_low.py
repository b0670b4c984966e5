"""LoRA's skinny products in plain torch, and the tables that say where each pair lies.

A group is the linears that share an input x [T, in]; their outputs lie side by side in y [T, width], their ranks side
by side in R columns. All pairs of a model lie in one flat float32 vector (anytune.model.lora_layout.Layout), gradients
likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .arrays import on_nvidia
from .plain_fp8 import rounded

Tensor = torch.Tensor
COLUMNS = 64  # columns of x or dy for one program of `gradients`
ELEMENTS = 2048  # of flat for one program of `place`


class Part(NamedTuple):
    """One linear's pair: output columns [o0, o1) and rank columns [r0, r1) of its group; flat[a:] is A [r, in],
    flat[b:] is B [out, r]; scale multiplies A where it is placed."""

    o0: int
    o1: int
    r0: int
    r1: int
    a: int
    b: int
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.r1 - self.r0


@dataclass(frozen=True)
class GradientTable:
    """Where the gradients of a group go.

    rows: int64 [R], for each rank column where its row of A begins in flat, -1 for padding.
    tiles: int64 [n, 5], runs of at most COLUMNS output columns of one linear: first, end, r0, rank, place of the first
    column's row of B in flat. columns_align, rank_align, flat_align: the largest power of two (at most 16) that divides
    all output columns, all rank columns, all places and row lengths in flat: what makes wide accesses legal.
    """

    parts: tuple[Part, ...]
    in_features: int
    rows: Tensor
    tiles: Tensor
    columns_align: int
    rank_align: int
    flat_align: int

    @property
    def most(self) -> int:
        """The largest rank of one linear."""
        return max(p.rank for p in self.parts)


def gradient_table(parts, in_features: int, rank: int, device) -> GradientTable:
    """parts: a Part for each linear of the group, or None; rank: R, columns of low_x and low_dy, padding included."""
    parts = tuple(p for p in parts if p is not None)
    rows, tiles = [-1] * rank, []
    for p in parts:
        rows[p.r0 : p.r1] = [p.a + j * in_features for j in range(p.rank)]
        tiles += [
            (first, min(first + COLUMNS, p.o1), p.r0, p.rank, p.b + (first - p.o0) * p.rank)
            for first in range(p.o0, p.o1, COLUMNS)
        ]
    return GradientTable(
        parts,
        in_features,
        torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(tiles, dtype=torch.int64, device=device).view(-1, 5),
        math.gcd(16, *(n for p in parts for n in (p.o0, p.o1))),
        math.gcd(16, *(n for p in parts for n in (p.r0, p.r1))),
        math.gcd(16, in_features, *(n for p in parts for n in (p.a, p.b, p.rank))),
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """a · b in float32, without float32 copies of the operands where possible."""
    if on_nvidia(a) and a.dtype == b.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def low(x, w, out, *, keep=None):
    """The skinny product out [T, R] = x [T, K] · w [K, R], w of any strides; again in `keep`, if given."""
    made = product(x, w)
    out.copy_(made)
    if keep is not None:
        keep.copy_(made)


def low_fp8(x, scale, w, out):
    """The skinny product of x [T, K], e4m3 with a scale for each row (float32 [T]), and w [K, R], in `out`, and, in
    x's scale and format, in the R columns behind x."""
    made = x.float() @ w.float()
    out.copy_(made * scale[:, None])
    behind = x.as_strided(made.shape, x.stride(), x.storage_offset() + x.shape[1])
    behind.copy_(rounded(made))


def low_of_pair(x, y, w, out):
    """out [T, R] = [x | y] · w: of two arrays [T, n] side by side, with w [2n, R]."""
    n = x.shape[1]
    out.copy_(product(x, w[:n]) + product(y, w[n:]))


def gradients(x, low_dy, dy, low_x, table: GradientTable, flat, scale, norm=None):
    """Adds the gradients of a group's pairs to flat (float32): of A scale * low_dyᵀ x, of B dyᵀ low_x.

    x [T, in], dy [T, width]; low_dy [T, R]: dy_i B_i side by side, low_x [T, R]: s x A_iᵀ side by side. Without x
    (None) only those of B, without dy only those of A. norm: (gain [in], inverse [T]) of an RMSNorm that x is to go
    through first.
    """
    if norm is not None:
        x = (x.float() * norm[1][:, None] * norm[0]).to(x.dtype)
    for p in table.parts:
        columns = slice(p.r0, p.r1)
        if x is not None:
            a = flat[p.a : p.a + p.rank * table.in_features].view(p.rank, -1)
            a.add_(product(low_dy[:, columns].t(), x), alpha=scale)
        if dy is not None:
            b = flat[p.b : p.b + p.rank * (p.o1 - p.o0)].view(-1, p.rank)
            b.add_(product(dy[:, p.o0 : p.o1].t(), low_x[:, columns]))


def gradients_of_groups(items, flat):
    """gradients() for up to four groups with equally many rows: items are (x, low_dy, dy, low_x, table, scale)."""
    for x, low_dy, dy, low_x, table, scale in items:
        gradients(x, low_dy, dy, low_x, table, flat, scale)


class Block(NamedTuple):
    """A group's matrix in the arena: from element `at`, rows of stride ld; W is [width, in] in its corner."""

    at: int
    ld: int
    in_features: int
    width: int
    parts: tuple[Part | None, ...]


@dataclass(frozen=True)
class PlaceTable:
    """What `place` copies. copies: (source, target, rows, columns, ld, scale) for whole factors, dense in flat. tiles:
    int64 [n, 5], pieces of at most ELEMENTS: source, target, elements, columns, ld; scales float32 [n]."""

    copies: tuple[tuple, ...]
    tiles: Tensor
    scales: Tensor


def place_table(blocks, device) -> PlaceTable:
    """blocks: a Block for each group that has its matrix in the arena."""
    copies = []
    for block in blocks:
        for p in block.parts:
            if p is not None:
                copies.append(
                    (p.a, block.at + (block.width + p.r0) * block.ld, p.rank, block.in_features, block.ld, p.scale)
                )
                copies.append(
                    (p.b, block.at + p.o0 * block.ld + block.in_features + p.r0, p.o1 - p.o0, p.rank, block.ld, 1.0)
                )
    tiles, scales = [], []
    for source, target, rows, columns, ld, scale in copies:
        # a piece is some whole rows, or a part of one row
        step, width = max(1, ELEMENTS // columns), min(columns, ELEMENTS)
        for row in range(0, rows, step):
            for column in range(0, columns, width):
                length = min(width, columns - column)
                tiles.append(
                    (
                        source + row * columns + column,
                        target + row * ld + column,
                        min(step, rows - row) * length,
                        length,
                        ld,
                    )
                )
                scales.append(scale)
    return PlaceTable(
        tuple(copies),
        torch.tensor(tiles, dtype=torch.int64, device=device).view(-1, 5),
        torch.tensor(scales, dtype=torch.float32, device=device),
    )


def place(flat, table: PlaceTable, arena):
    """Copies every pair next to its group's weights, in the arena's dtype: B to the right of W, s·A below it."""
    for source, target, rows, columns, ld, scale in table.copies:
        factor = flat[source : source + rows * columns].view(rows, columns)
        arena.as_strided((rows, columns), (ld, 1), arena.storage_offset() + target).copy_(factor * scale)
