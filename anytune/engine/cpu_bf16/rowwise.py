"""Elementwise kernels of float32 rows that end in bf16 rows: norms, gated activations, probabilities, the loss.

plain.py in numpy/ says what each means. Columns that are no multiple of sixteen go through a row of scratch, padded.
Strides are in bytes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types

from anytune.simd import bf16
from anytune.simd import elementwise as v
from anytune.simd.exponential import exp_16
from anytune.simd.pointers import floats, ints

F = np.float32
_ONE = F(1)
_GELU_A, _GELU_C = F(0.044715), F(0.7978845608028654)
_inline = njit(nogil=True, cache=True)


def kernel(arguments: str):
    """Compile for arguments given as letters: i int64, f float64; the code stays on disk."""
    kinds = {"i": types.int64, "f": types.float64}
    return njit(types.void(*[kinds[a] for a in arguments]), nogil=True, cache=True, error_model="numpy")


@_inline
def _loaded(source, columns, edge):
    """(address of a row that can be read in whole registers): the row itself, or its padded copy in `edge`."""
    if columns % 16 == 0:
        return source
    for i in range(columns):
        bf16.copy_32(source + 4 * i, edge + 4 * i)
    for i in range(columns, columns + 16 - columns % 16):
        bf16.copy_32(edge, edge + 4 * i)
    return edge


@_inline
def _written(source, columns, target):
    """Copy a row of bf16 that was made in whole registers, its columns only."""
    for i in range(columns):
        bf16.copy_16(source + 2 * i, target + 2 * i)


@kernel("iiifiiiii")
def norm(x, x_stride, gain, eps, rows, columns, edge, target, target_stride):
    """RMSNorm. edge: scratch for three rows."""
    wide = (columns + 15) // 16 * 16
    gains, out = _loaded(gain, columns, edge + 4 * wide), edge + 8 * wide
    zero = v.fill(F(0))
    for t in range(rows):
        a = _loaded(x + t * x_stride, columns, edge)
        squares, more = zero, zero
        whole = columns // 32 * 32
        for i in range(0, whole, 32):
            p, q = v.load(a + 4 * i), v.load(a + 4 * i + 64)
            squares, more = v.fma(p, p, squares), v.fma(q, q, more)
        for i in range(whole, columns, 16):
            p = v.within(v.load(a + 4 * i), zero, i, 0, columns)
            squares = v.fma(p, p, squares)
        r = v.fill(_ONE / F(math.sqrt(v.total(v.add(squares, more)) / F(columns) + F(eps))))
        y = target + t * target_stride
        to = y if wide == columns else out
        for i in range(0, columns, 16):
            v.store_16(to + 2 * i, v.mul(v.mul(v.load(a + 4 * i), r), v.load(gains + 4 * i)))
        if to != y:
            _written(to, columns, y)


@_inline
def _sigmoid(x):
    one = v.fill(_ONE)
    return v.div(one, v.add(one, exp_16(v.sub(v.fill(F(0)), x))))


@_inline
def _slope_of_gelu(x):
    """(z, dz/dx) of the tanh form of GELU, x * sigmoid(2 z)."""
    square = v.mul(x, x)
    cubic = v.fma(v.fill(_GELU_A), square, v.fill(_ONE))
    return v.mul(v.mul(v.fill(F(2) * _GELU_C), x), cubic), v.mul(
        v.fill(F(2) * _GELU_C), v.fma(v.fill(F(3) * _GELU_A), square, v.fill(_ONE))
    )


@kernel("iiiiiiiiii")
def glu(gate, gate_stride, up, up_stride, rows, columns, is_gelu, edge, target, target_stride):
    """act(gate) * up. edge: scratch for three rows."""
    wide = (columns + 15) // 16 * 16
    for t in range(rows):
        a = _loaded(gate + t * gate_stride, columns, edge)
        b = _loaded(up + t * up_stride, columns, edge + 4 * wide)
        y = target + t * target_stride
        to = y if wide == columns else edge + 8 * wide
        for i in range(0, columns, 16):
            x = v.load(a + 4 * i)
            s = _sigmoid(_slope_of_gelu(x)[0]) if is_gelu else _sigmoid(x)
            v.store_16(to + 2 * i, v.mul(v.mul(x, s), v.load(b + 4 * i)))
        if to != y:
            _written(to, columns, y)


@kernel("iiiiiiiiiiiii")
def glu_backward(
    dy, dy_stride, gate, gate_stride, up, up_stride, rows, columns, is_gelu, edge, dgate, dup, target_stride
):
    """dgate = dy * up * act'(gate), dup = dy * act(gate). edge: scratch for four rows."""
    wide = (columns + 15) // 16 * 16
    one = v.fill(_ONE)
    for t in range(rows):
        d = _loaded(dy + t * dy_stride, columns, edge)
        a = _loaded(gate + t * gate_stride, columns, edge + 4 * wide)
        b = _loaded(up + t * up_stride, columns, edge + 8 * wide)
        da, db = dgate + t * target_stride, dup + t * target_stride
        to_a, to_b = (da, db) if wide == columns else (edge + 12 * wide, edge + 14 * wide)
        for i in range(0, columns, 16):
            x, grad = v.load(a + 4 * i), v.load(d + 4 * i)
            if is_gelu:
                z, slope = _slope_of_gelu(x)
                s = _sigmoid(z)
                slope = v.fma(v.mul(v.mul(x, s), v.sub(one, s)), slope, s)
            else:
                s = _sigmoid(x)
                slope = v.mul(s, v.fma(x, v.sub(one, s), one))
            v.store_16(to_a + 2 * i, v.mul(v.mul(grad, v.load(b + 4 * i)), slope))
            v.store_16(to_b + 2 * i, v.mul(v.mul(grad, x), s))
        if to_a != da:
            _written(to_a, columns, da)
            _written(to_b, columns, db)


@_inline
def _seen(position, keys, window):
    """The half-open range of keys that a query at `position`, counted from the first key, sees."""
    return max(0, position + 1 - window) if window > 0 else 0, min(position + 1, keys)


@kernel("fiiiiiiiiii")
def softmax(scale, scores, stride, rows, keys, first_query, window, log_sum, inverse, target, target_stride):
    """target: e^(scale * (score - the row's largest)) of the keys that a row's query sees,
    0 up to a multiple of sixteen.

    Rows of scores are padded to whole registers. first_query: position of row 0, counted from the first key. log_sum
    [rows] gets log(sum e^(scale * score)), inverse [rows] what the probabilities still have to be multiplied with.
    """
    logs, inverses, k = floats(log_sum, rows), floats(inverse, rows), v.fill(F(scale))
    zero, least = v.fill(F(0)), v.fill(F(-np.inf))
    for t in range(rows):
        low, high = _seen(first_query + t, keys, window)
        a, to, begin = scores + t * stride, target + t * target_stride, low // 16 * 16
        tops = least
        for i in range(begin, high, 16):
            x = v.load(a + 4 * i)
            tops = v.larger(tops, v.within(x, least, i, low, high) if i < low or i + 16 > high else x)
        shift = v.largest(tops) * F(scale)
        sums, rounded, back = zero, zero, v.fill(-shift)
        for i in range(0, begin, 16):
            v.store_16(to + 2 * i, zero)
        for i in range(begin, high, 16):
            e = exp_16(v.fma(v.load(a + 4 * i), k, back))
            if i < low or i + 16 > high:
                e = v.within(e, zero, i, low, high)
            sums, rounded = v.add(sums, e), v.add(rounded, v.near(e))
            v.store_16(to + 2 * i, e)
        for i in range((high + 15) // 16 * 16, keys, 16):
            v.store_16(to + 2 * i, zero)
        logs[t] = shift + F(math.log(v.total(sums)))
        inverses[t] = _ONE / v.total(rounded)  # what is stored, then, sums to 1


@kernel("iiiii")
def scale_rows(x, stride, rows, columns, factors):
    """Row t of float32 times factors[t]."""
    f = floats(factors, rows)
    for t in range(rows):
        k, a = f[t], floats(x + t * stride, columns)
        for i in range(columns):
            a[i] *= k


@kernel("fiiiiiiiiiii")
def softmax_backward(scale, scores, dp, stride, rows, keys, first_query, window, log_sum, p, ds, target_stride):
    """p: the probabilities again, from scores (which they overwrite) and log_sum; ds: scale * p * (dp - sum(p * dp)).
    Both bf16, else as in softmax(). The sum is of these very dp, so that an error they share falls out."""
    logs, k, zero = floats(log_sum, rows), v.fill(F(scale)), v.fill(F(0))
    for t in range(rows):
        low, high = _seen(first_query + t, keys, window)
        a, d, begin = scores + t * stride, dp + t * stride, low // 16 * 16
        to_p, to_d = p + t * target_stride, ds + t * target_stride
        back, sums = v.fill(-logs[t]), zero
        for i in range(0, begin, 16):
            v.store_16(to_p + 2 * i, zero)
            v.store_16(to_d + 2 * i, zero)
        for i in range(begin, high, 16):
            e, g = exp_16(v.fma(v.load(a + 4 * i), k, back)), v.load(d + 4 * i)
            if i < low or i + 16 > high:  # what is behind the last key means nothing
                e, g = v.within(e, zero, i, low, high), v.within(g, zero, i, low, high)
                v.store(d + 4 * i, g)
            v.store(a + 4 * i, e)
            v.store_16(to_p + 2 * i, e)
            sums = v.fma(e, g, sums)
        inner = v.fill(v.total(sums))
        for i in range(begin, high, 16):
            v.store_16(to_d + 2 * i, v.mul(v.mul(v.load(a + 4 * i), k), v.sub(v.load(d + 4 * i), inner)))
        for i in range((high + 15) // 16 * 16, keys, 16):
            v.store_16(to_p + 2 * i, zero)
            v.store_16(to_d + 2 * i, zero)


@kernel("iiiiiiiiii")
def loss(logits, stride, rows, columns, targets, first, top, total, picked, edge):
    """Fold columns first… of the logits into running maxima and sums; picked gets the target's.
    edge: a row of scratch."""
    want, tops, totals, picks = ints(targets, rows), floats(top, rows), floats(total, rows), floats(picked, rows)
    least, zero = v.fill(F(-np.inf)), v.fill(F(0))
    for t in range(rows):
        a, whole = _loaded(logits + t * stride, columns, edge), columns // 16 * 16
        most = least
        for i in range(0, columns, 16):
            x = v.load(a + 4 * i)
            most = v.larger(x, most)  # in this order a NaN stays
        new = max(tops[t], v.largest(most))
        back, sums = v.fill(new), zero
        for i in range(0, whole, 16):
            sums = v.add(sums, exp_16(v.sub(v.load(a + 4 * i), back)))
        if whole < columns:
            sums = v.add(sums, v.within(exp_16(v.sub(v.load(a + 4 * whole), back)), zero, whole, 0, columns))
        sum = v.total(sums)
        if totals[t] > F(0):
            sum += totals[t] * v.first(exp_16(v.fill(tops[t] - new)))
        totals[t], tops[t] = sum, new
        place = want[t] - first
        if 0 <= place < columns:
            picks[t] = floats(a, columns)[place]


@kernel("fiiiiiiiiii")
def loss_backward(scale, logits, stride, rows, columns, targets, first, log_sum, edge, target, target_stride):
    """target: scale * (softmax(logits) - onehot(target)) for columns first…, with zeros up to a multiple of sixteen."""
    want, sums, k, zero = ints(targets, rows), floats(log_sum, rows), v.fill(F(scale)), v.fill(F(0))
    one = floats(edge, 1)
    for t in range(rows):
        a, to, back, whole = (
            _loaded(logits + t * stride, columns, edge),
            target + t * target_stride,
            v.fill(sums[t]),
            columns // 16 * 16,
        )
        for i in range(0, whole, 16):
            v.store_16(to + 2 * i, v.mul(k, exp_16(v.sub(v.load(a + 4 * i), back))))
        if whole < columns:
            last = v.mul(k, exp_16(v.sub(v.load(a + 4 * whole), back)))
            v.store_16(to + 2 * whole, v.within(last, zero, whole, 0, columns))
        place = want[t] - first
        if 0 <= place < columns:
            value = v.first(exp_16(v.fill(floats(a, columns)[place] - sums[t])))
            one[0] = F(scale) * (value - _ONE)
            bf16.round_1(edge, to + 2 * place)
