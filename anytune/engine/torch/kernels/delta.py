"""The gated delta net's forward in Triton: factors of all chunks, the walk over their states, the results."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from anytune.engine.base import DeltaHeads

from .. import plain_delta as plain
from ..chunks import CHUNK, NARROW, WIDEST
from .delta_chunk import decays, factors, invert, places, rows_of, unit
from .delta_states import SPAN, tile, walk
from .entry import Entry

# columns of a state that a walking program owns: on an H200 with 16 heads of 128, 64 are faster for eight examples of
# 1,024 tokens (75 µs against 113), 32 for one of 32,768 (690 against 770)
BLOCK = 64
Tensor = torch.Tensor


@triton.jit
def result(
    x,
    u,
    states,
    alpha,
    a,
    bias,
    first,
    head,
    chunk,
    tokens,
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
):
    """(o float32 [C, VALUE_PAD] of a chunk, scores [C, C]): what its tokens read."""
    half: tl.constexpr = u.dtype.element_ty
    begin, columns = chunk * C, tl.arange(0, VALUE_PAD)
    _, decay, carried, _, _ = decays(alpha, a, bias, first, begin, head, alpha_row, tokens, C)
    q, _ = unit(rows_of(x, begin, head % KEYS * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    k, _ = unit(rows_of(x, begin, (KEYS + head % KEYS) * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    q = q * scale
    scores = (tl.dot(q.to(half), tl.trans(k.to(half)), input_precision=PRECISION) * decay).to(half)
    wide = (columns < VALUE)[None, :]
    square = (tl.arange(0, KEY_PAD) < KEY)[:, None] & wide
    held = tl.load(tile(states, chunk, head, 0, VALUES, VALUE, KEY_PAD, VALUE_PAD, KEY), mask=square, other=0.0)
    o = tl.dot((carried[:, None] * q).to(half), held, input_precision=PRECISION)
    made = tl.load(places(u, begin, head, VALUES, columns, C, VALUE), mask=wide, other=0.0)
    return tl.dot(scores, made, o, input_precision=PRECISION), scores


@Entry
@triton.jit
def results(
    x,
    u,
    states,
    alpha,
    a,
    bias,
    gain,
    first,
    out,
    tokens,
    x_row,
    alpha_row,
    out_row,
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
):
    """Grid (values, chunks): each head's result through its norm, to out [T, values * VALUE]."""
    head, chunk = tl.program_id(0), tl.program_id(1)
    o, _ = result(
        x, u, states, alpha, a, bias, first, head, chunk, tokens, x_row, alpha_row, eps, scale,
        KEYS, VALUES, KEY, KEY_PAD, VALUE, VALUE_PAD, C, PRECISION,
    )  # fmt: skip
    local, columns = tl.arange(0, C)[:, None], tl.arange(0, VALUE_PAD)
    y = o * tl.rsqrt(tl.sum(o * o, 1) / VALUE + eps)[:, None]
    y = y * tl.load(gain + columns, mask=columns < VALUE, other=0.0)[None, :]
    at = out + tl.cast(chunk * C, tl.int64) * out_row + head * VALUE + (local * out_row + columns[None, :])
    tl.store(at, y.to(out.dtype.element_ty), mask=(chunk * C + local < tokens) & (columns < VALUE)[None, :])


class Factors(NamedTuple):
    """What invert() and factors() write; see there."""

    inverse: Tensor
    erases: Tensor
    fresh: Tensor
    written: Tensor
    read: Tensor
    kept: Tensor


class Net:
    """A stream's inputs as the kernels take them; it makes the factors and the walk."""

    def __init__(self, x: Tensor, beta: Tensor, alpha: Tensor, weights, heads: DeltaHeads, first: Tensor):
        self.x, self.beta, self.alpha, self.first, self.heads = x, beta, alpha, first, heads
        self.a, self.bias, self.gain = weights
        self.tokens, self.chunks = len(x), triton.cdiv(len(x), CHUNK)
        self.scale = heads.key_size**-0.5
        self.sizes = dict(
            VALUES=heads.values, KEY=heads.key_size, KEY_PAD=pad(heads.key_size), VALUE=heads.value_size, C=CHUNK,
            PRECISION="tf32",  # of products of float32: bfloat16's results need no more digits
        )  # fmt: skip
        self.whole = self.sizes | dict(KEYS=heads.keys, VALUE_PAD=pad(heads.value_size))
        self.block = min(pad(heads.value_size), BLOCK)
        self.walk = self.sizes | dict(BV=self.block, CHUNKS=max(16, triton.next_power_of_2(self.chunks)), SPAN=SPAN)
        self.grid = heads.values, self.chunks
        self.walks = triton.cdiv(heads.value_size, self.block), heads.values, triton.cdiv(self.chunks, SPAN)

    def empty(self, *shape: int, dtype=None) -> Tensor:
        return self.x.new_empty(shape, dtype=dtype or self.x.dtype)

    def tall(self, size: int) -> Tensor:
        return self.empty(self.chunks * CHUNK, self.heads.values, size)

    def square(self) -> Tensor:
        return self.empty(self.chunks, self.heads.values, self.heads.key_size, self.heads.value_size)

    def factors(self) -> Factors:
        h = self.heads
        made = Factors(
            self.empty(self.chunks, h.values, CHUNK, CHUNK),
            self.tall(h.key_size),
            self.tall(h.value_size),
            self.tall(h.key_size),
            self.tall(h.key_size),
            self.empty(self.chunks, h.values, dtype=torch.float32),
        )
        inputs = self.x, self.beta, self.alpha, self.a, self.bias, self.first
        strides = tuple(z.stride(0) for z in inputs[:3])
        sizes = {name: size for name, size in self.whole.items() if name not in ("VALUE", "VALUE_PAD")}
        invert[self.grid](
            *inputs, made.inverse, made.kept, self.tokens, *strides, h.eps, **sizes, num_warps=4, num_stages=1
        )
        factors[self.grid](
            *inputs, *made[:5], self.tokens, *strides, h.eps, self.scale, **self.whole, num_warps=4, num_stages=1
        )
        return made

    def states(self, made: Factors, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(states before each chunk, u, the state behind all if there was one before)."""
        states, u = self.square(), self.tall(self.heads.value_size)
        behind = None if state is None else torch.empty_like(state)
        walk[self.walks](
            made.erases, made.fresh, made.written, made.kept, self.first, made.kept if state is None else state,
            states, u, made.kept if behind is None else behind, self.tokens, self.chunks,
            **self.walk, GOES_ON=state is not None, num_warps=4, num_stages=3,
        )  # fmt: skip
        return states, u, behind


def pad(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def suits(x: Tensor, heads: DeltaHeads) -> bool:
    """Float32 takes minutes to compile and gains nothing, and with narrow heads Triton 3.6 reads past the end of shared
    memory on Hopper: both are plain torch's. Triton's interpreter, on a CPU, takes all."""
    low, high = sorted((heads.key_size, heads.value_size))
    return len(x) > 0 and high <= WIDEST and (x.device.type == "cpu" or low > NARROW and x.dtype != torch.float32)


def delta(x, beta, alpha, weights, heads: DeltaHeads, first, out, state: Tensor | None = None):
    """The Triton twin of plain_delta.delta."""
    if not suits(x, heads):
        return plain.delta(x, beta, alpha, weights, heads, first, out, state)
    net = Net(x, beta, alpha, weights, heads, first)
    states, u, behind = net.states(net.factors(), state)
    results[net.grid](
        x, u, states, alpha, net.a, net.bias, net.gain, first, out, net.tokens,
        *(z.stride(0) for z in (x, alpha, out)), heads.eps, net.scale, **net.whole, num_warps=4, num_stages=1,
    )  # fmt: skip
    return behind
