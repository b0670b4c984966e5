"""Head norms and rope for queries and keys of new tokens, whose keys and values go into a cache; one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .head_tiles import cache_row, programs_of
from .shares import ceil_power
from .overlap import overlap, settle
from .qk_norm_rope import norm_rope


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
    elif part < q_programs + k_programs:
        norm_rope(
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
        at = values + cache_row(slots, positions, context, token, tokens) * values_row + column
        tl.store(at, row.to(values.dtype.element_ty), mask=column < width)


def qk_norm_rope_store(
    q, k, v, q_gain, k_gain, eps, cos, sin, positions, n_heads, n_kv_heads, neox, out_q, keys, values, slots
):
    """As qk_norm_rope, where the keys go to a cache [slots, context, width], and so do v's rows: row i of slot slots[i]
    at positions[i]."""
    q_programs, programs, constants = programs_of(
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
