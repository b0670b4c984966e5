"""dk and dv of attention in Triton: programs that own keys and walk over the queries of all heads of the group; see
attention_backward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .attention import LOG2E, edge, places, saturated, tile


@triton.jit
def per_query(source, head, begin, rows, row, tokens, DESCRIBED: tl.constexpr):
    """float32 [n]: numbers of one head at queries begin…; past the end of the stream whatever lies there, or zero."""
    if DESCRIBED:
        return source.load([head * row + begin])
    else:
        return tl.load(source + head * row + begin + rows, mask=begin + rows < tokens, other=0.0)


@triton.jit
def dkv_tile(
    q,
    k,
    v,
    dout,
    out,
    dk,
    dv,
    lse,
    d,
    end,
    tokens,
    q_row,
    k_row,
    v_row,
    dout_row,
    out_row,
    dk_row,
    dv_row,
    lse_row,
    scale,
    head,
    low,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    KEPT: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
):
    """dk and dv of a tile of KEYS keys of key head `head`, or one of them; KEPT: d is there to be read."""
    last = tl.minimum(low + KEYS, tokens) - 1
    local, rows, columns = tl.arange(0, KEYS), tl.arange(0, ROWS), tl.arange(0, PAD)
    keys = low + local
    ends, whole = tl.load(end + last), tl.load(end + low)  # a query before `whole` may see every key, if late enough
    if WINDOW:
        ends, whole = tl.minimum(ends, last + WINDOW), tl.minimum(whole, low + WINDOW)
    key = tile(k, low, head, local, columns, k_row, tokens, SIZE, PAD, False)
    value = tile(v, low, head, local, columns, v_row, tokens, SIZE, PAD, False)
    dkey, dvalue = tl.zeros([KEYS, PAD], tl.float32), tl.zeros([KEYS, PAD], tl.float32)
    for step in tl.range(0, tl.cdiv(ends - low, ROWS) * GROUP):
        begin, which = low + step // GROUP * ROWS, head * GROUP + step % GROUP
        query = tile(q, begin, which, rows, columns, q_row, tokens, SIZE, PAD, DESCRIBED)
        do = tile(dout, begin, which, rows, columns, dout_row, tokens, SIZE, PAD, DESCRIBED)
        if not KEPT:
            o = tile(out, begin, which, rows, columns, out_row, tokens, SIZE, PAD, DESCRIBED)
            product = do.to(tl.float32) * o.to(tl.float32)
            if SIZE < PAD:
                product = tl.where((columns < SIZE)[None, :], product, 0.0)
            di = tl.sum(product, 1)
        sum2 = per_query(lse, which, begin, rows, lse_row, tokens, DESCRIBED) * LOG2E
        s = tl.dot(key, query.T, input_precision=PRECISION)
        if CAP != 0:
            tanh = saturated(s * (scale / CAP))
            s = tanh * (CAP / scale)
        if (begin < low + KEYS - 1) | (begin + ROWS > whole):
            stop = tl.load(end + tl.minimum(keys, last))
            if WINDOW:
                stop = tl.minimum(stop, keys + WINDOW)
            row = (begin + rows)[None, :]
            s = tl.where((row >= keys[:, None]) & (row < stop[:, None]), s, float("-inf"))
        p = tl.exp2(s * (scale * LOG2E) - sum2[None, :])
        if DV:
            dvalue = tl.dot(p.to(do.dtype), do, dvalue, input_precision=PRECISION)
        if DK:
            dp = tl.dot(value, do.T, input_precision=PRECISION)
            if KEPT:
                di = per_query(d, which, begin, rows, lse_row, tokens, DESCRIBED)
            ds = p * (dp - di[None, :])
            if CAP != 0:
                ds = ds * (1 - tanh * tanh)
            dkey = tl.dot(ds.to(query.dtype), query, dkey, input_precision=PRECISION)
    exists = edge(local, columns, tokens - low, SIZE, PAD)
    if DK:
        tl.store(
            places(dk, low, head, local, columns, dk_row, SIZE, 1), (dkey * scale).to(dk.dtype.element_ty), mask=exists
        )
    if DV:
        tl.store(places(dv, low, head, local, columns, dv_row, SIZE, 1), dvalue.to(dv.dtype.element_ty), mask=exists)


@Entry
@triton.jit(do_not_specialize=["tokens"])
def for_keys(
    q,
    k,
    v,
    dout,
    dk,
    dv,
    lse,
    d,
    end,
    tokens,
    q_row,
    k_row,
    v_row,
    dout_row,
    dk_row,
    dv_row,
    lse_row,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
):
    """Grid (keys, tiles), q, dout, lse and d streamed; the first keys of an example are seen by most queries."""
    dkv_tile(
        q,
        k,
        v,
        dout,
        dout,
        dk,
        dv,
        lse,
        d,
        end,
        tokens,
        q_row * UNIT,
        k_row * UNIT,
        v_row * UNIT,
        dout_row * UNIT,
        0,
        dk_row * UNIT,
        dv_row * UNIT,
        lse_row,
        scale,
        tl.program_id(0),
        tl.program_id(1) * KEYS,
        GROUP,
        SIZE,
        PAD,
        WINDOW,
        CAP,
        ROWS,
        KEYS,
        PRECISION,
        DESCRIBED,
        True,
        DK,
        DV,
    )
