"""The torch engine on shapes alone: live bytes go up and down with the arrays, and the peak is what is wanted.

It mirrors what engine.py, linear.py and loss.py allocate; the model's own code runs on it, and tests hold its peak
against torch's own count on a GPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from anytune.engine.base import DeltaHeads, Heads
from anytune.engine.composed import Composed
from anytune.engine.count_experts import ExpertShapes

from . import fp8
from .chunks import CHUNK
from .experts import Experts
from .slices import layers_of, slice_bytes
from .weights import WHOLE, Group, align

BLOCK = 512  # bytes: the grain of torch's allocator


class Live:
    """Bytes in use now, and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def take(self, size: int) -> Held:
        size = -(-size // BLOCK) * BLOCK
        self.now += size
        self.peak = max(self.peak, self.now)
        return Held(self, size)


class Held:
    """A piece of memory; given back when the last reference goes."""

    __slots__ = ("_live", "_size")

    def __init__(self, live: Live, size: int):
        self._live, self._size = live, size

    def __del__(self) -> None:
        self._live.now -= self._size


class Shape:
    """An array that does not exist. pending: the second operand of a sum that has not been added yet."""

    __slots__ = ("shape", "held", "pending")

    def __init__(self, shape: tuple[int, ...], held, pending=None):
        self.shape, self.held, self.pending = shape, held, pending

    def part(self, columns: int) -> Shape:
        return Shape((self.shape[0], columns), self.held)


class Matrix:
    """A weight that is only a shape. gradient: not None where it is trained."""

    slow = False

    def __init__(self, shape: tuple[int, ...], nbytes: int, hold: str, gradient=None):
        self.expert_features, self.in_features = shape[-2:]
        self.out_features = math.prod(shape[:-1])
        self.nbytes, self.hold, self.gradient = nbytes, hold, gradient


class TorchCount(ExpertShapes, Composed):
    """Counts `flops` and the peak of live bytes. See base.py for the operations."""

    name = "count"

    def __init__(self, engine, sizes, hold: str):
        self.item, self.head_item = (torch.empty(0, dtype=t).element_size() for t in (engine.act, engine.dtype))
        self.shards, self.decode_rows, self.most = engine.shards, engine.f.small_rows, engine.f.most
        # a product's sum that lies in memory before it is added to a float32 gradient; see gradients.add_product
        self.sums = (
            0 if self.item == 4 else 4 if engine.device.type == "cuda" and torch.version.hip is None else self.item
        )
        self.fp8, self.grouped = engine.fp8, engine.grouped
        self.sizes, self.hold, self.row_padding, self.training, self.flops = sizes, hold, 0, False, 0.0
        self.live, self.span = Live(), 0.0

    @property
    def bytes(self) -> int:
        return self.live.peak

    def held(self, matrices: dict, groups: list) -> int:
        """What frozen weights take: dense, or blocks (on the device, if not streamed), and one scratch matrix."""
        scratch = self.head_item * max((g.size for g in groups[:-1] if g.hold != "dense"), default=0)
        if self.fp8:
            rounded = [fp8.size(g) for g in groups if isinstance(g, Group) and fp8.takes(g)]
            scratch += sum(rounded) if self.hold == "dense" else max(rounded, default=0)
        if self.hold == "dense":
            loose = [g for g in groups if g.hold != "dense"]
            beside = sum(w.nbytes for g in loose for w in g.weights if w.gradient is None)
            return self.head_item * sum(g.size for g in groups if g.hold == "dense") + beside + scratch
        blocks = sum(m.nbytes for m in matrices.values())
        if self.hold == "blocks":
            return blocks + scratch
        if self.hold == "shard":  # a slice of each but the whole ones, and two buffers for gathered ones
            layers = [
                sum(slice_bytes(matrices[name], self.shards) for name in names)
                for names in layers_of(name for name in matrices if name not in WHOLE).values()
            ]
            whole = sum(m.nbytes for name, m in matrices.items() if name in WHOLE)
            return whole + sum(layers) + 2 * self.shards * max(layers, default=0) + scratch
        return scratch + max((m.nbytes for m in matrices.values()), default=0)

    def begin(self, starts, capacity, key=(0, 0, 0)) -> None:
        lengths = np.diff(starts)
        self.span = float((lengths**2).sum() / max(1, lengths.sum()))  # keys before and after a token, on average

    def array(self, rows: int, columns: int, row_padding: int | None = None) -> Shape:
        stride = align(columns + (self.row_padding if row_padding is None else row_padding))
        return Shape((rows, columns), self.live.take(rows * stride * self.item))

    def float32(self, *shape: int) -> Held:
        size = 4
        for n in shape:
            size *= n
        return self.live.take(size)

    def weight(self, gguf, name, hold="blocks"):
        info = gguf.tensors[name]
        hold = "blocks" if len(info.shape) == 3 and hold in ("dense", "shard") else hold
        return Matrix(info.shape, info.nbytes, hold)

    def trained(self, values, gradient):
        return Matrix(values.shape, 0, "trained", gradient)

    def constant(self, gguf, name):
        return gguf.tensors[name].shape  # only whether there is one is asked

    def vector(self, values):
        return values

    integers = host = vector

    def group(self, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None):
        return Group(weights, None, pairs, dropout, number, bias_gradients)

    def expert_group(self, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None):
        return Experts(weights, None, pairs, dropout, number, bias_gradients, self.grouped)

    def dispatch(self, x, routing):
        picked = self._slots(routing, x.shape[1], 0)
        out = self._slots(routing, x.shape[1])
        del picked
        return out

    def combine(self, y, routing, beside=()):
        slots = self._slots(routing, y.shape[1], 0)
        out = self.array(routing.tokens, y.shape[1])
        del slots
        return out

    def weigh_backward(self, dy, x, routing):
        wide = [self.float32(*x.shape) for _ in range(2)]
        del wide
        return dy, None

    def _expert_products(self, group, back: bool, need_dx: bool) -> None:
        """Gradients of pairs, and the results of products, before they are where they belong."""
        if back and group.trains_pairs:
            self.float32(group.experts, group.rank, group.in_features + group.width)

    @property
    def keeps_turned(self) -> bool:
        return self.sizes.turned

    @property
    def keeps_attended(self) -> bool:
        return self.sizes.attended

    # ---- operations
    def embed(self, ids, table, scale):
        return self.array(len(ids), table.in_features)

    def gather(self, x, rows):
        return self.array(len(rows), x.shape[1])

    def scatter(self, y, rows, tokens):
        picked = self.array(tokens, y.shape[1], 0)
        out = self.array(tokens, y.shape[1])
        del picked
        return out

    def add(self, x, y):
        return Shape(y.shape, x.held, y.held)

    def _settle(self, x: Shape) -> None:
        if x.pending is not None:
            x.held, x.pending = self.array(*x.shape).held, None

    def rms_norm(self, x, gain, eps):
        out = self.array(*x.shape)
        self._settle(x)
        return out

    def rms_norm_backward(self, dy, x, gain, eps, residual=None):
        return self.array(*x.shape)

    def qk_norm_rope(self, q, k, gains, eps, table, positions, heads, neox):
        if gains is None:
            return q, k
        both = self.array(q.shape[0], q.shape[1] + k.shape[1], 0)
        return both.part(q.shape[1]), both.part(k.shape[1])

    def gain_gradient(self, dy, x, eps, into):
        self.float32(*dy.shape)

    def embed_backward(self, dx, ids, scale, into):
        self.float32(*dx.shape)

    def qk_norm_rope_backward(self, dq, dk, q, k, gains, eps, table, positions, heads, neox, into=(None, None)):
        if into[0] is not None or into[1] is not None:
            turned = [self.live.take(x.shape[0] * x.shape[1] * self.item) for x in (dq, dk)]
            self.gain_gradient(dq, q, eps, None)
            del turned
        return dq, dk

    def glu(self, gate, up, activation):
        return self.array(*gate.shape)

    def glu_backward(self, dy, gate, up, activation):
        both = self.array(gate.shape[0], 2 * gate.shape[1])
        return both.part(gate.shape[1]), both.part(gate.shape[1])

    def linear(self, x, group):
        y = self.array(x.shape[0], group.width)
        self.flops += 2.0 * x.shape[0] * (group.width * group.columns + group.rank * group.in_features)
        if group.number < 0 and group.hold != "dense":
            raise AssertionError("the head goes through cross_entropy")
        return tuple(y.part(w.out_features) for w in group.weights)

    def linear_backward(self, dys, x, group, need_dx=True):
        tokens = x.shape[0]
        self.flops += 2.0 * tokens * group.rank * (2 * group.width + group.in_features)
        dx = None
        if need_dx:
            rounded = self._rounded(tokens, group)
            self.flops += 2.0 * tokens * (group.width + group.rank) * group.in_features
            dx = self.array(tokens, group.in_features)
            del rounded
        for weight in group.weights:
            if weight.gradient is not None:
                self.flops += 2.0 * tokens * weight.out_features * group.in_features
                self.live.take(self.sums * weight.out_features * group.in_features)
        return dx

    def _rounded(self, tokens: int, group):
        """What an input gradient in fp8 takes beside dy."""
        if self.fp8 and fp8.takes(group):
            return self.live.take(tokens * (group.width + group.rank + 8))
        return None

    def norm_linear_backward(self, dys, x, gain, eps, group, residual, need_dx=True, then=None, into=None):
        again = self.array(*x.shape) if group.trains_matrix else None
        dh = self.linear_backward(dys, x, group, need_dx or into is not None)
        again = again or self.array(*x.shape)
        if into is not None:
            self.gain_gradient(dh, x, eps, into)
        out = self.array(*x.shape) if need_dx else None
        del dh, again
        return out

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        before = self.array(*gate.shape) if group.trains_matrix else None
        da = self.linear_backward((dy,), gate, group, need_dx)
        del before
        together = (
            gate.shape[0] > self.decode_rows
            and then is not None
            and then.rank
            and group.rank
            and max(then.rank // 2, group.rank) <= self.most
        )
        again = None if together else self.array(*gate.shape)
        both = self.glu_backward(da, gate, up, activation) if need_dx else None
        del again
        return both

    def attention(self, q, k, v, heads: Heads):
        tokens = q.shape[0]
        self.flops += 2.0 * tokens * heads.n_heads * heads.head_dim * min(heads.window or self.span, self.span)
        return self.array(tokens, heads.n_heads * heads.head_dim), Shape((tokens,), self.float32(tokens, heads.n_heads))

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        tokens, wide, narrow = q.shape[0], heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        self.flops += 5.0 * tokens * heads.n_heads * heads.head_dim * min(heads.window or self.span, self.span)
        both = self.array(tokens, wide + 2 * narrow)
        delta = self.float32(tokens, heads.n_heads)
        del delta
        return both.part(wide), both.part(narrow), both.part(narrow)

    def delta(self, x, beta, alpha, weights, heads: DeltaHeads):
        made = self._chunks(x.shape[0], heads, 1)
        out = self.array(x.shape[0], heads.inner)
        del made
        return out, None

    def delta_backward(self, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
        made = self._chunks(x.shape[0], heads, 2)
        out = tuple(self.array(*z.shape) for z in (x, beta, alpha))
        del made
        return out

    def _chunks(self, tokens: int, heads: DeltaHeads, times: int) -> Held:
        """What chunks.py holds at once, in float32: of each token with its chunk, and alone; and states."""
        h, tokens = heads, -(-tokens // CHUNK) * CHUNK
        self.flops += (
            (2 * times - 1)
            * 2.0
            * tokens
            * h.values
            * (3 * h.key_size * h.value_size + 2 * CHUNK * (h.key_size + h.value_size))
        )
        return self.float32(
            times * h.values,
            6 * tokens * CHUNK
            + 4 * tokens * (h.key_size + h.value_size)
            + 2 * (tokens // CHUNK + 1) * h.key_size * h.value_size,
        )

    def convolve(self, x, weight, silu):
        made = self.float32(3, *x.shape)
        out = self.array(*x.shape)
        del made
        return out

    def convolve_backward(self, dy, x, weight, silu, into=None):
        made = self.float32(5, *x.shape)
        out = self.array(*x.shape)
        del made
        return out

    def split(self, x, *widths):
        return tuple(x.part(width) for width in widths)

    def join(self, parts):
        return parts[0].part(sum(p.shape[1] for p in parts))

    def scale(self, x, factor):
        return self.array(*x.shape)

    def split_heads(self, x, heads):
        return self.array(x.shape[0], x.shape[1] // 2), self.array(x.shape[0], x.shape[1] // 2)

    def join_heads(self, first, second, heads):
        both = self.live.take(2 * first.shape[0] * first.shape[1] * self.item)
        out = self.array(first.shape[0], 2 * first.shape[1])
        del both
        return out

    def gated(self, x, gate, activation):
        made = self.float32(2, *x.shape)
        out = self.array(*x.shape)
        del made
        return out

    def gated_backward(self, dy, x, gate, activation):
        made = self.float32(4, *x.shape)
        out = self.array(*x.shape), self.array(*x.shape)
        del made
        return out

    def cross_entropy(self, h, head, targets, scale, gradient):
        rows, width = h.shape
        chunk = min(rows, max(16, self.sizes.logits // head.width // 16 * 16))
        dh = self.array(rows, width) if gradient else None
        logits = self.array(chunk, head.width, head.rank)
        pieces = []
        if head.hold != "dense":
            pieces = [
                self.live.take(min(head.width, self.sizes.head) * width * self.head_item),
                self.float32(chunk, width),
                self.array(chunk, width),
            ]
        if gradient and head.trains_matrix:
            pieces.append(self.live.take(min(head.width, self.sizes.head) * width * self.sums))
        self.flops += 2.0 * rows * head.width * width * (1 + gradient + (gradient and head.trains_matrix))
        del logits, pieces
        return 0.0, dh

    def offload(self, x):
        self._settle(x)
        return Parked(x.shape) if self.sizes.offload else x

    def prefetch(self, ticket):
        return self.array(*ticket.shape) if isinstance(ticket, Parked) else ticket


class Parked:
    """A layer's input on the host."""

    def __init__(self, shape):
        self.shape = shape
