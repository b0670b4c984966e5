"""Gradients of trained matrices and biases: dW += dyᵀ x and db += the sum of dy's rows, bf16 rows and float32 sums."""

from __future__ import annotations

from functools import partial

from anytune.engine.numpy.linear import Group
from anytune.engine.numpy.workers import Job, piece, pieces

from . import gemm
from .rows import Rows, address, aligned

PIECE = 256  # rows of a gradient that are made at once


def turned_words(columns: int, tokens: int) -> int:
    """Size of the transpose of [tokens, columns] as rows of bf16, in words."""
    return (-(-columns // 16) * 16 + gemm.SPARE) * turned_bytes(tokens) // 4


def turned_bytes(tokens: int) -> int:
    """Stride of such rows."""
    return gemm.row_bytes(-(-tokens // 32) * 32)


def pack(e, x: Rows, tokens: int, columns: int, at: int | None = None) -> int:
    """x [tokens, columns] (at another address, if given) packed as the right side of a gradient's product -> where."""
    packed, depth = aligned(e, 0, "inner", gemm.packed_words(tokens, columns)), gemm.depth_of(tokens)

    def work(low: int, high: int, number: int) -> None:
        e.gemm.pack_rows(
            (at or x.address) + 2 * low, x.stride, high - low, tokens, 2, packed + 4 * low * depth, depth, 0
        )

    cuts = pieces(0, columns, piece(columns, 4 * gemm.PANEL, gemm.PANEL), gemm.PANEL)
    e.workers.run([partial(work, *cut) for cut in cuts])
    return packed


def add(e, number: int, dy: int, stride: int, rows: int, tokens: int, packed: int, into) -> None:
    """into float32 [rows, in] += dyᵀ x; dy: the address of bf16 rows [tokens, rows], packed: of x."""
    left = aligned(e, number, "left", turned_words(rows, tokens))
    e.gemm.turn(dy, stride, tokens, rows, 2, left, turned_bytes(tokens))
    e.gemm.product(
        left,
        turned_bytes(tokens),
        packed,
        gemm.depth_of(tokens),
        address(into),
        into.strides[0],
        rows,
        into.shape[1],
        tokens,
        1,
    )


def gradient_jobs(e, dy: Rows, x: Rows, group: Group) -> list[Job]:
    """Rows of each trained matrix's gradient and places of each bias's."""
    tokens = dy.shape[0]
    packed = pack(e, x, tokens, group.in_features) if group.trains_matrix else 0

    def task(weight, bias, start: int, low: int, high: int, number: int) -> None:
        if weight.gradient is not None:
            add(
                e,
                number,
                dy.address + 2 * (start + low),
                dy.stride,
                high - low,
                tokens,
                packed,
                weight.gradient[low:high],
            )
        if bias is not None:
            bias[low:high] += dy.part(start + low, high - low).float32().sum(0)

    return [
        partial(task, weight, bias, start, *place)
        for weight, bias, start in zip(group.weights, group.bias_gradients, group.bounds)
        if weight.gradient is not None or bias is not None
        for place in pieces(0, weight.out_features, PIECE, 16)
    ]
