"""Formats whose weights are scale * level - floor: Q4_1, Q5_1 and, with scales in a super-block, Q2_K, Q4_K, Q5_K.

The levels of one block: for each of a row of trial scales the nearest levels, then scale and floor by weighted
least squares for these levels; the best is kept and the two steps alternate while they gain. A super-block's two
common factors are tried on a grid, where the error is known from the blocks' second derivatives; each block then
takes, among the neighbouring integers, what measures best.

In this file: x, w are tiles [weights, lanes] of weights and their importance; s is a tile of sums, whose rows are
named below; error always means sum of w * (x - decoded)^2.
"""

from __future__ import annotations

from anytune.simd.vectors import keep, least, load, most, nearest, ratio, shared, spread, to_half, where_less

HUGE = 3e38
# Rows of the tile of sums, one a block each: the best scale and floor, and the sums that make the error's curvature.
SCALE, FLOOR, W, WQ, WQQ, LS, LM = range(7)
KINDS = 7


@shared
def level(v, low, inverse, top):
    return most(least(nearest((v - low) * inverse), top), 0.0)


@shared
def _solve(x, w, first, count, top, low, inverse, total, weighted, unsigned):
    """Levels for a trial scale, and the least squares for them: (gain, scale, low, sum wq, sum wqq).

    gain: by how much the error is less than the weights' own square. total, weighted: sum w, sum wx. unsigned: the
    floor -low must not be negative.
    """
    q1, q2, qx = spread(x, 0.0), spread(x, 0.0), spread(x, 0.0)
    for i in range(first, first + count):
        v, u = load(x, i), load(w, i)
        q = level(v, low, inverse, top)
        uq = u * q
        q1 = q1 + uq
        q2 = q2 + uq * q
        qx = qx + uq * v
    det = total * q2 - q1 * q1
    both = where_less(1e-6 * total * q2, det, 1.0, 0.0)  # else all levels are alike, and tell nothing of the floor
    scale = where_less(0.5, both, ratio(total * qx - q1 * weighted, det), ratio(qx, q2))
    low = where_less(0.5, both, ratio(q2 * weighted - q1 * qx, det), 0.0)
    if unsigned:
        scale = where_less(0.0, low, ratio(qx, q2), scale)
        low = where_less(0.0, low, 0.0, low)
    gain = where_less(0.0, scale, scale * qx + low * weighted, -HUGE)
    return gain, scale, low, q1, q2


@shared
def search(x, w, first, count, top, shifts, step, unsigned, s, block, blocks):
    """The best scale and floor of one block, into rows of `s`."""
    high, low = spread(x, -HUGE), spread(x, HUGE)
    total, weighted = spread(x, 0.0), spread(x, 0.0)
    for i in range(first, first + count):
        v, u = load(x, i), load(w, i)
        high, low = most(high, v), least(low, v)
        total = total + u
        weighted = weighted + u * v
    if unsigned:
        low = least(low, 0.0)
    span = high - low
    best = spread(x, -HUGE)
    scale, base = ratio(span, spread(x, top)), low
    q1, q2 = spread(x, 0.0), spread(x, 0.0)
    for k in range(-shifts, shifts + 5):  # the last ones start from the best so far
        trial = ratio(spread(x, top + step * k), span) if k <= shifts else ratio(spread(x, 1.0), scale)
        start = low if k <= shifts else base
        gain, a, b, c, d = _solve(x, w, first, count, top, start, trial, total, weighted, unsigned)
        scale, base = where_less(best, gain, a, scale), where_less(best, gain, b, base)
        q1, q2 = where_less(best, gain, c, q1), where_less(best, gain, d, q2)
        best = most(best, gain)
    keep(s, SCALE * blocks + block, scale)
    keep(s, FLOOR * blocks + block, 0.0 - base)
    keep(s, W * blocks + block, total)
    keep(s, WQ * blocks + block, q1)
    keep(s, WQQ * blocks + block, q2)


@shared
def error(x, w, first, count, top, scale, floor):
    """Of one block at a scale and a floor, with the nearest levels."""
    inverse = ratio(spread(x, 1.0), scale)
    found = spread(x, 0.0)
    for i in range(first, first + count):
        v, u = load(x, i), load(w, i)
        r = v - (scale * level(v, 0.0 - floor, inverse, top) - floor)
        found = found + u * r * r
    return found


@shared
def _whole(v, limit):
    return most(least(nearest(v), limit), 0.0)


@shared
def _floor_for(s, block, blocks, scale, m_inverse, limit):
    """The integer floor that suits a scale: where the error's valley lies at that scale."""
    slope = ratio(load(s, WQ * blocks + block), load(s, W * blocks + block))
    floor = load(s, FLOOR * blocks + block) + slope * (scale - load(s, SCALE * blocks + block))
    return _whole(floor * m_inverse, limit)


@shared
def _modelled(s, blocks, d, m, limit):
    """The super-block's excess error with factors d and m and integers rounded at their best, from the sums alone."""
    d_inverse, m_inverse = ratio(spread(s, 1.0), d), ratio(spread(s, 1.0), m)
    excess = spread(s, 0.0)
    for j in range(blocks):
        scale, floor = load(s, SCALE * blocks + j), load(s, FLOOR * blocks + j)
        total, q1, q2 = load(s, W * blocks + j), load(s, WQ * blocks + j), load(s, WQQ * blocks + j)
        down = nearest(scale * d_inverse - 0.5)
        found = spread(s, HUGE)
        for up in range(2):
            a = most(least(down + 1.0 * up, limit), 0.0) * d
            b = _floor_for(s, j, blocks, a, m_inverse, limit) * m
            p, r = a - scale, b - floor
            found = least(found, q2 * p * p - 2.0 * q1 * p * r + total * r * r)
        excess = excess + found
    return excess


@shared
def _factors(s, blocks, limit, tries, step):
    """The two common factors: the grid's best, the scales' first and then the floors'."""
    scales, floors = spread(s, 0.0), spread(s, 0.0)
    for j in range(blocks):
        scales, floors = most(scales, load(s, SCALE * blocks + j)), most(floors, load(s, FLOOR * blocks + j))
    d, m = to_half(scales * (1.0 / limit)), to_half(floors * (1.0 / limit))
    for _ in range(2):
        best, chosen = spread(s, HUGE), d
        for k in range(tries):
            trial = to_half(scales * (1.0 / (limit + step * (2 - k))))
            excess = _modelled(s, blocks, trial, m, limit)
            chosen = where_less(excess, best, trial, chosen)
            best = least(best, excess)
        d, best, chosen = chosen, spread(s, HUGE), m
        for k in range(tries):
            trial = to_half(floors * (1.0 / (limit + step * (2 - k))))
            excess = _modelled(s, blocks, d, trial, limit)
            chosen = where_less(excess, best, trial, chosen)
            best = least(best, excess)
        m = chosen
    return d, m


@shared
def _integers(x, w, count, top, s, blocks, d, m, limit):
    """Each block's integers (rows LS and LM): the neighbours that measure best. Returns the error in all."""
    d_inverse, m_inverse = ratio(spread(s, 1.0), d), ratio(spread(s, 1.0), m)
    whole = spread(s, 0.0)
    for j in range(blocks):
        middle = nearest(load(s, SCALE * blocks + j) * d_inverse)
        best, ls, lm = spread(s, HUGE), spread(s, 0.0), spread(s, 0.0)
        for k in range(-1, 2):
            a = most(least(middle + 1.0 * k, limit), 0.0)
            b = _floor_for(s, j, blocks, a * d, m_inverse, limit)
            found = error(x, w, count * j, count, top, a * d, b * m)
            ls, lm = where_less(found, best, a, ls), where_less(found, best, b, lm)
            best = least(best, found)
        keep(s, LS * blocks + j, ls)
        keep(s, LM * blocks + j, lm)
        whole = whole + best
    return whole


@shared
def _refit(x, w, count, top, s, blocks, d, m):
    """Both factors by least squares for the levels and integers that d and m give."""
    aa, ab, bb, ax, bx = spread(s, 0.0), spread(s, 0.0), spread(s, 0.0), spread(s, 0.0), spread(s, 0.0)
    for j in range(blocks):
        ls, lm = load(s, LS * blocks + j), load(s, LM * blocks + j)
        scale, floor = d * ls, m * lm
        inverse = ratio(spread(s, 1.0), scale)
        for i in range(count * j, count * j + count):
            v, u = load(x, i), load(w, i)
            q = ls * level(v, 0.0 - floor, inverse, top)
            aa = aa + u * q * q
            ab = ab + u * q * lm
            bb = bb + u * lm * lm
            ax = ax + u * q * v
            bx = bx + u * lm * v
    det = aa * bb - ab * ab
    new_d = where_less(0.0, det, ratio(ax * bb - ab * bx, det), ratio(ax, aa))
    new_m = where_less(0.0, det, ratio(ax * ab - aa * bx, det), m)
    return to_half(most(new_d, 0.0)), to_half(most(new_m, 0.0))


@shared
def _error_at(x, w, count, top, s, blocks, d, m):
    whole = spread(s, 0.0)
    for j in range(blocks):
        scale, floor = d * load(s, LS * blocks + j), m * load(s, LM * blocks + j)
        whole = whole + error(x, w, count * j, count, top, scale, floor)
    return whole


@shared
def super_block(x, w, q, out, s, count, top, limit, shifts, step, tries, grain):
    """256 weights: levels into q, and into the rows of `out` the blocks' integers, then d and m."""
    blocks = 256 // count
    for j in range(blocks):
        search(x, w, count * j, count, top, shifts, step, True, s, j, blocks)
    d, m = _factors(s, blocks, limit, tries, grain)
    best = _integers(x, w, count, top, s, blocks, d, m, limit)
    for _ in range(2):
        new_d, new_m = _refit(x, w, count, top, s, blocks, d, m)
        found = _error_at(x, w, count, top, s, blocks, new_d, new_m)
        d, m = where_less(found, best, new_d, d), where_less(found, best, new_m, m)
        best = least(best, found)
    for j in range(blocks):
        ls, lm = load(s, LS * blocks + j), load(s, LM * blocks + j)
        keep(out, j, ls)
        keep(out, blocks + j, lm)
        _levels(x, q, count * j, count, top, d * ls, m * lm)
    keep(out, 2 * blocks, d)
    keep(out, 2 * blocks + 1, m)


@shared
def _levels(x, q, first, count, top, scale, floor):
    inverse = ratio(spread(x, 1.0), scale)
    for i in range(first, first + count):
        keep(q, i, level(load(x, i), 0.0 - floor, inverse, top))


@shared
def single(x, w, q, out, s, top):
    """32 weights with a float16 scale and floor of either sign: levels into q, scale and floor into `out`."""
    search(x, w, 0, 32, top, 12, 0.1, False, s, 0, 1)
    scale, floor = to_half(load(s, SCALE)), to_half(load(s, FLOOR))
    best = error(x, w, 0, 32, top, scale, floor)
    # rounding each to float16 can spoil the pair: the floor that suits the rounded scale competes
    slope = ratio(load(s, WQ), load(s, W))
    suited = to_half(load(s, FLOOR) + slope * (scale - load(s, SCALE)))
    found = error(x, w, 0, 32, top, scale, suited)
    floor = where_less(found, best, suited, floor)
    keep(out, 0, scale)
    keep(out, 1, 0.0 - floor)
    _levels(x, q, 0, 32, top, scale, floor)


# What each format's kernel is called with. x, w, q: tiles; out: rows of numbers beside the levels; s: room to work.
@shared
def q4_1(x, w, q, out, s):
    single(x, w, q, out, s, 15.0)


@shared
def q5_1(x, w, q, out, s):
    single(x, w, q, out, s, 31.0)


@shared
def q2_k(x, w, q, out, s):
    super_block(x, w, q, out, s, 16, 3.0, 15.0, 12, 0.1, 14, 0.5)


@shared
def q4_k(x, w, q, out, s):
    super_block(x, w, q, out, s, 32, 15.0, 63.0, 12, 0.1, 10, 1.0)


@shared
def q5_k(x, w, q, out, s):
    super_block(x, w, q, out, s, 32, 31.0, 63.0, 10, 0.1, 10, 1.0)
