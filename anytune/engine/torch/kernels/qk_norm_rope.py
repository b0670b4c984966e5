"""Head norms and rope for queries and keys in one launch, and the backward.

A program holds some heads of one or a few tokens as three tiles: the first and the second elements of the rotated
pairs, and the elements that are not turned (often none). Its first programs work on q, the others on k.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .low import ceil_power
from .overlap import overlap, settle

ELEMENTS = 2048  # of q or k in a program


@triton.jit
def _read(
    x, row, there, SIZE: tl.constexpr, PAIRS: tl.constexpr, NEOX: tl.constexpr, P: tl.constexpr, REST: tl.constexpr
):
    """The three tiles of heads that begin at x + row [ROWS, 1], float32 [ROWS, P], [ROWS, P], [ROWS, REST]."""
    i = tl.arange(0, P)[None, :]
    if NEOX:
        one = tl.load(x + row + i, mask=there & (i < PAIRS), other=0).to(tl.float32)
        two = tl.load(x + row + PAIRS + i, mask=there & (i < PAIRS), other=0).to(tl.float32)
    else:  # neighbours are read as they lie, then told apart
        both = tl.arange(0, 2 * P)[None, :]
        values = tl.load(x + row + both, mask=there & (both < 2 * PAIRS), other=0).to(tl.float32)
        one, two = tl.split(tl.reshape(values, [values.shape[0], P, 2]))
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    return one, two, tl.load(x + row + last, mask=there & (last < SIZE), other=0).to(tl.float32)


@triton.jit
def _write(
    x,
    row,
    there,
    one,
    two,
    rest,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
):
    kind = x.dtype.element_ty
    i = tl.arange(0, P)[None, :]
    if NEOX:
        tl.store(x + row + i, one.to(kind), mask=there & (i < PAIRS))
        tl.store(x + row + PAIRS + i, two.to(kind), mask=there & (i < PAIRS))
    else:
        both = tl.arange(0, 2 * P)[None, :]
        values = tl.reshape(tl.join(one, two), [one.shape[0], 2 * P])
        tl.store(x + row + both, values.to(kind), mask=there & (both < 2 * PAIRS))
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    tl.store(x + row + last, rest.to(kind), mask=there & (last < SIZE))


@triton.jit
def _gains(gain, SIZE: tl.constexpr, PAIRS: tl.constexpr, NEOX: tl.constexpr, P: tl.constexpr, REST: tl.constexpr):
    """The gain as three tiles of one row."""
    i = tl.arange(0, P)[None, :]
    first, second = (i, PAIRS + i) if NEOX else (2 * i, 2 * i + 1)
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    return (
        tl.load(gain + first, mask=i < PAIRS, other=0),
        tl.load(gain + second, mask=i < PAIRS, other=0),
        tl.load(gain + last, mask=last < SIZE, other=0),
    )


@triton.jit
def _angles(
    cos,
    sin,
    positions,
    part,
    blocks,
    tokens,
    there,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
    P: tl.constexpr,
):
    """cos and sin of the rows' tokens, [ROWS, P]."""
    i = tl.arange(0, P)[None, :]
    # one axis: each thread loads a position once
    token = part // blocks * TOKENS + tl.arange(0, TOKENS * HEADS) // HEADS
    position = tl.load(positions + token, mask=token < tokens, other=0)
    at = position.to(tl.int64)[:, None] * PAIRS + i
    return tl.load(cos + at, mask=there & (i < PAIRS), other=0), tl.load(sin + at, mask=there & (i < PAIRS), other=0)


@triton.jit
def _sum(one, two, rest):
    """Over each head: [ROWS, 1]."""
    return tl.sum(one, 1, keep_dims=True) + tl.sum(two, 1, keep_dims=True) + tl.sum(rest, 1, keep_dims=True)


@triton.jit
def _rows(part, tokens, blocks, COUNT: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr):
    """Of a program: token and head of its rows [TOKENS * HEADS, 1], and which exist."""
    row = tl.arange(0, TOKENS * HEADS)[:, None]
    token = part // blocks * TOKENS + row // HEADS
    head = part % blocks * HEADS + row % HEADS
    return token, head, (token < tokens) & (head < COUNT)


@triton.jit
def _place(slots, positions, context, token, tokens):
    """The row of a cache [slots * context, width] that is a token's."""
    there = token < tokens
    slot = tl.load(slots + token, mask=there, other=0).to(tl.int64)
    return slot * context + tl.load(positions + token, mask=there, other=0)


@triton.jit
def _turn(
    part,
    blocks,
    x,
    gain,
    out,
    x_row,
    out_row,
    cos,
    sin,
    positions,
    tokens,
    eps,
    COUNT: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
    slots=None,
    context=0,
    STORE: tl.constexpr = False,
):
    """STORE: out is a cache, where a token's row is its position in its slot."""
    token, head, there = _rows(part, tokens, blocks, COUNT, HEADS, TOKENS)
    c, s = _angles(cos, sin, positions, part, blocks, tokens, there, HEADS, TOKENS, PAIRS, P)
    one, two, rest = _read(x, token.to(tl.int64) * x_row + head * SIZE, there, SIZE, PAIRS, NEOX, P, REST)
    if GAINS:
        first, second, last = _gains(gain, SIZE, PAIRS, NEOX, P, REST)
        inverse = tl.rsqrt(_sum(one * one, two * two, rest * rest) / SIZE + eps)
        one, two, rest = one * inverse * first, two * inverse * second, rest * inverse * last
    row = token.to(tl.int64)
    if STORE:
        row = _place(slots, positions, context, token, tokens)
    _write(
        out, row * out_row + head * SIZE, there, one * c - two * s, one * s + two * c, rest, SIZE, PAIRS, NEOX, P, REST
    )


@Entry
@triton.jit(do_not_specialize=["tokens", "q_programs"])
def _qk_norm_rope(
    q,
    k,
    q_gain,
    k_gain,
    out_q,
    out_k,
    q_row,
    k_row,
    out_q_row,
    out_k_row,
    cos,
    sin,
    positions,
    tokens,
    q_programs,
    eps,
    Q_COUNT: tl.constexpr,
    Q_HEADS: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    K_COUNT: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_TOKENS: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
):
    """Grid (programs of q, then of k)."""
    part = tl.program_id(0)
    if part < q_programs:
        _turn(
            part,
            tl.cdiv(Q_COUNT, Q_HEADS),
            q,
            q_gain,
            out_q,
            q_row,
            out_q_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            Q_COUNT,
            Q_HEADS,
            Q_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
        )
    else:
        _turn(
            part - q_programs,
            tl.cdiv(K_COUNT, K_HEADS),
            k,
            k_gain,
            out_k,
            k_row,
            out_k_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            K_COUNT,
            K_HEADS,
            K_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
        )


@Entry
@triton.jit(do_not_specialize=["tokens", "q_programs", "k_programs"])
def _store(
    q,
    k,
    v,
    q_gain,
    k_gain,
    out_q,
    keys,
    values,
    q_row,
    k_row,
    v_row,
    out_q_row,
    keys_row,
    values_row,
    cos,
    sin,
    positions,
    slots,
    context,
    tokens,
    q_programs,
    k_programs,
    eps,
    width,
    Q_COUNT: tl.constexpr,
    Q_HEADS: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    K_COUNT: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_TOKENS: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Grid (programs of q, of k, then one for each token's values)."""
    settle(OVERLAP)
    part = tl.program_id(0)
    if part < q_programs:
        _turn(
            part,
            tl.cdiv(Q_COUNT, Q_HEADS),
            q,
            q_gain,
            out_q,
            q_row,
            out_q_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            Q_COUNT,
            Q_HEADS,
            Q_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
        )
    elif part < q_programs + k_programs:
        _turn(
            part - q_programs,
            tl.cdiv(K_COUNT, K_HEADS),
            k,
            k_gain,
            keys,
            k_row,
            keys_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            K_COUNT,
            K_HEADS,
            K_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
            slots,
            context,
            True,
        )
    else:
        token = part - q_programs - k_programs
        column = tl.arange(0, WIDTH)
        row = tl.load(v + token.to(tl.int64) * v_row + column, mask=column < width, other=0)
        at = values + _place(slots, positions, context, token, tokens) * values_row + column
        tl.store(at, row.to(values.dtype.element_ty), mask=column < width)


@triton.jit
def _turn_back(
    part,
    blocks,
    dy,
    x,
    gain,
    dy_row,
    x_row,
    cos,
    sin,
    positions,
    tokens,
    eps,
    COUNT: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
):
    token, head, there = _rows(part, tokens, blocks, COUNT, HEADS, TOKENS)
    c, s = _angles(cos, sin, positions, part, blocks, tokens, there, HEADS, TOKENS, PAIRS, P)
    place = token.to(tl.int64) * dy_row + head * SIZE
    one, two, rest = _read(dy, place, there, SIZE, PAIRS, NEOX, P, REST)
    one, two = one * c + two * s, two * c - one * s
    if GAINS:
        first, second, last = _gains(gain, SIZE, PAIRS, NEOX, P, REST)
        one, two, rest = one * first, two * second, rest * last
        x1, x2, x3 = _read(x, token.to(tl.int64) * x_row + head * SIZE, there, SIZE, PAIRS, NEOX, P, REST)
        inverse = tl.rsqrt(_sum(x1 * x1, x2 * x2, x3 * x3) / SIZE + eps)
        inner = _sum(one * x1, two * x2, rest * x3) / SIZE * inverse * inverse * inverse
        one, two, rest = one * inverse - x1 * inner, two * inverse - x2 * inner, rest * inverse - x3 * inner
    _write(dy, place, there, one, two, rest, SIZE, PAIRS, NEOX, P, REST)


@Entry
@triton.jit(do_not_specialize=["tokens", "q_programs"])
def _backward(
    dq,
    dk,
    q,
    k,
    q_gain,
    k_gain,
    dq_row,
    dk_row,
    q_row,
    k_row,
    cos,
    sin,
    positions,
    tokens,
    q_programs,
    eps,
    Q_COUNT: tl.constexpr,
    Q_HEADS: tl.constexpr,
    Q_TOKENS: tl.constexpr,
    K_COUNT: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_TOKENS: tl.constexpr,
    GAINS: tl.constexpr,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
):
    """Grid (programs of q, then of k)."""
    part = tl.program_id(0)
    if part < q_programs:
        _turn_back(
            part,
            tl.cdiv(Q_COUNT, Q_HEADS),
            dq,
            q,
            q_gain,
            dq_row,
            q_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            Q_COUNT,
            Q_HEADS,
            Q_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
        )
    else:
        _turn_back(
            part - q_programs,
            tl.cdiv(K_COUNT, K_HEADS),
            dk,
            k,
            k_gain,
            dk_row,
            k_row,
            cos,
            sin,
            positions,
            tokens,
            eps,
            K_COUNT,
            K_HEADS,
            K_TOKENS,
            GAINS,
            SIZE,
            PAIRS,
            NEOX,
            P,
            REST,
        )


def _grid(tokens: int, heads: int, n_kv_heads: int, size: int, pairs: int, gains: bool, neox: bool):
    """-> (programs of q, all programs, the kernels' constants)."""
    constants, programs, rows = {}, [], max(1, ELEMENTS // ceil_power(size))
    for name, count in (("Q", heads), ("K", n_kv_heads)):
        many = min(ceil_power(count), rows)
        each = rows // many
        constants |= {f"{name}_COUNT": count, f"{name}_HEADS": many, f"{name}_TOKENS": each}
        programs.append(triton.cdiv(tokens, each) * triton.cdiv(count, many))
    constants |= dict(
        GAINS=gains,
        SIZE=size,
        PAIRS=pairs,
        NEOX=bool(neox),
        P=ceil_power(pairs),
        REST=ceil_power(max(1, size - 2 * pairs)),
        num_warps=4,
    )
    return programs[0], sum(programs), constants


def qk_norm_rope(q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox, out_q, out_k):
    """See plain.qk_norm_rope."""
    first, programs, constants = _grid(
        q.shape[0], heads, n_kv_heads, q.shape[1] // heads, cos.shape[1], q_gain is not None, neox
    )
    _qk_norm_rope[(programs,)](
        q,
        k,
        cos if q_gain is None else q_gain,
        cos if k_gain is None else k_gain,
        out_q,
        out_k,
        q.stride(0),
        k.stride(0),
        out_q.stride(0),
        out_k.stride(0),
        cos,
        sin,
        positions,
        q.shape[0],
        first,
        eps,
        **constants,
    )


def qk_norm_rope_store(
    q, k, v, q_gain, k_gain, eps, cos, sin, positions, n_heads, n_kv_heads, neox, out_q, keys, values, slots
):
    """As qk_norm_rope, where the keys go to a cache [slots, context, width], and so do v's rows: row i of slot slots[i]
    at positions[i]."""
    q_programs, programs, constants = _grid(
        q.shape[0], n_heads, n_kv_heads, q.shape[1] // n_heads, cos.shape[1], q_gain is not None, neox
    )
    _store[(programs + q.shape[0],)](
        q,
        k,
        v,
        cos if q_gain is None else q_gain,
        cos if k_gain is None else k_gain,
        out_q,
        keys,
        values,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out_q.stride(0),
        keys.stride(1),
        values.stride(1),
        cos,
        sin,
        positions,
        slots,
        keys.shape[1],
        q.shape[0],
        q_programs,
        programs - q_programs,
        eps,
        v.shape[1],
        WIDTH=ceil_power(v.shape[1]),
        **constants,
        **overlap(q, q.shape[0]),
    )


def qk_norm_rope_backward(dq, dk, q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox):
    """See plain.qk_norm_rope_backward."""
    first, programs, constants = _grid(
        dq.shape[0], heads, n_kv_heads, dq.shape[1] // heads, cos.shape[1], q_gain is not None, neox
    )
    q, k = (dq, dk) if q_gain is None else (q, k)
    _backward[(programs,)](
        dq,
        dk,
        q,
        k,
        cos if q_gain is None else q_gain,
        cos if k_gain is None else k_gain,
        dq.stride(0),
        dk.stride(0),
        q.stride(0),
        k.stride(0),
        cos,
        sin,
        positions,
        dq.shape[0],
        first,
        eps,
        **constants,
    )
