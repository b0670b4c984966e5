"""The torch engine on shapes alone: live bytes go up and down with the arrays, and the peak is what is wanted.

It mirrors what engine.py, linear.py and loss.py allocate; the model's own code runs on it, and tests hold its peak against
torch's own count on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from anytune.engine.base import Heads
from anytune.engine.composed import Composed

from .slices import rows_each
from .weights import WHOLE, Group, align

BLOCK = 512    # bytes: the grain of torch's allocator


class Live:
    """Bytes in use now, and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def take(self, size: int) -> "Held":
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

    def part(self, columns: int) -> "Shape":
        return Shape((self.shape[0], columns), self.held)


class Frozen:
    """A weight that is only a shape."""

    slow = False

    def __init__(self, info, hold: str):
        self.out_features, self.in_features = info.shape
        self.nbytes, self.hold = info.nbytes, hold


class TorchCount(Composed):
    """Counts `flops` and the peak of live bytes. See base.py for the operations."""

    name = "count"

    def __init__(self, engine, sizes, hold: str):
        self.item, self.head_item = (torch.empty(0, dtype=t).element_size() for t in (engine.act, engine.dtype))
        self.shards, self.few, self.most = engine.shards, engine.f.few, engine.f.most
        self.sizes, self.hold, self.room, self.training, self.flops = sizes, hold, 0, False, 0.0
        self.live, self.span = Live(), 0.0

    @property
    def bytes(self) -> int:
        return self.live.peak

    def held(self, matrices: dict, groups: list) -> int:
        """What weights take: dense matrices, or blocks (on the device, if not streamed) and one scratch matrix."""
        blocks = sum(m.nbytes for m in matrices.values())
        if self.hold == "dense":
            return self.head_item * sum(g.size for g in groups)
        scratch = self.head_item * max((g.size for g in groups[:-1]), default=0)
        if self.hold == "blocks":
            return blocks + scratch
        if self.hold == "shard":    # a slice of each but the whole ones, and two buffers for gathered ones
            each = {name: m.row_bytes * rows_each(m.out_features, self.shards) for name, m in matrices.items() if name not in WHOLE}
            whole = sum(m.nbytes for name, m in matrices.items() if name in WHOLE)
            return whole + sum(each.values()) + 2 * self.shards * max(each.values()) + scratch
        return scratch + max(m.nbytes for m in matrices.values())

    def begin(self, starts, capacity, key=(0, 0, 0)) -> None:
        lengths = np.diff(starts)
        self.span = float((lengths ** 2).sum() / max(1, lengths.sum()))    # keys before and after a token, on average

    def array(self, rows: int, columns: int, room: int | None = None) -> Shape:
        stride = align(columns + (self.room if room is None else room))
        return Shape((rows, columns), self.live.take(rows * stride * self.item))

    def float32(self, *shape: int) -> Held:
        size = 4
        for n in shape:
            size *= n
        return self.live.take(size)

    def weight(self, gguf, name, hold="blocks"):
        return Frozen(gguf.tensors[name], hold)

    def constant(self, gguf, name):
        return gguf.tensors[name].shape     # only whether there is one is asked

    def vector(self, values):
        return values

    integers = host = vector

    def group(self, weights, biases=None, slots=None, dropout=0.0, number=0):
        return Group(weights, None, slots, dropout, number)

    @property
    def keeps_turned(self) -> bool:
        return self.sizes.turned

    # ---- operations
    def embed(self, ids, table, scale):
        return self.array(len(ids), table.in_features)

    def take(self, x, rows):
        return self.array(len(rows), x.shape[1])

    def put(self, y, rows, tokens):
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

    def rotate(self, q, k, gains, eps, table, positions, heads, halves):
        if gains is None:
            return q, k
        both = self.array(q.shape[0], q.shape[1] + k.shape[1], 0)
        return both.part(q.shape[1]), both.part(k.shape[1])

    def rotate_backward(self, dq, dk, *rest):
        return dq, dk

    def glu(self, gate, up, activation):
        return self.array(*gate.shape)

    def glu_backward(self, dy, gate, up, activation):
        both = self.array(gate.shape[0], 2 * gate.shape[1])
        return both.part(gate.shape[1]), both.part(gate.shape[1])

    def linear(self, x, group):
        y = self.array(x.shape[0], group.width)
        self.flops += 2.0 * x.shape[0] * (group.width * group.columns + group.rank * group.in_features)
        if group.number < 0 and self.hold != "dense":
            raise AssertionError("the head goes through cross_entropy")
        return tuple(y.part(w.out_features) for w in group.weights)

    def linear_backward(self, dys, x, group, need_dx=True):
        tokens = x.shape[0]
        self.flops += 2.0 * tokens * group.rank * (2 * group.width + group.in_features)
        dx = None
        if need_dx:
            self.flops += 2.0 * tokens * (group.width + group.rank) * group.in_features
            dx = self.array(tokens, group.in_features)
        return dx

    def norm_linear_backward(self, dys, x, gain, eps, group, residual, need_dx=True, then=None):
        dh = self.linear_backward(dys, x, group, need_dx)
        again = self.array(*x.shape)
        out = self.array(*x.shape) if need_dx else None
        del dh, again
        return out

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        da = self.linear_backward((dy,), gate, group, need_dx)
        together = gate.shape[0] > self.few and then.rank and group.rank and max(then.rank // 2, group.rank) <= self.most
        again = None if together else self.array(*gate.shape)
        both = self.glu_backward(da, gate, up, activation) if need_dx else None
        del again
        return both

    def attention(self, q, k, v, heads: Heads):
        tokens = q.shape[0]
        self.flops += 2.0 * tokens * heads.queries * heads.size * min(heads.window or self.span, self.span)
        return self.array(tokens, heads.queries * heads.size), Shape((tokens,), self.float32(tokens, heads.queries))

    def attention_backward(self, dout, q, k, v, out, sums, heads: Heads):
        tokens, wide, narrow = q.shape[0], heads.queries * heads.size, heads.keys * heads.size
        self.flops += 5.0 * tokens * heads.queries * heads.size * min(heads.window or self.span, self.span)
        both = self.array(tokens, wide + 2 * narrow)
        delta = self.float32(tokens, heads.queries)
        del delta
        return both.part(wide), both.part(narrow), both.part(narrow)

    def cross_entropy(self, h, head, targets, scale, gradient):
        rows, width = h.shape
        chunk = min(rows, max(16, self.sizes.logits // head.width // 16 * 16))
        dh = self.array(rows, width) if gradient else None
        logits = self.array(chunk, head.width, head.rank)
        pieces = []
        if self.hold != "dense":
            pieces = [self.live.take(min(head.width, self.sizes.head) * width * self.head_item), self.float32(chunk, width),
                      self.array(chunk, width)]
        self.flops += 2.0 * rows * head.width * width * (2 if gradient else 1)
        del logits, pieces
        return 0.0, dh

    def park(self, x):
        self._settle(x)
        return Parked(x.shape) if self.sizes.offload else x

    def fetch(self, ticket):
        return self.array(*ticket.shape) if isinstance(ticket, Parked) else ticket


class Parked:
    """A layer's input on the host."""

    def __init__(self, shape):
        self.shape = shape
