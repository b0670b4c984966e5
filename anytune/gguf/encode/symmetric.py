"""Formats whose weights are scale * level, levels on both sides of zero: Q4_0, Q5_0, Q3_K, Q6_K, IQ4_NL, IQ4_XS.

As in affine.py, with one number less: trial scales that bring the largest weight near either end of the levels, the
scale by weighted least squares for the levels that each gives, and in a super-block a common factor on a grid. The
levels are the integers from -half to half - 1, or, where half is 0, IQ4's sixteen.

In this file: x, w are tiles [weights, lanes]; s is a tile of sums; error means sum of w * (x - decoded)^2.
"""

from __future__ import annotations

from anytune.gguf.blocks import CODES_IQ4
from anytune.simd.vectors import keep, least, load, most, nearest, ratio, shared, size, spread, to_half, where_less

HUGE = 3e38
SCALE, QQ, LS = range(3)
KINDS = 3
CODES = tuple(float(code) for code in CODES_IQ4)
STEPS = tuple((below + above) / 2 for below, above in zip(CODES[:-1], CODES[1:], strict=True))
JUMPS = tuple(above - below for below, above in zip(CODES[:-1], CODES[1:], strict=True))


@shared
def _code(v):
    """The nearest of IQ4's levels."""
    found = where_less(v, STEPS[0], CODES[0], CODES[0] + JUMPS[0])
    for k in range(1, 15):
        found = found + where_less(v, STEPS[k], 0.0, JUMPS[k])
    return found


@shared
def level(v, half):
    if half == 0.0:
        return _code(v)
    return most(least(nearest(v), half - 1.0), 0.0 - half)


@shared
def _index(v, half):
    """The number of the nearest level, from 0."""
    if half > 0.0:
        return level(v, half) + half
    found = where_less(v, STEPS[0], 0.0, 1.0)
    for k in range(1, 15):
        found = found + where_less(v, STEPS[k], 0.0, 1.0)
    return found


@shared
def _solve(x, w, first, count, half, inverse):
    """Levels for a trial scale, and the least squares for them: (gain, scale, sum w * level^2)."""
    qq, qx = spread(x, 0.0), spread(x, 0.0)
    for i in range(first, first + count):
        v, u = load(x, i), load(w, i)
        q = level(v * inverse, half)
        uq = u * q
        qq = qq + uq * q
        qx = qx + uq * v
    scale = ratio(qx, qq)
    return scale * qx, scale, qq


@shared
def search(x, w, first, count, half, shifts, step, s, block, blocks):
    """The best scale of one block, of either sign, into rows of `s`."""
    peak, top = spread(x, 0.0), spread(x, 0.0)
    for i in range(first, first + count):
        v = load(x, i)
        peak = where_less(top, size(v), v, peak)
        top = most(top, size(v))
    bottom_end, top_end = (0.0 - half, half - 1.0) if half > 0.0 else (CODES[0], CODES[15])
    best, scale, curve = spread(x, -1.0), spread(x, 0.0), spread(x, 0.0)
    for end in (bottom_end, top_end):
        for k in range(-shifts, shifts + 1):
            gain, a, b = _solve(x, w, first, count, half, ratio(spread(x, end + step * k), peak))
            scale, curve = where_less(best, gain, a, scale), where_less(best, gain, b, curve)
            best = most(best, gain)
    for _k in range(4):
        gain, a, b = _solve(x, w, first, count, half, ratio(spread(x, 1.0), scale))
        scale, curve = where_less(best, gain, a, scale), where_less(best, gain, b, curve)
        best = most(best, gain)
    keep(s, SCALE * blocks + block, scale)
    keep(s, QQ * blocks + block, curve)


@shared
def error(x, w, first, count, half, scale):
    inverse = ratio(spread(x, 1.0), scale)
    found = spread(x, 0.0)
    for i in range(first, first + count):
        v, u = load(x, i), load(w, i)
        r = v - scale * level(v * inverse, half)
        found = found + u * r * r
    return found


@shared
def _factor(s, blocks, bottom, top, tries, step):
    """The common factor: the grid's best by the curvatures, integers rounded."""
    peak, size_ = spread(s, 0.0), spread(s, 0.0)
    for j in range(blocks):
        scale = load(s, SCALE * blocks + j)
        peak = where_less(size_, size(scale), scale, peak)
        size_ = most(size_, size(scale))
    best, chosen = spread(s, HUGE), spread(s, 0.0)
    for end, inward in ((bottom, step), (top, 0.0 - step)):
        for k in range(tries):
            d = to_half(peak * (1.0 / (end + inward * (k - 1))))
            inverse = ratio(spread(s, 1.0), d)
            excess = spread(s, 0.0)
            for j in range(blocks):
                scale = load(s, SCALE * blocks + j)
                r = d * most(least(nearest(scale * inverse), top), bottom) - scale
                excess = excess + load(s, QQ * blocks + j) * r * r
            chosen = where_less(excess, best, d, chosen)
            best = least(best, excess)
    return chosen


@shared
def _integers(x, w, count, half, s, blocks, d, bottom, top):
    """Each block's integer (row LS): the neighbour that measures best. Returns the error in all."""
    inverse = ratio(spread(s, 1.0), d)
    whole = spread(s, 0.0)
    for j in range(blocks):
        middle = nearest(load(s, SCALE * blocks + j) * inverse)
        best, ls = spread(s, HUGE), spread(s, 0.0)
        for k in range(-1, 2):
            a = most(least(middle + 1.0 * k, top), bottom)
            found = error(x, w, count * j, count, half, a * d)
            ls = where_less(found, best, a, ls)
            best = least(best, found)
        keep(s, LS * blocks + j, ls)
        whole = whole + best
    return whole


@shared
def _refit(x, w, count, half, s, blocks, d):
    """The factor by least squares for the levels and integers that d gives."""
    qq, qx = spread(s, 0.0), spread(s, 0.0)
    for j in range(blocks):
        ls = load(s, LS * blocks + j)
        inverse = ratio(spread(s, 1.0), d * ls)
        for i in range(count * j, count * j + count):
            v, u = load(x, i), load(w, i)
            q = ls * level(v * inverse, half)
            qq = qq + u * q * q
            qx = qx + u * q * v
    return to_half(ratio(qx, qq))


@shared
def super_block(x, w, q, out, s, count, half, bottom, top, shifts, step, tries, grain):
    """256 weights: level numbers into q, and into the rows of `out` the blocks' integers, then d."""
    blocks = 256 // count
    for j in range(blocks):
        search(x, w, count * j, count, half, shifts, step, s, j, blocks)
    d = _factor(s, blocks, bottom, top, tries, grain)
    best = _integers(x, w, count, half, s, blocks, d, bottom, top)
    for _ in range(2):
        trial = _refit(x, w, count, half, s, blocks, d)
        found = spread(s, 0.0)
        for j in range(blocks):
            found = found + error(x, w, count * j, count, half, trial * load(s, LS * blocks + j))
        d = where_less(found, best, trial, d)
        best = least(best, found)
    for j in range(blocks):
        keep(out, j, load(s, LS * blocks + j))
        _indexes(x, q, count * j, count, half, d * load(s, LS * blocks + j))
    keep(out, blocks, d)


@shared
def _indexes(x, q, first, count, half, scale):
    inverse = ratio(spread(x, 1.0), scale)
    for i in range(first, first + count):
        keep(q, i, _index(load(x, i) * inverse, half))


@shared
def single(x, w, q, out, s, half, shifts, step):
    """32 weights with a float16 scale: level numbers into q, the scale into `out`."""
    search(x, w, 0, 32, half, shifts, step, s, 0, 1)
    scale = to_half(load(s, SCALE))
    keep(out, 0, scale)
    _indexes(x, q, 0, 32, half, scale)


# What each format's kernel is called with. x, w, q: tiles; out: rows of numbers beside the levels; s: room to work.
@shared
def q4_0(x, w, q, out, s):
    single(x, w, q, out, s, 8.0, 12, 0.1)


@shared
def q5_0(x, w, q, out, s):
    single(x, w, q, out, s, 16.0, 12, 0.1)


@shared
def q3_k(x, w, q, out, s):
    super_block(x, w, q, out, s, 16, 4.0, -32.0, 31.0, 12, 0.1, 8, 0.5)


@shared
def q6_k(x, w, q, out, s):
    super_block(x, w, q, out, s, 16, 32.0, -128.0, 127.0, 9, 0.1, 6, 1.0)


@shared
def iq4_nl(x, w, q, out, s):
    single(x, w, q, out, s, 0.0, 9, 1.0)


@shared
def iq4_xs(x, w, q, out, s):
    super_block(x, w, q, out, s, 32, 0.0, -32.0, 31.0, 9, 1.0, 6, 0.5)
