"""Causal attention over packed examples in Triton, forward (FlashAttention-2: Dao 2023, arXiv:2307.08691).

A program makes a tile of `rows` query rows: the STACK query heads of neighbouring tokens that share a key head,
so that a tile spans fewer tokens and less of it lies above the diagonal. It walks over the keys from the first
that any of its rows may see to its own last token; only tiles cut by an edge (diagonal, example, window) are
masked. Scores live in units of log2, where exp2 needs no factor.

Where rows start at multiples of 16 bytes and the card has Hopper's copy engine, keys and values come through
tensor descriptors: the addresses of a tile then cost no registers. Elsewhere they come through pointers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from anytune.engine.base import Heads

from .entry import Entry
from .. import attention as plain

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Config(NamedTuple):
    """A tile of `rows` query rows by `keys` keys, and how it is run."""

    rows: int
    keys: int
    warps: int
    stages: int


# (padded head size, kind) -> (config that fills the card, config for a short stream). Kinds: "half" is float16 and
# bfloat16 through descriptors, "pointers" the same without them, where addresses take registers; "tf32" and "ieee" are
# float32. Up to size 128 two programs of kind half fit on an H100's multiprocessor, so that the softmax of one runs
# under the products of the other. All were chosen so that ptxas spills next to nothing and serializes no wgmma.
CONFIGS = {
    (64, "half"): (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
    (128, "half"): (Config(64, 64, 4, 3), Config(64, 64, 4, 2)),
    (256, "half"): (Config(128, 64, 8, 2), Config(64, 32, 4, 2)),
    (64, "pointers"): (Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (128, "pointers"): (Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (256, "pointers"): (Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (64, "tf32"): (Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    (128, "tf32"): (Config(64, 32, 4, 2), Config(64, 32, 4, 2)),
    (256, "tf32"): (Config(32, 32, 4, 2), Config(32, 32, 4, 2)),
    (64, "ieee"): (Config(64, 64, 8, 1), Config(32, 32, 4, 2)),
    (128, "ieee"): (Config(32, 32, 8, 1), Config(16, 32, 8, 1)),
    (256, "ieee"): (Config(16, 16, 8, 1), Config(16, 16, 8, 1)),
}
FILL = 264  # programs that fill the card: two on each of 132 multiprocessors
WIDEST = plain.WIDEST


@triton.jit
def edge(local, columns, rows_left, SIZE: tl.constexpr, PAD: tl.constexpr):
    """bool [n, PAD]: which elements of a tile exist, where `rows_left` rows and SIZE columns do."""
    mask = (local < rows_left)[:, None]
    if SIZE < PAD:
        mask = mask & (columns < SIZE)[None, :]
    return mask


@triton.jit
def places(base, low, head, local, columns, row, SIZE: tl.constexpr, STACK: tl.constexpr):
    """Pointers [n, PAD] to heads head … head+STACK-1 of the tokens from `low` on, the heads of a token together."""
    return (
        base
        + (tl.cast(low, tl.int64) * row + head * SIZE)
        + ((local // STACK * row + local % STACK * SIZE)[:, None] + columns[None, :])
    )


@triton.jit
def tile(
    source, begin, head, local, columns, row, tokens, SIZE: tl.constexpr, PAD: tl.constexpr, DESCRIBED: tl.constexpr
):
    """[n, PAD]: rows begin… of one head. Columns past SIZE are a neighbour's if DESCRIBED: zero the other factor."""
    if DESCRIBED:
        return source.load([begin, head * SIZE])
    else:
        return tl.load(
            places(source, begin, head, local, columns, row, SIZE, 1),
            mask=edge(local, columns, tokens - begin, SIZE, PAD),
            other=0.0,
        )


@triton.jit
def hide(s, begin, keys, rows, first, WINDOW: tl.constexpr):
    """Scores [rows, keys] with -inf where the key is later, of another example or outside the window."""
    start = tl.load(first + rows)
    if WINDOW:
        start = tl.maximum(start, rows - WINDOW + 1)
    key = (begin + keys)[None, :]
    return tl.where((key <= rows[:, None]) & (key >= start[:, None]), s, float("-inf"))


@triton.jit
def key_bounds(first, low, last, WINDOW: tl.constexpr):
    """For the queries of tokens low … last: the first key that any of them sees, and the key before which no key is
    seen by all of them."""
    begins, whole = tl.load(first + low), tl.load(first + last)
    if WINDOW:
        begins, whole = tl.maximum(begins, low - WINDOW + 1), tl.maximum(whole, last - WINDOW + 1)
    return begins, whole


@triton.jit
def saturated(x):
    """tanh of x, by exp: large numbers give 1 and -1."""
    return 1 - 2 / (tl.exp2(x * (2 * LOG2E)) + 1)


@Entry
@triton.jit(do_not_specialize=["tokens"])
def forward(
    q,
    k,
    v,
    out,
    lse,
    first,
    tokens,
    q_row,
    k_row,
    v_row,
    out_row,
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
    """Row strides come in units of UNIT elements, so that the compiler knows their alignment."""
    q_row, k_row, v_row, out_row = q_row * UNIT, k_row * UNIT, v_row * UNIT, out_row * UNIT
    SPAN: tl.constexpr = ROWS // STACK
    head = tl.program_id(0) * STACK
    low = (tl.num_programs(1) - 1 - tl.program_id(1)) * SPAN  # of one long example the last tiles are the longest
    last = tl.minimum(low + SPAN, tokens) - 1
    local, keys, columns = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, PAD)
    rows, there = tl.minimum(low + local // STACK, last), local < (tokens - low) * STACK
    begins, whole = key_bounds(first, low, last, WINDOW)
    exists = edge(local, columns, (tokens - low) * STACK, SIZE, PAD)
    query = tl.load(places(q, low, head, local, columns, q_row, SIZE, STACK), mask=exists, other=0.0)
    top = tl.full([ROWS], -1e30, tl.float32)  # finite: rows that see nothing of a tile must not make inf - inf
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PAD], tl.float32)
    for begin in tl.range(begins, last + 1, KEYS):
        key = tile(k, begin, head // GROUP, keys, columns, k_row, tokens, SIZE, PAD, DESCRIBED)
        s = tl.dot(query, key.T, input_precision=PRECISION)
        if CAP != 0:  # of the scaled score, which is in units of log2
            s = saturated(s * (scale / (CAP * LOG2E))) * (CAP * LOG2E / scale)
        if (begin < whole) | (begin + KEYS > low + 1):
            s = hide(s, begin, keys, rows, first, WINDOW)
        peak = tl.maximum(top, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - peak[:, None])
        fade = tl.exp2(top - peak)
        total = total * fade + tl.sum(p, 1)
        mixed = mixed * fade[:, None]
        value = tile(v, begin, head // GROUP, keys, columns, v_row, tokens, SIZE, PAD, DESCRIBED)
        mixed = tl.dot(p.to(value.dtype), value, mixed, input_precision=PRECISION)
        top = peak
    mixed = mixed * (1 / total)[:, None]
    tl.store(places(out, low, head, local, columns, out_row, SIZE, STACK), mixed.to(out.dtype.element_ty), mask=exists)
    tl.store(lse + (head + local % STACK) * lse_row + rows, (top + tl.log2(total)) * LN2, mask=there)


def padded(size: int) -> int:
    """The head size that tiles have: a power of two, and no less than a product may be deep."""
    return max(16, triton.next_power_of_2(size))


def stack(group: int) -> int:
    """Query heads of a tile: the largest power of two that divides the group, up to 4."""
    return min(group & -group, 4)


@functools.cache
def copies_tiles(device: torch.device) -> bool:
    """Whether descriptors are worth their while: Hopper's copy engine or a later one; and Triton's interpreter."""
    if device.type != "cuda":
        return device.type == "cpu"
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


class Layout:
    """How kernels reach 2-D tensors with rows of any stride, and `lse`: unit of strides, descriptors or not; kind."""

    def __init__(self, head: int, tf32: bool, lse: torch.Tensor, *tensors: torch.Tensor):
        size, device = tensors[0].element_size(), tensors[0].device
        joined = 16 // size
        for t in tensors:
            if t.stride(1) != 1 or t.element_size() != size:
                raise ValueError("attention needs rows of neighbouring elements, all of one width")
            joined |= t.stride(0)
        self.unit = joined & -joined
        self.described = (
            copies_tiles(device)
            and (self.unit | head) * size % 16 == 0
            and lse.stride(0) % 4 == 0
            and (all(t.data_ptr() % 16 == 0 for t in (lse, *tensors)))
        )
        self.kind = ("half" if self.described else "pointers") if size == 2 else "tf32" if tf32 else "ieee"
        self.described &= self.kind != "ieee"  # products without tensor cores read their factors faster from arrays
        self.precision = "tf32" if self.kind == "tf32" else "ieee"

    def rows(self, *tensors: torch.Tensor) -> list[int]:
        return [t.stride(0) // self.unit for t in tensors]

    def stream(self, x: torch.Tensor, rows: int, columns: int):
        """x as a kernel walks over it: a descriptor of tiles [rows, columns], or the tensor itself."""
        return TensorDescriptor.from_tensor(x, [rows, columns]) if self.described else x

    def stream_flat(self, x: torch.Tensor, length: int):
        """The same for numbers [heads, T] as per_head makes them, in pieces of one row."""
        size = (x.shape[0] - 1) * x.stride(0) + x.shape[1]
        return TensorDescriptor(x, [size], [1], [length]) if self.described else x


def per_head(q: torch.Tensor, heads: int) -> torch.Tensor:
    """Room for a number per head and token, float32 [heads, T], with rows that start at multiples of 16 bytes.

    What fills up the rows is zero: descriptors read it, and a masked score times NaN would not stay nothing.
    """
    tokens = q.shape[0]
    wide = q.new_empty((heads, triton.cdiv(tokens, 4) * 4), dtype=torch.float32)
    wide[:, tokens:].zero_()
    return wide[:, :tokens]


def attention(q, k, v, first, end, starts, heads: Heads, out, tf32=False, config: Config | None = None):
    """The Triton twin of engine.torch.attention.attention.

    q, out: [T, n_heads*head_dim], k, v: [T, n_kv_heads*head_dim], one dtype (float16, bfloat16 or float32), rows of
    any stride;
    first, end: int32 [T] on the device. heads.scale must be positive. Writes out and returns the log-sum-exp
    float32 [queries, T]. tf32 lets float32 products round their factors to TF32.
    """
    if heads.head_dim > WIDEST:
        return plain.attention(q, k, v, first, end, starts, heads, out)
    tokens, pad, lse = q.shape[0], padded(heads.head_dim), per_head(q, heads.n_heads)
    if tokens == 0:
        return lse
    layout, together = Layout(heads.head_dim, tf32, lse, q, k, v, out), stack(heads.group)
    if config is None:
        large, small = CONFIGS[max(64, pad), layout.kind]
        config = large if triton.cdiv(tokens * heads.n_heads, large.rows) >= FILL else small
    grid = (heads.n_heads // together, triton.cdiv(tokens, config.rows // together))
    forward[grid](
        q,
        layout.stream(k, config.keys, pad),
        layout.stream(v, config.keys, pad),
        out,
        lse,
        first,
        tokens,
        *layout.rows(q, k, v, out),
        lse.stride(0),
        heads.scale * LOG2E.value,
        GROUP=heads.group,
        SIZE=heads.head_dim,
        PAD=pad,
        WINDOW=heads.window,
        CAP=float(heads.cap),
        UNIT=layout.unit,
        STACK=together,
        ROWS=config.rows,
        KEYS=config.keys,
        PRECISION=layout.precision,
        DESCRIBED=layout.described,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return lse
