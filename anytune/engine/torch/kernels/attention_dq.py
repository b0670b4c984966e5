"""dq of attention in Triton: programs that own query rows and walk over keys; see attention_backward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .attention import LOG2E, edge, hide, key_bounds, places, saturated, tile


@triton.jit
def dq_tile(
    q,
    k,
    v,
    dout,
    out,
    dq,
    lse,
    d,
    first,
    tokens,
    q_row,
    k_row,
    v_row,
    dout_row,
    out_row,
    dq_row,
    lse_row,
    scale,
    head,
    low,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    STACK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    KEEP: tl.constexpr,
):
    """dq of a tile of ROWS query rows, laid out as in the forward; KEEP: write d (here di) as well."""
    last = tl.minimum(low + ROWS // STACK, tokens) - 1
    local, keys, columns = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, PAD)
    rows, there = tl.minimum(low + local // STACK, last), local < (tokens - low) * STACK
    begins, whole = key_bounds(first, low, last, WINDOW)
    exists = edge(local, columns, (tokens - low) * STACK, SIZE, PAD)
    query = tl.load(places(q, low, head, local, columns, q_row, SIZE, STACK), mask=exists, other=0.0)
    do = tl.load(places(dout, low, head, local, columns, dout_row, SIZE, STACK), mask=exists, other=0.0)
    o = tl.load(places(out, low, head, local, columns, out_row, SIZE, STACK), mask=exists, other=0.0)
    di = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    place = (head + local % STACK) * lse_row + rows
    if KEEP:
        tl.store(d + place, di, mask=there)
    sum2 = tl.load(lse + place) * LOG2E
    grad = tl.zeros([ROWS, PAD], tl.float32)
    for begin in tl.range(begins, last + 1, KEYS):
        key = tile(k, begin, head // GROUP, keys, columns, k_row, tokens, SIZE, PAD, DESCRIBED)
        s = tl.dot(query, key.T, input_precision=PRECISION)
        if CAP != 0:
            tanh = saturated(s * (scale / CAP))
            s = tanh * (CAP / scale)
        if (begin < whole) | (begin + KEYS > low + 1):
            s = hide(s, begin, keys, rows, first, WINDOW)
        p = tl.exp2(s * (scale * LOG2E) - sum2[:, None])
        value = tile(v, begin, head // GROUP, keys, columns, v_row, tokens, SIZE, PAD, DESCRIBED)
        ds = p * (tl.dot(do, value.T, input_precision=PRECISION) - di[:, None])
        if CAP != 0:
            ds = ds * (1 - tanh * tanh)
        grad = tl.dot(ds.to(key.dtype), key, grad, input_precision=PRECISION)
    tl.store(
        places(dq, low, head, local, columns, dq_row, SIZE, STACK), (grad * scale).to(dq.dtype.element_ty), mask=exists
    )


@Entry
@triton.jit(do_not_specialize=["tokens"])
def for_queries(
    q,
    k,
    v,
    dout,
    out,
    dq,
    lse,
    d,
    first,
    tokens,
    q_row,
    k_row,
    v_row,
    dout_row,
    out_row,
    dq_row,
    lse_row,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    UNIT: tl.constexpr,
    STACK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """Grid (queries / STACK, tiles), k and v streamed; writes dq and d."""
    low = (tl.num_programs(1) - 1 - tl.program_id(1)) * (ROWS // STACK)  # the last tiles are the longest
    dq_tile(
        q,
        k,
        v,
        dout,
        out,
        dq,
        lse,
        d,
        first,
        tokens,
        q_row * UNIT,
        k_row * UNIT,
        v_row * UNIT,
        dout_row * UNIT,
        out_row * UNIT,
        dq_row * UNIT,
        lse_row,
        scale,
        tl.program_id(0) * STACK,
        low,
        GROUP,
        SIZE,
        PAD,
        WINDOW,
        CAP,
        STACK,
        ROWS,
        KEYS,
        PRECISION,
        DESCRIBED,
        True,
    )
