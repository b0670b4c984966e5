"""The backward of head norms and rope for queries and keys, in one launch as the forward."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .head_tiles import programs_of, read_angles, read_gains, read_heads, rows_of, sum_heads, write_heads


@triton.jit
def _norm_rope_backward(
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
    token, head, there = rows_of(part, tokens, blocks, COUNT, HEADS, TOKENS)
    c, s = read_angles(cos, sin, positions, part, blocks, tokens, there, HEADS, TOKENS, PAIRS, P)
    place = token.to(tl.int64) * dy_row + head * SIZE
    one, two, rest = read_heads(dy, place, there, SIZE, PAIRS, NEOX, P, REST)
    one, two = one * c + two * s, two * c - one * s
    if GAINS:
        first, second, last = read_gains(gain, SIZE, PAIRS, NEOX, P, REST)
        one, two, rest = one * first, two * second, rest * last
        x1, x2, x3 = read_heads(x, token.to(tl.int64) * x_row + head * SIZE, there, SIZE, PAIRS, NEOX, P, REST)
        inverse = tl.rsqrt(sum_heads(x1 * x1, x2 * x2, x3 * x3) / SIZE + eps)
        inner = sum_heads(one * x1, two * x2, rest * x3) / SIZE * inverse * inverse * inverse
        one, two, rest = one * inverse - x1 * inner, two * inverse - x2 * inner, rest * inverse - x3 * inner
    write_heads(dy, place, there, one, two, rest, SIZE, PAIRS, NEOX, P, REST)


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
        _norm_rope_backward(
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
        _norm_rope_backward(
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


def qk_norm_rope_backward(dq, dk, q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox):
    """See plain.qk_norm_rope_backward."""
    first, programs, constants = programs_of(
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
