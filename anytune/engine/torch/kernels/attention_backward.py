"""The backward of attention in Triton (FlashAttention-2: Dao 2023, arXiv:2307.08691): no atomics, one order of sums.

With p the probabilities and d = rowsum(dout * out) of a query: dv = pᵀ dout, ds = p * (dout vᵀ - d),
dq = scale ds k, dk = scale dsᵀ q. dq is summed by programs that own query rows and walk over keys; dk and dv by
programs that own keys and walk over the queries of all heads of the group, with all scores transposed, so that
factors made of them stay in registers. Both make p again from the saved log-sum-exp. The first kind also writes d for
the second; a short stream runs both in one launch, and then the second makes d for itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anytune.engine.base import Heads

from .entry import Entry
from .. import attention as plain
from .attention import FILL, LOG2E, WIDEST, Config, Layout, edge, hide, padded, per_head, places, saturated, stack, tile

# (padded head size, kind as for the forward) -> configs of the launch for queries, of that for keys, and of both in one
# for a short stream. In the last two `rows` are the queries walked over.
CONFIGS: dict[tuple[int, str], tuple[Config, Config, Config | None]] = {
    (64, "half"): (Config(128, 64, 8, 3), Config(64, 64, 4, 3), Config(64, 64, 4, 2)),
    (128, "half"): (Config(64, 64, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (256, "half"): (Config(128, 32, 8, 2), Config(32, 128, 8, 2), None),
    (64, "pointers"): (Config(64, 64, 4, 2), Config(32, 64, 4, 2), None),
    (128, "pointers"): (Config(64, 64, 4, 2), Config(32, 64, 4, 2), None),
    (256, "pointers"): (Config(32, 32, 4, 2), Config(32, 32, 4, 1), None),
    (64, "tf32"): (Config(64, 32, 4, 2), Config(32, 64, 4, 2), None),
    (128, "tf32"): (Config(32, 32, 4, 2), Config(16, 64, 4, 2), None),
    (256, "tf32"): (Config(32, 32, 8, 1), Config(32, 32, 8, 1), None),
    (64, "ieee"): (Config(32, 32, 8, 1), Config(32, 32, 8, 1), None),
    (128, "ieee"): (Config(16, 16, 8, 1), Config(16, 32, 8, 1), None),
    (256, "ieee"): (Config(16, 16, 8, 1), Config(16, 32, 8, 1), None),
}
SPLIT = 256  # from this padded size on dk and dv are launches of their own: no registers hold both


@triton.jit
def per_query(source, head, begin, rows, row, tokens, DESCRIBED: tl.constexpr):
    """float32 [n]: numbers of one head at queries begin…; past the end of the stream whatever lies there, or zero."""
    if DESCRIBED:
        return source.load([head * row + begin])
    else:
        return tl.load(source + head * row + begin + rows, mask=begin + rows < tokens, other=0.0)


@triton.jit
def walk_keys(
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
    """dq of a tile of ROWS query rows, laid out as in the forward; KEEP: write d as well."""
    last = tl.minimum(low + ROWS // STACK, tokens) - 1
    local, keys, columns = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, PAD)
    rows, there = tl.minimum(low + local // STACK, last), local < (tokens - low) * STACK
    begins, whole = tl.load(first + low), tl.load(first + last)
    if WINDOW:
        begins, whole = tl.maximum(begins, low - WINDOW + 1), tl.maximum(whole, last - WINDOW + 1)
    exists = edge(local, columns, (tokens - low) * STACK, SIZE, PAD)
    query = tl.load(places(q, low, head, local, columns, q_row, SIZE, STACK), mask=exists, other=0.0)
    given = tl.load(places(dout, low, head, local, columns, dout_row, SIZE, STACK), mask=exists, other=0.0)
    made = tl.load(places(out, low, head, local, columns, out_row, SIZE, STACK), mask=exists, other=0.0)
    inner = tl.sum(given.to(tl.float32) * made.to(tl.float32), 1)
    place = (head + local % STACK) * lse_row + rows
    if KEEP:
        tl.store(d + place, inner, mask=there)
    sum2 = tl.load(lse + place) * LOG2E
    grad = tl.zeros([ROWS, PAD], tl.float32)
    for begin in tl.range(begins, last + 1, KEYS):
        key = tile(k, begin, head // GROUP, keys, columns, k_row, tokens, SIZE, PAD, DESCRIBED)
        s = tl.dot(query, key.T, input_precision=PRECISION)
        if CAP != 0:
            bend = saturated(s * (scale / CAP))
            s = bend * (CAP / scale)
        if (begin < whole) | (begin + KEYS > low + 1):
            s = hide(s, begin, keys, rows, first, WINDOW)
        p = tl.exp2(s * (scale * LOG2E) - sum2[:, None])
        value = tile(v, begin, head // GROUP, keys, columns, v_row, tokens, SIZE, PAD, DESCRIBED)
        ds = p * (tl.dot(given, value.T, input_precision=PRECISION) - inner[:, None])
        if CAP != 0:
            ds = ds * (1 - bend * bend)
        grad = tl.dot(ds.to(key.dtype), key, grad, input_precision=PRECISION)
    tl.store(
        places(dq, low, head, local, columns, dq_row, SIZE, STACK), (grad * scale).to(dq.dtype.element_ty), mask=exists
    )


@triton.jit
def walk_queries(
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
        given = tile(dout, begin, which, rows, columns, dout_row, tokens, SIZE, PAD, DESCRIBED)
        if not KEPT:
            made = tile(out, begin, which, rows, columns, out_row, tokens, SIZE, PAD, DESCRIBED)
            product = given.to(tl.float32) * made.to(tl.float32)
            if SIZE < PAD:
                product = tl.where((columns < SIZE)[None, :], product, 0.0)
            inner = tl.sum(product, 1)
        sum2 = per_query(lse, which, begin, rows, lse_row, tokens, DESCRIBED) * LOG2E
        s = tl.dot(key, query.T, input_precision=PRECISION)
        if CAP != 0:
            bend = saturated(s * (scale / CAP))
            s = bend * (CAP / scale)
        if (begin < low + KEYS - 1) | (begin + ROWS > whole):
            stop = tl.load(end + tl.minimum(keys, last))
            if WINDOW:
                stop = tl.minimum(stop, keys + WINDOW)
            row = (begin + rows)[None, :]
            s = tl.where((row >= keys[:, None]) & (row < stop[:, None]), s, float("-inf"))
        p = tl.exp2(s * (scale * LOG2E) - sum2[None, :])
        if DV:
            dvalue = tl.dot(p.to(given.dtype), given, dvalue, input_precision=PRECISION)
        if DK:
            dp = tl.dot(value, given.T, input_precision=PRECISION)
            if KEPT:
                inner = per_query(d, which, begin, rows, lse_row, tokens, DESCRIBED)
            ds = p * (dp - inner[None, :])
            if CAP != 0:
                ds = ds * (1 - bend * bend)
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
    walk_keys(
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
    walk_queries(
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


@Entry
@triton.jit(do_not_specialize=["tokens"])
def for_both(
    q,
    k,
    v,
    dout,
    out,
    q_tiles,
    k_tiles,
    v_tiles,
    dout_tiles,
    out_tiles,
    lse,
    sums_tiles,
    dq,
    dk,
    dv,
    first,
    end,
    tokens,
    q_row,
    k_row,
    v_row,
    dout_row,
    out_row,
    dq_row,
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
    STACK: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """Programs for keys (HEADS key heads), then those for queries, whose tiles have as many rows as those of keys."""
    q_row, k_row, v_row, dout_row = q_row * UNIT, k_row * UNIT, v_row * UNIT, dout_row * UNIT
    out_row, dq_row, dk_row, dv_row = out_row * UNIT, dq_row * UNIT, dk_row * UNIT, dv_row * UNIT
    number, split = tl.program_id(0), tl.cdiv(tokens, KEYS) * HEADS
    if number < split:
        walk_queries(
            q_tiles,
            k,
            v,
            dout_tiles,
            out_tiles,
            dk,
            dv,
            sums_tiles,
            sums_tiles,
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
            number % HEADS,
            number // HEADS * KEYS,
            GROUP,
            SIZE,
            PAD,
            WINDOW,
            CAP,
            ROWS,
            KEYS,
            PRECISION,
            DESCRIBED,
            False,
            True,
            True,
        )
    else:
        STACKS: tl.constexpr = HEADS * GROUP // STACK
        number = tl.num_programs(0) - 1 - number
        walk_keys(
            q,
            k_tiles,
            v_tiles,
            dout,
            out,
            dq,
            lse,
            lse,
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
            number % STACKS * STACK,
            number // STACKS * (KEYS // STACK),
            GROUP,
            SIZE,
            PAD,
            WINDOW,
            CAP,
            STACK,
            KEYS,
            KEYS,
            PRECISION,
            DESCRIBED,
            False,
        )


def programs_of_both(tokens: int, heads: Heads, c: Config) -> int:
    together = stack(heads.group)
    return triton.cdiv(tokens, c.keys) * heads.n_kv_heads + triton.cdiv(tokens, c.keys // together) * (
        heads.n_heads // together
    )


def attention_backward(
    dout, q, k, v, out, lse, first, end, starts, heads: Heads, dq, dk, dv, tf32=False, configs: tuple | None = None
):
    """The Triton twin of engine.torch.attention.attention_backward; out and lse are what attention gave.

    dout, out, dq: [T, n_heads*head_dim], k, v, dk, dv: [T, n_kv_heads*head_dim], one dtype, rows of any stride; writes
    all of dq, dk and dv. configs: an entry for CONFIGS; an entry with a third config runs everything in one launch.
    """
    if heads.head_dim > WIDEST:
        return plain.attention_backward(dout, q, k, v, out, lse, first, end, starts, heads, dq, dk, dv)
    tokens, pad = q.shape[0], padded(heads.head_dim)
    if tokens == 0:
        return
    layout, together = Layout(heads.head_dim, tf32, lse, dout, q, k, v, out, dq, dk, dv), stack(heads.group)
    if configs is None:
        configs = CONFIGS[max(64, pad), layout.kind]
        if configs[2] and programs_of_both(tokens, heads, configs[2]) > FILL:
            configs = (*configs[:2], None)
    queries, keys, both = configs
    common = dict(
        GROUP=heads.group,
        SIZE=heads.head_dim,
        PAD=pad,
        WINDOW=heads.window,
        CAP=float(heads.cap),
        UNIT=layout.unit,
        PRECISION=layout.precision,
        DESCRIBED=layout.described,
    )
    if both:
        c = both
        walked = [
            layout.stream(x, n, pad) for x, n in zip((q, k, v, dout, out), (c.rows, c.keys, c.keys, c.rows, c.rows))
        ]
        for_both[programs_of_both(tokens, heads, c),](
            q,
            k,
            v,
            dout,
            out,
            *walked,
            lse,
            layout.stream_flat(lse, c.rows),
            dq,
            dk,
            dv,
            first,
            end,
            tokens,
            *layout.rows(q, k, v, dout, out, dq, dk, dv),
            lse.stride(0),
            heads.scale,
            STACK=together,
            HEADS=heads.n_kv_heads,
            ROWS=c.rows,
            KEYS=c.keys,
            num_warps=c.warps,
            num_stages=c.stages,
            **common,
        )
        return
    d = per_head(q, heads.n_heads)
    c = queries
    for_queries[heads.n_heads // together, triton.cdiv(tokens, c.rows // together)](
        q,
        layout.stream(k, c.keys, pad),
        layout.stream(v, c.keys, pad),
        dout,
        out,
        dq,
        lse,
        d,
        first,
        tokens,
        *layout.rows(q, k, v, dout, out, dq),
        lse.stride(0),
        heads.scale,
        STACK=together,
        ROWS=c.rows,
        KEYS=c.keys,
        num_warps=c.warps,
        num_stages=c.stages,
        **common,
    )
    c = keys
    for parts in (dict(DK=True, DV=False), dict(DK=False, DV=True)) if pad >= SPLIT else (dict(DK=True, DV=True),):
        for_keys[heads.n_kv_heads, triton.cdiv(tokens, c.keys)](
            layout.stream(q, c.rows, pad),
            k,
            v,
            layout.stream(dout, c.rows, pad),
            dk,
            dv,
            layout.stream_flat(lse, c.rows),
            layout.stream_flat(d, c.rows),
            end,
            tokens,
            *layout.rows(q, k, v, dout, dk, dv),
            lse.stride(0),
            heads.scale,
            ROWS=c.rows,
            KEYS=c.keys,
            num_warps=c.warps,
            num_stages=c.stages,
            **common,
            **parts,
        )
