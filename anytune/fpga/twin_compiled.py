"""twin.py's loops, compiled by Numba. Tokens are the last axis, which the vector units run along."""

from __future__ import annotations

import numpy as np
from numba import njit

TOKENS = 64  # at a time: what a square needs stays in the first cache
LEAST = 2.0**-126
EDGE = LEAST - 2.0**-151


@njit(cache=True, nogil=True, inline="always")
def _add(acc, row, t0, size, p, scale, s):
    """acc[row, t0:t0+size] += f32(p scale s), without subnormals."""
    for t in range(size):
        v = np.float64(p[t]) * (scale[t] * s)
        y = np.float32(v) if abs(v) >= EDGE else np.float32(0)
        total = acc[row, t0 + t] + y
        acc[row, t0 + t] = total if abs(total) >= np.float32(LEAST) else np.float32(0)


@njit(cache=True, nogil=True, inline="always")
def _dot(p, size, q, row, z):
    """p[t] = sum over 32 of q[row, j] z[j, t]: integers below 2^24, exact in float32 in any order."""
    for t in range(size):
        p[t] = 0
    for j in range(0, 32, 4):
        a, b, c, d = q[row, j], q[row, j + 1], q[row, j + 2], q[row, j + 3]
        for t in range(size):
            p[t] += a * z[j, t] + b * z[j + 1, t] + c * z[j + 2, t] + d * z[j + 3, t]


@njit(cache=True, nogil=True)
def rows(acc, x, xs, sums, codes, scales, factors, low, high, first, end):
    """acc [N, T] += terms of blocks low..high for outputs 32 first..32 end. x float32 [K, T], xs and sums [K/32, T]."""
    z, q = np.empty((32, TOKENS), np.float32), np.empty((32, 32), np.float32)
    p, scale = np.empty(TOKENS, np.float32), np.empty(TOKENS, np.float64)
    for t0 in range(0, acc.shape[1], TOKENS):
        size = min(TOKENS, acc.shape[1] - t0)
        for block in range(low, high):
            for t in range(size):
                scale[t] = xs[block, t0 + t]
            for j in range(32):
                for t in range(size):
                    z[j, t] = x[32 * block + j, t0 + t]
            for group in range(first, end):
                for plane in range(len(factors)):
                    if plane < len(codes):
                        for i in range(32):
                            for j in range(32):
                                q[i, j] = codes[plane, 32 * group + i, 32 * block + j]
                    else:
                        for t in range(size):
                            p[t] = sums[block, t0 + t]
                    for i in range(32):
                        if plane < len(codes):
                            _dot(p, size, q, i, z)
                        n = 32 * group + i
                        _add(acc, n, t0, size, p, scale, np.float64(scales[plane, n, block]) * factors[plane])


@njit(cache=True, nogil=True)
def _prescale(y, d, n0, t0, size, z, scale):
    """z[j, t] = y[n0 + j, t0 + t] d[j], as int8's values; scale: powers of two, or 0."""
    peak, turned = np.zeros(size), np.empty(size)
    for j in range(32):
        for t in range(size):
            peak[t] = max(peak[t], abs(np.float64(y[n0 + j, t0 + t]) * d[j]))
    bits, result, inverse = peak.view(np.int64), scale.view(np.int64), turned.view(np.int64)
    for t in range(size):
        e = (bits[t] >> 52) - 6  # biased, of a step
        e = e if e >= 1023 - 126 else 0
        result[t] = e << 52
        inverse[t] = (2046 - e) << 52 if e > 0 else 0
    for j in range(32):
        for t in range(size):
            q = np.rint(np.float64(y[n0 + j, t0 + t]) * d[j] * turned[t])
            z[j, t] = np.float32(min(max(q, -127.0), 127.0))


@njit(cache=True, nogil=True)
def columns(acc, y, codes, scales, factors, low, high, first, end):
    """acc [K, T] += terms of blocks low..high of N for outputs 32 first..32 end. y float32 [N, T]."""
    z, scale, d = np.empty((32, TOKENS), np.float32), np.empty(TOKENS), np.empty(32)
    turned, p = np.empty((32, 32), np.float32), np.empty(TOKENS, np.float32)
    for t0 in range(0, acc.shape[1], TOKENS):
        size = min(TOKENS, acc.shape[1] - t0)
        for group in range(first, end):
            for block in range(low, high):
                n0 = 32 * block
                for plane in range(len(factors)):
                    for j in range(32):
                        d[j] = scales[plane, n0 + j, group]
                    _prescale(y, d, n0, t0, size, z, scale)
                    if plane < len(codes):
                        for j in range(32):
                            for k in range(32):
                                turned[k, j] = codes[plane, n0 + j, 32 * group + k]
                    else:
                        turned[:] = 1
                    for k in range(32):
                        _dot(p, size, turned, k, z)
                        _add(acc, 32 * group + k, t0, size, p, scale, factors[plane])
