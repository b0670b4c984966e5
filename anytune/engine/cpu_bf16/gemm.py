"""Products of bf16 matrices with float32 sums, compiled: laying operands out, and going through them.

A product c = a b takes `a` as rows of bf16 (round_rows or turn) and `b` packed (pack_rows or pack_columns): panels of
32 columns (the last of 16 if that is enough), each [depth, columns] words, a word being the pair of two neighbours
along the summed dimension. depth, the pairs of a panel, is a multiple of 16. Addresses and strides are in bytes.

Every element is one sum in one order, so it does not depend on which worker computes it or what is beside it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from anytune.simd import bf16
from anytune.simd.bf16 import (
    pair_columns,
    pair_rows,
    pair_rows_16,
    round_1,
    round_16,
    turn_rows,
    turn_rows_16,
    turn_words,
    zero_16,
)

PANEL = 32  # columns
T12, T8, T4 = (bf16.tile(n, 2) for n in (12, 8, 4))  # rows x 32 columns
N12, N8, N4 = (bf16.tile(n, 1) for n in (12, 8, 4))  # rows x 16 columns
S12, S8, S4 = (bf16.tile(n, 2, True) for n in (12, 8, 4))  # float32 operands
M12, M8, M4 = (bf16.tile(n, 1, True) for n in (12, 8, 4))
SPARE = 4  # rows behind `a` that a product may read


def compiled(arguments: int):
    """Compile for so many int64 arguments and keep the code on disk."""
    return njit(types.void(*[types.int64] * arguments), nogil=True, cache=True, error_model="numpy")


def depth_of(summed: int) -> int:
    """Pairs of a panel for so many summed elements."""
    return -(-summed // 32) * 16


def packed_words(summed: int, columns: int) -> int:
    """Size of a packed operand in words (as many as float32)."""
    return depth_of(summed) * (-(-columns // 16) * 16)


def row_bytes(columns: int) -> int:
    """Stride of rows of bf16: an odd number of cache lines, so that neighbouring rows fall into different sets."""
    lines = -(-columns // 32)
    return 64 * (lines + 1 - lines % 2)


@compiled(6)
def round_rows(source, stride, rows, columns, target, target_stride):
    """Rows of float32 -> rows of bf16. If the last one is half of a pair, the other half becomes 0."""
    for r in range(rows):
        s, t = source + r * stride, target + r * target_stride
        whole = columns // 16 * 16
        for c in range(0, whole, 16):
            round_16(s + 4 * c, t + 2 * c)
        for c in range(whole, columns):
            round_1(s + 4 * c, t + 2 * c)
        if (t + 2 * columns) % 4:
            zero_16(t + 2 * columns)


@compiled(3)
def clear(target, stride, rows):
    """A 0 in each row at target: a product reads whole pairs, and what is there times 0 must not be NaN."""
    for r in range(rows):
        zero_16(target + r * stride)


@njit(nogil=True, cache=True)
def _corner(source, stride, rows, columns, size, target, target_stride):
    """Copy rows x columns elements of `size` bytes."""
    for r in range(rows):
        for c in range(columns):
            s, t = source + r * stride + size * c, target + r * target_stride + size * c
            if size == 4:
                bf16.copy_32(s, t)
            else:
                bf16.copy_16(s, t)


@compiled(7)
def pack_columns(source, stride, columns, summed, target, depth, first):
    """Pack the transpose of rows of float32 [columns, summed],
    from element `first` (a multiple of 32) of the sum on."""
    edge = np.empty((16, 32), np.float32)
    for c in range(0, columns, 16):
        at = c // PANEL * PANEL
        row = 128 if columns - at > 16 else 64
        place = target + 4 * at * depth + 4 * (c - at)
        for k in range(0, summed, 32):
            s, n, width = source + c * stride + 4 * k, min(16, columns - c), min(32, summed - k)
            if n < 16 or width < 32:
                edge[:] = 0
                _corner(s, stride, n, width, 4, edge.ctypes.data, 128)
                pair_columns(edge.ctypes.data, 128, place + (first + k) // 2 * row, row)
            else:
                pair_columns(s, stride, place + (first + k) // 2 * row, row)


@compiled(8)
def pack_rows(source, stride, columns, summed, size, target, depth, first):
    """Pack rows [summed, columns] of float32 (size 4) or bf16 (size 2) from element `first` (even) of the sum on."""
    edge = np.empty((2, 16), np.float32)
    for k in range(0, summed, 2):
        for c in range(0, columns, 16):
            at = c // PANEL * PANEL
            row = 128 if columns - at > 16 else 64
            t = target + 4 * at * depth + (first + k) // 2 * row + 4 * (c - at)
            s = source + k * stride + size * c
            second, n, width = s + stride, min(2, summed - k), min(16, columns - c)
            if n < 2 or width < 16:
                edge[:] = 0
                _corner(s, stride, n, width, size, edge.ctypes.data, 16 * size)
                s, second = edge.ctypes.data, edge.ctypes.data + 16 * size
            if size == 4:
                pair_rows(s, second, t)
            else:
                pair_rows_16(s, second, t)


@compiled(7)
def turn(source, stride, rows, columns, size, target, target_stride):
    """The transpose of rows [rows, columns] of float32 (size 4) or bf16 (size 2) as rows of bf16 [columns, rows].

    The target is padded to a multiple of 16 rows of a multiple of 32; columns beyond the last are zero."""
    edge = np.empty((32, 16), np.float32)
    for r in range(0, rows, 32):
        for c in range(0, columns, 16):
            s, step = source + r * stride + size * c, stride
            n, width = min(32, rows - r), min(16, columns - c)
            if n < 32 or width < 16:
                edge[:] = 0
                _corner(s, stride, n, width, size, edge.ctypes.data, 16 * size)
                s, step = edge.ctypes.data, 16 * size
            t = target + c * target_stride + 2 * r
            if size == 4:
                turn_rows(s, step, t, target_stride)
            else:
                turn_rows_16(s, step, t, target_stride)


@njit(nogil=True, cache=True)
def _edge(a, a_stride, panel, c, c_stride, rows, columns, pairs, wide, add, edge):
    """A tile that is not whole: computed whole in `edge`, then as much of it as there is."""
    at = edge.ctypes.data
    if wide:
        T4(a, a_stride, panel, at, 4 * PANEL, pairs, 0)
    else:
        N4(a, a_stride, panel, at, 4 * PANEL, pairs, 0)
    for r in range(rows):
        for j in range(columns):
            source, target = at + 4 * (r * PANEL + j), c + r * c_stride + 4 * j
            if add:
                bf16.add_1(source, target)
            else:
                bf16.copy_32(source, target)


@compiled(10)
def product(a, a_stride, b, depth, c, c_stride, rows, columns, summed, add):
    """c [rows, columns] = a [rows, summed] times packed b, or is added to if add. Reads up to SPARE rows behind a."""
    pairs = (summed + 1) // 2
    edge = np.empty((4, PANEL), np.float32)
    for j in range(0, columns, PANEL):
        panel, left = b + 4 * j * depth, columns - j
        wide = left > 16
        whole = left >= PANEL or left == 16
        i = 0
        while i < rows:
            x, y, n = a + i * a_stride, c + i * c_stride + 4 * j, rows - i
            if not whole or n < 4:
                _edge(x, a_stride, panel, y, c_stride, min(n, 4), min(left, PANEL), pairs, wide, add, edge)
                i += 4
            elif n >= 12:
                if wide:
                    T12(x, a_stride, panel, y, c_stride, pairs, add)
                else:
                    N12(x, a_stride, panel, y, c_stride, pairs, add)
                i += 12
            elif n >= 8:
                if wide:
                    T8(x, a_stride, panel, y, c_stride, pairs, add)
                else:
                    N8(x, a_stride, panel, y, c_stride, pairs, add)
                i += 8
            else:
                if wide:
                    T4(x, a_stride, panel, y, c_stride, pairs, add)
                else:
                    N4(x, a_stride, panel, y, c_stride, pairs, add)
                i += 4


# ---- the same with float32 operands, at half the speed: where rounding operands would cost too much accuracy ---------


@compiled(5)
def pack_single(source, stride, columns, summed, target):
    """As pack_columns, but float32 stays: panels [summed up to a multiple of 16, columns]."""
    depth = (summed + 15) // 16 * 16
    edge = np.empty((16, 16), np.float32)
    for c in range(0, columns, 16):
        at = c // PANEL * PANEL
        row = 128 if columns - at > 16 else 64
        place = target + 4 * at * depth + 4 * (c - at)
        for k in range(0, summed, 16):
            s, step, n, width = source + c * stride + 4 * k, stride, min(16, columns - c), min(16, summed - k)
            if n < 16 or width < 16:
                edge[:] = 0
                _corner(s, stride, n, width, 4, edge.ctypes.data, 64)
                s, step = edge.ctypes.data, 64
            turn_words(s, step, place + k * row, row)


@compiled(8)
def product_single(a, a_stride, b, c, c_stride, rows, columns, summed):
    """c [rows, columns] = a [rows, summed] times b of pack_single. columns: whole panels of 32, the last perhaps of 16;
    a and c are padded to a multiple of four rows."""
    depth = (summed + 15) // 16 * 16
    for j in range(0, columns, PANEL):
        panel, wide = b + 4 * j * depth, columns - j > 16
        i = 0
        while i < rows:
            x, y, n = a + i * a_stride, c + i * c_stride + 4 * j, rows - i
            if n >= 12:
                if wide:
                    S12(x, a_stride, panel, y, c_stride, summed, 0)
                else:
                    M12(x, a_stride, panel, y, c_stride, summed, 0)
                i += 12
            elif n >= 8:
                if wide:
                    S8(x, a_stride, panel, y, c_stride, summed, 0)
                else:
                    M8(x, a_stride, panel, y, c_stride, summed, 0)
                i += 8
            else:
                if wide:
                    S4(x, a_stride, panel, y, c_stride, summed, 0)
                else:
                    M4(x, a_stride, panel, y, c_stride, summed, 0)
                i += 4
