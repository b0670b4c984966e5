"""The engine that computes nothing: model code run on shapes, to know bytes and FLOPs before any are spent.

It mirrors what the NumPy engine allocates: pooled arrays of exact sizes (a freed one is used again, nothing
goes back before release), each worker's scratch, and the sizes in numpy/sizes.py. The same model code runs, so
the count cannot drift from the model; tests hold it against the NumPy engine's own pool.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from .base import DeltaHeads, Heads
from .composed import Composed
from .count_experts import ExpertShapes
from .numpy.attention import tasks_of
from .numpy.chunk import CHUNK, chunk_floats
from .numpy.gradients import gradient_pieces
from .numpy.linear import GRADIENT, backward_pieces, forward_pieces
from .numpy.loss import most_rows, vocabulary_lanes
from .numpy.sizes import Sizes
from .numpy.workers import piece, pieces


class Shape:
    """A float32 array that does not exist. Its buffer is free again when the last Shape on it is gone."""

    __slots__ = ("shape", "_buffer")

    def __init__(self, shape: tuple[int, ...], buffer: Buffer):
        self.shape, self._buffer = shape, buffer

    def part(self, columns: int) -> Shape:
        return Shape((self.shape[0], columns), self._buffer)


class Buffer:
    """A pooled buffer's place in the count."""

    __slots__ = ("_free", "_floats")

    def __init__(self, free: Counter, floats: int):
        self._free, self._floats = free, floats

    def __del__(self) -> None:
        self._free[self._floats] += 1


@dataclass(frozen=True)
class Frozen:
    """A weight that is only a shape."""

    out_features: int
    in_features: int
    block: int
    nbytes: int
    hold: str
    slow: bool = False
    gradient: object = None
    expert_features: int = 0

    def expert(self, number: int) -> Frozen:
        part = self.expert_features / self.out_features
        return replace(self, out_features=self.expert_features, nbytes=int(self.nbytes * part))


class RowShapes(ExpertShapes, Composed):
    """Operations on rows that take one array of their result's shape, or none, on any engine.
    Needs array(rows, columns)."""

    def embed(self, ids, table, scale):
        return self.array(len(ids), table.in_features)

    def gather(self, x, rows):
        return self.array(len(rows), x.shape[1])

    def scatter(self, y, rows, tokens):
        return self.array(tokens, y.shape[1])

    def add(self, x, y):
        return y

    def rms_norm(self, x, gain, eps):
        return self.array(*x.shape)

    def rms_norm_backward(self, dy, x, gain, eps, residual=None):
        return self.array(*x.shape)

    def split(self, x, *widths):
        return tuple(x.part(width) for width in widths)

    def join(self, parts):
        return parts[0].part(sum(p.shape[1] for p in parts))

    def scale(self, x, factor):
        return self.array(*x.shape)

    def split_heads(self, x, heads):
        return self.array(x.shape[0], x.shape[1] // 2), self.array(x.shape[0], x.shape[1] // 2)

    def join_heads(self, first, second, heads):
        return self.array(first.shape[0], 2 * first.shape[1])

    def latent_heads(self, q, kv, shared, shape):
        return tuple(self.array(q.shape[0], shape.heads * shape.size) for _ in range(3))

    def latent_heads_backward(self, dq, dk, dv, shape):
        widths = shape.heads * shape.keys, shape.heads * (shape.plain + shape.value), shape.turned
        return tuple(self.array(dq.shape[0], width) for width in widths)

    def resize_heads(self, x, heads, size):
        return self.array(x.shape[0], heads * size)

    def latent_matrix(self, k, v):
        return np.broadcast_to(np.float32(0), (k.shape[0] * (k.shape[2] + v.shape[1]), k.shape[1]))

    def gated(self, x, gate, activation):
        return self.array(*x.shape)

    def gated_backward(self, dy, x, gate, activation):
        return self.array(*x.shape), self.array(*x.shape)

    def offload(self, x):
        return x

    def prefetch(self, ticket):
        return ticket


class CountEngine(RowShapes):
    """Counts `flops` and bytes: pooled, scratch and raw. See base.py for the operations."""

    name = "count"

    def __init__(self, threads: int, sizes: Sizes = Sizes(), capacity: int = 0, hold: str = "blocks"):
        self.threads, self.sizes, self.capacity, self.hold = threads, sizes, capacity, hold
        self.row_padding, self.training, self.flops = 0, False, 0.0
        self.pooled = 0
        self._free: Counter = Counter()
        self._scratch: Counter = Counter()
        self._once: Counter = Counter()  # of worker 0 alone
        self._temporary: Counter = Counter()
        self._raw: Counter = Counter()
        self._starts = np.zeros(2, np.int32)

    @property
    def bytes(self) -> int:
        """All that the engine would hold: activations, scratch, streamed bytes, and what an operation drops again."""
        scratch = sum(self._scratch.values()) * self.threads + sum(self._once.values())
        return self.pooled + 4 * scratch + sum(self._raw.values()) + self.temporary

    @property
    def temporary(self) -> int:
        """Bytes that one operation takes for a while, beside buffers that are kept."""
        return 4 * self.threads * max(self._temporary.values(), default=0)

    def held(self, matrices: dict, groups: list) -> int:
        """Bytes of frozen matrices {name: weight}; groups are the linears made of them (see numpy/weights.py)."""
        each = {"stream": 0, "blocks": None, "float32": 4}[self.hold]
        return sum(m.nbytes if each is None else each * m.in_features * m.out_features for m in matrices.values())

    # ---- memory
    def begin(self, starts, capacity: int, key=(0, 0, 0)) -> None:
        self._starts, self.capacity = np.asarray(starts), capacity

    def flat(self, floats: int) -> Shape:
        if self._free[floats]:
            self._free[floats] -= 1
        else:
            self.pooled += 4 * floats
        return Shape((floats,), Buffer(self._free, floats))

    def array(self, rows: int, columns: int, row_padding: int | None = None) -> Shape:
        stride = columns + (self.row_padding if row_padding is None else row_padding)
        made = self.flat(max(rows, self.capacity) * stride)
        made.shape = (rows, columns)
        return made

    def scratch(self, name: str, floats: int) -> None:
        self._scratch[name] = max(self._scratch[name], floats)

    def raw(self, name: str, size: int) -> None:
        self._raw[name] = max(self._raw[name], size)

    def weight(self, gguf, name: str, hold: str = "blocks") -> Frozen:
        info = gguf.tensors[name]
        hold = "stream" if hold == "lookup" else hold
        return Frozen(
            info.rows, info.shape[-1], info.type.block_size, info.nbytes, hold, expert_features=info.shape[-2]
        )

    def trained(self, values, gradient) -> Frozen:
        rows = values.size // values.shape[-1]
        return Frozen(rows, values.shape[-1], 1, 0, "float32", gradient=gradient, expert_features=values.shape[-2])

    def constant(self, gguf, name: str) -> np.ndarray:
        return np.ones(gguf.tensors[name].shape, np.float32)

    def vector(self, values):
        return values

    def integers(self, values):
        return values

    def host(self, values):
        return values

    def group(self, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None):
        from .numpy.linear import Group

        return Group(
            tuple(weights),
            tuple(biases or (None,) * len(weights)),
            tuple(pairs or ()),
            dropout,
            number,
            tuple(bias_gradients or ()),
        )

    # ---- operations
    def _slots(self, routing, columns: int, row_padding: int | None = None) -> Shape:
        stride = columns + (self.row_padding if row_padding is None else row_padding)
        made = self.flat(max(routing.slots, self.capacity * routing.router.used) * stride)
        made.shape = (routing.slots, columns)
        return made

    def _expert_products(self, group, back: bool, need_dx: bool) -> None:
        one, rank = group.of(0), group.rank
        for index, low, high in () if back else forward_pieces(one, self.sizes):
            weight = one.weights[index]
            self.scratch("tile", (high - low) * (group.in_features + rank))
            if weight.hold == "stream":
                self.raw("tile", self.threads * (high - low) * (weight.nbytes // weight.out_features))
        for low, high in backward_pieces(one, self.sizes) if need_dx else ():
            self.scratch("wide", (high - low) * (one.width + rank))
        if need_dx:
            self.raw("expert", self.threads * sum(w.nbytes for w in one.weights if w.hold == "stream"))
        if back:
            self._gradients(one)

    def qk_norm_rope(self, q, k, gains, eps, table, positions, heads, neox):
        return (q, k) if gains is None else (self.array(*q.shape), self.array(*k.shape))

    def gain_gradient(self, dy, x, eps, into):
        pass

    def embed_backward(self, dx, ids, scale, into):
        pass

    def qk_norm_rope_backward(self, dq, dk, q, k, gains, eps, table, positions, heads, neox, into=(None, None)):
        return dq, dk

    def glu(self, gate, up, activation):
        return self.array(*gate.shape)

    def glu_backward(self, dy, gate, up, activation):
        both = self.array(gate.shape[0], 2 * gate.shape[1])
        return both.part(gate.shape[1]), both.part(gate.shape[1])

    def linear(self, x, group):
        tokens, rank = x.shape[0], group.rank
        y = self.array(tokens, group.width, row_padding=0)
        self.flops += 2.0 * tokens * group.in_features * (group.width + rank) + 2.0 * tokens * low_rank_products(group)
        for index, low, high in forward_pieces(group, self.sizes):
            weight = group.weights[index]
            self.scratch("tile", (high - low) * (group.in_features + rank))
            if weight.hold == "stream":
                self.raw("tile", self.threads * (high - low) * (weight.nbytes // weight.out_features))
        return tuple(y.part(w.out_features) for w in group.weights)

    def linear_backward(self, dys, x, group, need_dx=True):
        tokens, width, rank = x.shape[0], group.width, group.rank
        joined = self.array(tokens, width) if len({id(d._buffer) for d in dys if d is not None}) > 1 else None
        dx = self.array(tokens, group.in_features, row_padding=0) if need_dx else None
        low = low_rank_products(group)
        self.flops += 2.0 * tokens * (2 * low + 2 * group.in_features * rank)
        if need_dx:
            self.flops += 2.0 * tokens * group.in_features * width
            for low, high in backward_pieces(group, self.sizes):
                self.scratch("wide", (high - low) * (width + rank))
            self.raw("wide", sum(w.nbytes for w in group.weights if w.hold == "stream"))
        for weight in group.weights:
            if weight.gradient is not None:
                self.flops += 2.0 * tokens * group.in_features * weight.out_features
        self._gradients(group)
        if group.dropout and rank:
            self.raw("mask", 9 * tokens * group.in_features)
        del joined
        return dx

    def _gradients(self, group) -> None:
        """The scratch in which gradients of matrices and pairs are made."""
        for _, low, high in gradient_pieces(group, self.sizes):
            self.scratch("gradient", (high - low) * group.in_features)
        for low, high in pieces(0, group.in_features, piece(group.in_features, GRADIENT, 16), 16):
            self.scratch("down", group.rank * (high - low))
        for pair, weight in zip(group.pairs, group.weights):
            if pair is not None:
                for low, high in pieces(0, weight.out_features, piece(weight.out_features, GRADIENT, 16), 16):
                    self.scratch("up", pair.a.shape[0] * (high - low))

    def attention(self, q, k, v, heads: Heads):
        self._attend(q.shape[0], heads, 2, 1)
        return (
            self.array(q.shape[0], heads.n_heads * heads.head_dim),
            self.flat(heads.n_heads * max(q.shape[0], self.capacity)),
        )

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        tokens, narrow = q.shape[0], heads.n_kv_heads * heads.head_dim
        both = self.array(tokens, heads.n_heads * heads.head_dim + 2 * narrow)
        inner = self.flat(max(tokens, self.capacity) * heads.n_heads)
        own = [self.array(tokens, narrow) for _ in range(2 * self._more_lanes(heads))]
        self._attend(tokens, heads, 5, 2)
        del inner, own
        return both.part(heads.n_heads * heads.head_dim), both.part(narrow), both.part(narrow)

    def _more_lanes(self, heads: Heads) -> int:
        return max((lane for lane, _ in tasks_of(self._starts, heads, self.sizes.scores, self.sizes.lanes)), default=0)

    def delta(self, x, beta, alpha, weights, heads: DeltaHeads):
        tokens, state = x.shape[0], heads.values * heads.key_size * heads.value_size
        out, raw = self.array(tokens, heads.inner), self.array(tokens, heads.inner)
        states = self.flat(-(-max(tokens, self.capacity) // CHUNK) * state)
        self._chunks(tokens, heads, 1)
        return out, (raw, states)

    def delta_backward(self, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
        made = tuple(self.array(*z.shape) for z in (x, beta, alpha))
        self._chunks(x.shape[0], heads, 2)
        return made

    def _chunks(self, tokens: int, heads: DeltaHeads, times: int) -> None:
        """What one chunk takes of memory for a while, and all of them of arithmetic: once forward, twice backward."""
        h, values = heads, heads.repeats * min(heads.keys, piece(heads.keys, 1))
        self._temporary["chunk"] = max(self._temporary["chunk"], chunk_floats(h, values))
        self.flops += (
            (2 * times - 1)
            * 2.0
            * tokens
            * h.values
            * (3 * h.key_size * h.value_size + 2 * CHUNK * (h.key_size + h.value_size))
        )

    def convolve(self, x, weight, silu):
        self._temporary["convolution"] = max(
            self._temporary["convolution"], 5 * min(x.shape[0], piece(x.shape[0], 32)) * x.shape[1]
        )
        return self.array(*x.shape)

    def convolve_backward(self, dy, x, weight, silu, into=None):
        made = [self.array(*x.shape) for _ in range(2 if silu else 1)]
        self._temporary["convolution"] = max(
            self._temporary["convolution"], 7 * min(x.shape[0], piece(x.shape[0], 32)) * x.shape[1]
        )
        return made[0]

    def _attend(self, tokens: int, heads: Heads, products: int, scores: int) -> None:
        for _, tasks in tasks_of(self._starts, heads, self.sizes.scores, self.sizes.lanes):
            for task in tasks:
                rows, keys = (task.high - task.low) * heads.group, task.high - task.first_key(heads.window)
                self.flops += 2.0 * rows * keys * heads.head_dim * products
                parts = {"s": rows * keys, "q": rows * heads.head_dim, "o": rows * heads.head_dim}
                if heads.cap and scores == 2:
                    parts["slope"] = rows * keys
                if scores == 2:
                    parts |= {"dp": rows * keys, "do": rows * heads.head_dim, "piece": keys * heads.head_dim}
                for name, floats in parts.items():
                    self.scratch(name, floats)

    def cross_entropy(self, h, head, targets, scale, gradient):
        rows, vocab, width = h.shape[0], head.width, head.in_features
        chunk = min(most_rows(self.sizes, head), max(rows, self.capacity))
        step = max(high - low for lane in vocabulary_lanes(self.sizes, head) for low, high in lane)
        dh = self.array(rows, width) if gradient else None
        self.scratch("wide", step * (width + head.rank))
        keep = gradient and chunk * vocab <= self.sizes.logits
        if head.cap and gradient:
            self.scratch("slope", chunk * step)
        logits = self.flat(chunk * vocab) if keep else self.scratch("logits", chunk * step)
        self.flops += 2.0 * rows * vocab * width * ((2 if keep else 3) if gradient else 1)
        if gradient:
            parts = self.flat(self.sizes.lanes * chunk * (width + head.rank))
            self.scratch("product", chunk * (width + head.rank))
            if head.weights[0].gradient is not None:
                self.scratch("gradient", step * width)
                self.flops += 2.0 * rows * vocab * width
            del parts
        if head.weights[0].hold == "stream":
            self.raw("tile", self.threads * step * (head.weights[0].nbytes // vocab))
        del logits
        return 0.0, dh


def low_rank_products(group) -> int:
    """Sum of rank * out over the linears that carry a pair."""
    return sum(s.a.shape[0] * w.out_features for s, w in zip(group.pairs, group.weights) if s is not None)
