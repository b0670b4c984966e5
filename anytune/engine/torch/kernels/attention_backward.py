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
from .attention import FILL, WIDEST, Config, Layout, padded, per_head, stack
from .attention_dkv import dkv_tile, for_keys
from .attention_dq import dq_tile, for_queries

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
        dkv_tile(
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
        dq_tile(
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
