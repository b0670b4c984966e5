"""What fast.py calls: loops over addresses. plain.py says what each of them means."""

from __future__ import annotations

import math

import numpy as np

from anytune.simd.exponential import exp
from anytune.simd.pointers import floats, ints, kernel
from .plain import _GELU_A, _GELU_C

F = np.float32
_ZERO, _ONE, _HALF, _TWO = F(0), F(1), F(0.5), F(2)
_NEVER = F(-np.inf)
_A, _A3, _K = F(_GELU_A), F(3 * _GELU_A), F(_GELU_C)


@kernel
def rms_norm(x, xs, gain, eps, rows, groups, n, y, ys):
    g = floats(gain, n)
    for t in range(rows):
        for h in range(groups):
            a, b = floats(x + 4 * (t * xs + h * n), n), floats(y + 4 * (t * ys + h * n), n)
            total = _ZERO
            for i in range(n):
                total += a[i] * a[i]
            r = _ONE / F(math.sqrt(total / F(n) + F(eps)))
            for i in range(n):
                b[i] = a[i] * r * g[i]


@kernel
def rms_norm_backward(dy, dys, x, xs, gain, eps, rows, groups, n, has_residual, residual, rs, dx, dxs):
    g = floats(gain, n)
    for t in range(rows):
        for h in range(groups):
            d, a = floats(dy + 4 * (t * dys + h * n), n), floats(x + 4 * (t * xs + h * n), n)
            out = floats(dx + 4 * (t * dxs + h * n), n)
            total, inner = _ZERO, _ZERO
            for i in range(n):
                total += a[i] * a[i]
                inner += d[i] * g[i] * a[i]
            r = _ONE / F(math.sqrt(total / F(n) + F(eps)))
            s = inner / F(n) * r * r * r
            if has_residual:
                e = floats(residual + 4 * (t * rs + h * n), n)
                for i in range(n):
                    out[i] = d[i] * g[i] * r - a[i] * s + e[i]
            else:
                for i in range(n):
                    out[i] = d[i] * g[i] * r - a[i] * s


@kernel
def gain_gradient(dy, dys, x, xs, eps, rows, groups, n, into):
    sums = floats(into, n)
    for t in range(rows):
        for h in range(groups):
            d, a = floats(dy + 4 * (t * dys + h * n), n), floats(x + 4 * (t * xs + h * n), n)
            total = _ZERO
            for i in range(n):
                total += a[i] * a[i]
            r = _ONE / F(math.sqrt(total / F(n) + F(eps)))
            for i in range(n):
                sums[i] += d[i] * a[i] * r


@kernel
def rope(x, xs, cos, sin, context, pairs, positions, rows, groups, n, neox, sign, y, ys):
    where = ints(positions, rows)
    turn = F(sign)
    for t in range(rows):
        p = where[t]
        if p < 0 or p >= context:
            raise IndexError("a position lies outside the rope table")
        c, s = floats(cos + 4 * p * pairs, pairs), floats(sin + 4 * p * pairs, pairs)
        for h in range(groups):
            a, b = floats(x + 4 * (t * xs + h * n), n), floats(y + 4 * (t * ys + h * n), n)
            if neox:
                for i in range(pairs):
                    u, v = a[i], a[i + pairs]
                    b[i] = u * c[i] - v * s[i] * turn
                    b[i + pairs] = u * s[i] * turn + v * c[i]
            else:
                for i in range(pairs):
                    u, v = a[2 * i], a[2 * i + 1]
                    b[2 * i] = u * c[i] - v * s[i] * turn
                    b[2 * i + 1] = u * s[i] * turn + v * c[i]
            if x != y:
                for i in range(2 * pairs, n):
                    b[i] = a[i]


@kernel
def glu(gate, gs, up, us, rows, n, is_gelu, y, ys):
    for t in range(rows):
        a, b, out = floats(gate + 4 * t * gs, n), floats(up + 4 * t * us, n), floats(y + 4 * t * ys, n)
        if is_gelu:
            for i in range(n):
                z = _K * (a[i] + _A * a[i] * a[i] * a[i])
                # 0.5 * (1 + tanh z) is the logistic function of 2z
                out[i] = a[i] / (_ONE + exp(-_TWO * z)) * b[i]
        else:
            for i in range(n):
                out[i] = a[i] / (_ONE + exp(-a[i])) * b[i]


@kernel
def glu_backward(dy, dys, gate, gs, up, us, rows, n, is_gelu, dgate, dgs, dup, dus):
    for t in range(rows):
        d, a, b = floats(dy + 4 * t * dys, n), floats(gate + 4 * t * gs, n), floats(up + 4 * t * us, n)
        da, db = floats(dgate + 4 * t * dgs, n), floats(dup + 4 * t * dus, n)
        if is_gelu:
            for i in range(n):
                x = a[i]
                s = _ONE / (_ONE + exp(-_TWO * _K * (x + _A * x * x * x)))
                slope = s + x * s * (_ONE - s) * _TWO * _K * (_ONE + _A3 * x * x)
                grad, out = d[i] * b[i] * slope, d[i] * x * s
                da[i] = grad
                db[i] = out
        else:
            for i in range(n):
                x = a[i]
                s = _ONE / (_ONE + exp(-x))
                grad, out = d[i] * b[i] * s * (_ONE + x * (_ONE - s)), d[i] * x * s
                da[i] = grad
                db[i] = out


@kernel
def add(x, xs, y, ys, rows, n, z, zs):
    for t in range(rows):
        a, b, out = floats(x + 4 * t * xs, n), floats(y + 4 * t * ys, n), floats(z + 4 * t * zs, n)
        for i in range(n):
            out[i] = a[i] + b[i]


@kernel
def add_scaled(x, xs, rows, n, scale, z, zs):
    k = F(scale)
    for t in range(rows):
        a, out = floats(x + 4 * t * xs, n), floats(z + 4 * t * zs, n)
        for i in range(n):
            out[i] += k * a[i]


@kernel
def _visible(scores, row, heads, first_query, first_key, keys, window):
    """Zero the keys of a row that its query does not see (a row starts at the address); the others' range."""
    position = first_query + row // heads - first_key
    low, high = max(0, position + 1 - window) if window > 0 else 0, min(position + 1, keys)
    a = floats(scores, keys)
    for i in range(0, low):
        a[i] = _ZERO
    for i in range(high, keys):
        a[i] = _ZERO
    return low, high


@kernel
def cap(scores, ss, rows, n, scale, most, slope, sls, wanted):
    k, top = F(2.0 * scale / most), F(most)
    for t in range(rows):
        v, out = floats(scores + 4 * t * ss, n), floats(slope + 4 * t * sls, n)
        for i in range(n):
            bend = _ONE - F(2.0) / (exp(v[i] * k) + _ONE)  # tanh; exp of large numbers is inf, of small ones 0
            if wanted:
                out[i] = _ONE - bend * bend
            v[i] = top * bend


@kernel
def softmax(scores, ss, rows, keys, heads, first_query, first_key, window, scale, log_sum):
    out, k = floats(log_sum, rows), F(scale)
    for t in range(rows):
        low, high = _visible(scores + 4 * t * ss, t, heads, first_query, first_key, keys, window)
        v = floats(scores + 4 * (t * ss + low), high - low)
        top = _NEVER
        for i in range(high - low):
            top = max(top, v[i])
        total = _ZERO
        for i in range(high - low):
            e = exp((v[i] - top) * k)
            v[i] = e
            total += e
        inverse = _ONE / total
        for i in range(high - low):
            v[i] *= inverse
        out[t] = top * k + F(math.log(total))


@kernel
def softmax_again(scores, ss, rows, keys, heads, first_query, first_key, window, scale, log_sum):
    sums, k = floats(log_sum, rows), F(scale)
    for t in range(rows):
        low, high = _visible(scores + 4 * t * ss, t, heads, first_query, first_key, keys, window)
        v, s = floats(scores + 4 * (t * ss + low), high - low), sums[t]
        for i in range(high - low):
            v[i] = exp(v[i] * k - s)


@kernel
def softmax_backward(probabilities, ps, dprobabilities, ds, rows, keys, inner, scale):
    sums, k = floats(inner, rows), F(scale)
    for t in range(rows):
        p, d, s = floats(probabilities + 4 * t * ps, keys), floats(dprobabilities + 4 * t * ds, keys), sums[t]
        for i in range(keys):
            d[i] = k * p[i] * (d[i] - s)


@kernel
def row_dots(x, xs, y, ys, rows, heads, n, out, os):
    for t in range(rows):
        to = floats(out + 4 * t * os, heads)
        for h in range(heads):
            a, b = floats(x + 4 * (t * xs + h * n), n), floats(y + 4 * (t * ys + h * n), n)
            total = _ZERO
            for i in range(n):
                total += a[i] * b[i]
            to[h] = total


@kernel
def loss_rows(logits, ls, rows, columns, targets, first, top, total, picked):
    want, tops, totals, picks = ints(targets, rows), floats(top, rows), floats(total, rows), floats(picked, rows)
    for t in range(rows):
        a = floats(logits + 4 * t * ls, columns)
        new = tops[t]
        for i in range(columns):
            new = max(new, a[i])
        sum = _ZERO
        for i in range(columns):
            sum += exp(a[i] - new)
        if totals[t] > _ZERO:
            sum += totals[t] * exp(tops[t] - new)
        totals[t] = sum
        tops[t] = new
        place = want[t] - first
        if 0 <= place < columns:
            picks[t] = a[place]


@kernel
def loss_rows_backward(logits, ls, rows, columns, targets, first, log_sum, scale):
    want, sums, k = ints(targets, rows), floats(log_sum, rows), F(scale)
    for t in range(rows):
        a, s = floats(logits + 4 * t * ls, columns), sums[t]
        for i in range(columns):
            a[i] = k * exp(a[i] - s)
        place = want[t] - first
        if 0 <= place < columns:
            a[place] -= k


@kernel
def sum_squares(x, n):
    a = floats(x, n)
    total = 0.0
    for i in range(n):
        total += np.float64(a[i]) * np.float64(a[i])
    return total


@kernel
def encode_moments(x, n, guess, middles, block, codes, scale):
    values, bits = floats(x, n), ints(x, n)
    for k in range((n + block - 1) // block):
        low, high = k * block, min((k + 1) * block, n)
        most = _ZERO
        for i in range(low, high):
            most = max(most, abs(values[i]))
        scale[k] = most
        for i in range(low, high):
            values[i] = values[i] / most if most > _ZERO else _ZERO
        for i in range(low, high):
            code = int(guess[(bits[i] >> 16) & 0xFFFF])
            while code < 255 and middles[code] < values[i]:
                code += 1
            codes[i] = code


@kernel
def adamw(p, g, m, v, n, lr, beta1, beta2, eps, decay, clip, correct1, correct2):
    ps, gs, ms, vs = floats(p, n), floats(g, n), floats(m, n), floats(v, n)
    b1, b2, c1, c2, e = F(beta1), F(beta2), F(1 - beta1), F(1 - beta2), F(eps)
    shrink, step, root, k = F(1 - lr * decay), F(lr / correct1), F(1 / math.sqrt(correct2)), F(clip)
    for i in range(n):
        grad = gs[i] * k
        first = b1 * ms[i] + c1 * grad
        second = b2 * vs[i] + c2 * grad * grad
        ms[i] = first
        vs[i] = second
        ps[i] = ps[i] * shrink - step * first / (F(math.sqrt(second)) * root + e)
        gs[i] = _ZERO
