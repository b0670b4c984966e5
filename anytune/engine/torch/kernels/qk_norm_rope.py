"""Head norms and rope for queries and keys in one launch: its first programs work on q, the others on k."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .head_tiles import cache_row, programs_of, read_angles, read_gains, read_heads, rows_of, sum_heads, write_heads


@triton.jit
def norm_rope(
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
    token, head, there = rows_of(part, tokens, blocks, COUNT, HEADS, TOKENS)
    c, s = read_angles(cos, sin, positions, part, blocks, tokens, there, HEADS, TOKENS, PAIRS, P)
    one, two, rest = read_heads(x, token.to(tl.int64) * x_row + head * SIZE, there, SIZE, PAIRS, NEOX, P, REST)
    if GAINS:
        first, second, last = read_gains(gain, SIZE, PAIRS, NEOX, P, REST)
        inverse = tl.rsqrt(sum_heads(one * one, two * two, rest * rest) / SIZE + eps)
        one, two, rest = one * inverse * first, two * inverse * second, rest * inverse * last
    row = token.to(tl.int64)
    if STORE:
        row = cache_row(slots, positions, context, token, tokens)
    write_heads(
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
        norm_rope(
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
        norm_rope(
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


def qk_norm_rope(q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox, out_q, out_k):
    """See plain.qk_norm_rope."""
    first, programs, constants = programs_of(
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
