"""The gated delta net's backward in Triton: results again, the walk back over states, and all gradients of a chunk."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anytune.engine.base import DeltaHeads

from .. import plain_delta as plain
from .delta import Net, pad, result, suits
from .delta_chunk import decays, per_token, places, rows_of, unit
from .delta_states import tile, walk_back
from .entry import Entry

Tensor = torch.Tensor


@Entry
@triton.jit
def through_norms(
    dy,
    x,
    u,
    states,
    alpha,
    a,
    bias,
    gain,
    first,
    do,
    local_du,
    gains,
    tokens,
    dy_row,
    x_row,
    alpha_row,
    eps,
    scale,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    GAINS: tl.constexpr,
):
    """Grid (values, chunks): do, the gradient of what tokens read, and local_du, that of the writes of their own chunk;
    GAINS: and the gain's, float32 [chunks, values, VALUE]."""
    head, chunk = tl.program_id(0), tl.program_id(1)
    half: tl.constexpr = u.dtype.element_ty
    begin, columns = chunk * C, tl.arange(0, VALUE_PAD)
    o, scores = result(
        x, u, states, alpha, a, bias, first, head, chunk, tokens, x_row, alpha_row, eps, scale,
        KEYS, VALUES, KEY, KEY_PAD, VALUE, VALUE_PAD, C, PRECISION,
    )  # fmt: skip
    inverse = tl.rsqrt(tl.sum(o * o, 1) / VALUE + eps)[:, None]
    normed = o * inverse
    given = rows_of(dy, begin, head * VALUE, dy_row, tokens, C, VALUE, VALUE_PAD)
    exists = columns < VALUE
    if GAINS:
        tl.store(gains + (chunk * VALUES + head) * VALUE + columns, tl.sum(given * normed, 0), mask=exists)
    given = given * tl.load(gain + columns, mask=exists, other=0.0)[None, :]
    given = (inverse * (given - normed * (tl.sum(given * normed, 1) / VALUE)[:, None])).to(half)
    at = places(0, begin, head, VALUES, columns, C, VALUE)
    tl.store(do + at, given, mask=exists[None, :])
    back = tl.dot(tl.trans(scores), given, input_precision=PRECISION)
    tl.store(local_du + at, back.to(half), mask=exists[None, :])


@triton.jit
def unit_backward(dy, y, inverse, eps):
    inner = tl.where(inverse < 1 / eps, tl.sum(dy * y, 1), 0.0)
    return inverse[:, None] * (dy - y * inner[:, None])


@Entry
@triton.jit
def gradients(
    x,
    beta,
    alpha,
    a,
    bias,
    first,
    inverse,
    states,
    u,
    do,
    du,
    after,
    dx,
    dqk,
    dbeta,
    dalpha,
    dlogs,
    tokens,
    x_row,
    beta_row,
    alpha_row,
    dx_row,
    dbeta_row,
    dalpha_row,
    eps,
    scale,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BV: tl.constexpr,
    LOGS: tl.constexpr,
):
    """Grid (values, chunks). Writes dbeta, dalpha, the values' part of dx, and the queries' and keys' part of it where
    a key head has one value head, else each value head's, float32 dqk [2, T, values, KEY]. LOGS: and the gradient of
    the decays' logarithms, float32 [T, values]."""
    head, chunk = tl.program_id(0), tl.program_id(1)
    begin, key_head = chunk * C, head % KEYS
    half: tl.constexpr = u.dtype.element_ty
    local = tl.arange(0, C)
    keys = tl.arange(0, KEY_PAD)
    strength = tl.sigmoid(per_token(beta, begin, head, beta_row, tokens, C))
    solved = tl.load(
        inverse + (tl.cast(chunk, tl.int64) * VALUES + head) * C * C + (local[:, None] * C + local[None, :])
    )
    there = begin + local < tokens
    dscores = tl.zeros([C, C], tl.float32)
    dinner = tl.zeros([C, C], tl.float32)
    dstrength = tl.zeros([C], tl.float32)
    for column in tl.range(0, VALUE_PAD, BV):  # a loop for each sum: all at once they do not fit into registers
        columns = column + tl.arange(0, BV)
        wide = (columns < VALUE)[None, :]
        at = places(0, begin, head, VALUES, columns, C, VALUE)
        dright = tl.dot(tl.trans(solved), tl.load(du + at, mask=wide, other=0.0), input_precision=PRECISION)
        from_x = 2 * KEYS * KEY + head * VALUE + local[:, None] * x_row + columns[None, :]
        v = tl.load(x + tl.cast(begin, tl.int64) * x_row + from_x, mask=there[:, None] & wide, other=0.0)
        dstrength += tl.sum(dright * v.to(tl.float32), 1)
        to_x = 2 * KEYS * KEY + head * VALUE + local[:, None] * dx_row + columns[None, :]
        tl.store(
            dx + tl.cast(begin, tl.int64) * dx_row + to_x,
            (strength[:, None] * dright).to(dx.dtype.element_ty),
            mask=there[:, None] & wide,
        )
        made = tl.load(u + at, mask=wide, other=0.0)
        dscores = tl.dot(tl.load(do + at, mask=wide, other=0.0), tl.trans(made), dscores, input_precision=PRECISION)
        dinner = tl.dot(dright.to(half), tl.trans(made), dinner, input_precision=PRECISION)

    sees, decay, carried, last, keeps = decays(alpha, a, bias, first, begin, head, alpha_row, tokens, C)
    k, _ = unit(rows_of(x, begin, (KEYS + key_head) * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    q, _ = unit(rows_of(x, begin, key_head * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    k, q = k.to(half), (q * scale).to(half)
    dinner = -tl.where(local[:, None] > local[None, :], dinner, 0.0) * decay
    dscores = dscores * decay
    inner = tl.dot(k, tl.trans(k), input_precision=PRECISION)
    dstrength += tl.sum(dinner * inner, 1)
    dsystem = dinner * strength[:, None]
    dlog = dsystem * inner + dscores * tl.dot(q, tl.trans(k), input_precision=PRECISION)
    dtotal = tl.sum(dlog, 1) - tl.sum(dlog, 0)
    dsystem, dscores = (dsystem + tl.trans(dsystem)).to(half), dscores.to(half)
    dk = tl.dot(dsystem, k, input_precision=PRECISION)
    dk = tl.dot(tl.trans(dscores), q, dk, input_precision=PRECISION)
    dq = tl.dot(dscores, k, input_precision=PRECISION)

    of_writes = tl.zeros([C, KEY_PAD], tl.float32)  # u afterᵀ
    dkept = 0.0
    for column in tl.range(0, VALUE_PAD, BV):
        columns = column + tl.arange(0, BV)
        wide = (columns < VALUE)[None, :]
        square = (keys < KEY)[:, None] & wide
        made = tl.load(u + places(0, begin, head, VALUES, columns, C, VALUE), mask=wide, other=0.0)
        held = tl.load(tile(states, chunk, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), mask=square, other=0.0)
        later = tl.load(tile(after, chunk, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), mask=square, other=0.0)
        of_writes = tl.dot(made, tl.trans(later), of_writes, input_precision=PRECISION)
        dkept += tl.sum(tl.sum(held.to(tl.float32) * later.to(tl.float32), 1), 0)
    k, k_inverse = unit(rows_of(x, begin, (KEYS + key_head) * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    dlast = tl.sum(k * of_writes, 1) * last
    dk += last[:, None] * of_writes

    of_erased = tl.zeros([C, KEY_PAD], tl.float32)  # dright Sᵀ
    for column in tl.range(0, VALUE_PAD, BV):
        columns = column + tl.arange(0, BV)
        wide = (columns < VALUE)[None, :]
        square = (keys < KEY)[:, None] & wide
        back = tl.load(du + places(0, begin, head, VALUES, columns, C, VALUE), mask=wide, other=0.0)
        right = tl.dot(tl.trans(solved), back, input_precision=PRECISION).to(half)
        held = tl.load(tile(states, chunk, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), mask=square, other=0.0)
        of_erased = tl.dot(right, tl.trans(held), of_erased, input_precision=PRECISION)
    erased = tl.sum(k * of_erased, 1)
    dstrength -= carried * erased
    dk = unit_backward(dk - (strength * carried)[:, None] * of_erased, k, k_inverse, eps)
    exists = there[:, None] & (keys < KEY)[None, :]
    to_q = dx + tl.cast(begin, tl.int64) * dx_row + key_head * KEY + (local[:, None] * dx_row + keys[None, :])
    apart = places(dqk, begin, head, VALUES, keys, C, KEY)
    if KEYS == VALUES:
        tl.store(to_q + KEYS * KEY, dk.to(dx.dtype.element_ty), mask=exists)
    else:
        tl.store(apart + tl.cast(tokens, tl.int64) * VALUES * KEY, dk, mask=exists)

    of_reads = tl.zeros([C, KEY_PAD], tl.float32)  # do Sᵀ
    for column in tl.range(0, VALUE_PAD, BV):
        columns = column + tl.arange(0, BV)
        wide = (columns < VALUE)[None, :]
        square = (keys < KEY)[:, None] & wide
        given = tl.load(do + places(0, begin, head, VALUES, columns, C, VALUE), mask=wide, other=0.0)
        held = tl.load(tile(states, chunk, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), mask=square, other=0.0)
        of_reads = tl.dot(given, tl.trans(held), of_reads, input_precision=PRECISION)
    q, q_inverse = unit(rows_of(x, begin, key_head * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    dcarried = tl.sum(q * of_reads, 1) * scale - strength * erased
    dq = unit_backward((dq + carried[:, None] * of_reads) * scale, q, q_inverse, eps)
    if KEYS == VALUES:
        tl.store(to_q, dq.to(dx.dtype.element_ty), mask=exists)
    else:
        tl.store(apart, dq, mask=exists)

    dtotal += dcarried * carried - dlast
    dtotal += tl.where(local == C - 1, tl.sum(dlast, 0) + dkept * keeps, 0.0)
    dg = tl.sum(tl.where(sees, dtotal[:, None], 0.0), 0)
    shifted = per_token(alpha, begin, head, alpha_row, tokens, C) + tl.load(bias + head)
    rows = tl.cast(begin, tl.int64) + local
    if LOGS:
        tl.store(dlogs + rows * VALUES + head, dg, mask=there)
    dshifted = dg * tl.load(a + head) * tl.sigmoid(shifted)
    tl.store(dalpha + rows * dalpha_row + head, dshifted.to(dalpha.dtype.element_ty), mask=there)
    dstrength = dstrength * strength * (1 - strength)
    tl.store(dbeta + rows * dbeta_row + head, dstrength.to(dbeta.dtype.element_ty), mask=there)


def delta_backward(dy, x, beta, alpha, weights, heads: DeltaHeads, first, out, into=(None, None, None)):
    """The Triton twin of plain_delta.delta_backward."""
    if not suits(x, heads):
        return plain.delta_backward(dy, x, beta, alpha, weights, heads, first, out, into)
    net, h = Net(x, beta, alpha, weights, heads, first), heads
    made = net.factors()
    states, u, _ = net.states(made)
    do, local, du = (net.tall(h.value_size) for _ in range(3))
    gains = net.empty(net.chunks, h.values, h.value_size, dtype=torch.float32) if into[2] is not None else net.gain
    through_norms[net.grid](
        dy, x, u, states, alpha, net.a, net.bias, net.gain, first, do, local, gains, net.tokens,
        *(z.stride(0) for z in (dy, x, alpha)), h.eps, net.scale,
        **net.whole, GAINS=into[2] is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    after = net.square()
    walk_back[net.walks](
        made.erases, made.written, made.read, made.kept, do, local, first, after, du, net.tokens, net.chunks,
        **net.walk, num_warps=4, num_stages=3,
    )  # fmt: skip
    dx, dbeta, dalpha = out
    repeated, logs = h.keys != h.values, any(target is not None for target in into[:2])
    dqk = net.empty(2, net.tokens, h.values, h.key_size, dtype=torch.float32) if repeated else net.a
    dlogs = net.empty(net.tokens, h.values, dtype=torch.float32) if logs else net.a
    gradients[net.grid](
        x, beta, alpha, net.a, net.bias, first, made.inverse, states, u, do, du, after, dx, dqk, dbeta, dalpha, dlogs,
        net.tokens, *(z.stride(0) for z in (x, beta, alpha, dx, dbeta, dalpha)), h.eps, net.scale,
        **net.whole, BV=min(pad(h.value_size), 64), LOGS=logs, num_warps=8, num_stages=1,
    )  # fmt: skip
    if repeated:
        parts = dqk.view(2, net.tokens, h.repeats, -1).sum(2)
        dx[:, : 2 * h.keys * h.key_size].unflatten(1, (2, -1)).copy_(parts.transpose(0, 1))
    plain.weight_gradients(into, weights, alpha, dlogs, gains)
