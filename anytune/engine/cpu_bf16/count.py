"""The bf16 CPU engine on shapes alone: what its operations take from the pool and as scratch.

The model's own code runs on it, in the engine's order, so that freed buffers are used again as they are there; a test
holds its bytes against the engine's own.
"""

from __future__ import annotations

from anytune.engine.base import Heads
from anytune.engine.count import CountEngine, Shape, low_rank_products
from anytune.engine.numpy.attention import tasks_of
from anytune.engine.numpy.loss import most_rows
from anytune.engine.numpy.workers import piece, pieces

from . import attend
from .cuts import backward_pieces, forward_pieces, tile_rows
from .gemm import SPARE, packed_words, row_bytes
from .gradients import PIECE, turned_words
from .linear import GRADIENT, ROWS, trains_whole
from .loss import vocabulary_lanes
from .packed import can_be_packed, filled_columns, packs_both, words_of
from .rows import LINE

DROPPED = 13  # bytes an element: a mask, and the float32 temporaries that dropout is made with


class RowsShape(Shape):
    """Rows of bf16 that do not exist. group: whose low-rank columns are behind them; row_padding: columns of a whole
    row."""

    __slots__ = ("group", "row_padding")

    def part(self, columns: int) -> RowsShape:
        made = RowsShape((self.shape[0], columns), self._buffer)
        made.group, made.row_padding = None, self.row_padding
        return made


class Bf16Count(CountEngine):
    """Counts bytes and FLOPs of CpuBf16Engine. See anytune.engine.count."""

    def held(self, matrices: dict, groups: list) -> int:
        """As CountEngine's; of packed groups the packs."""
        packed = [g for g in groups if self._packs(g)]
        words = sum(w + LINE for group in packed for w in words_of(group, self.sizes.packed))
        forgotten = sum(w.nbytes for group in packed if self._packs_both(group) for w in group.weights)
        return super().held(matrices, groups) - forgotten + 4 * words

    def _packs_both(self, group) -> bool:
        return self._packs(group) and packs_both(group, self.sizes.packed)

    def _packs(self, group) -> bool:
        return bool(getattr(self.sizes, "packed", "")) and can_be_packed(group)

    def _pack(self, group) -> None:
        """The scratch with which packed.Packed is made."""
        for _, low, high in forward_pieces(group, tile_rows(group, self.sizes)):
            self.scratch("tile", (high - low) * group.in_features)
        for low, high in filled_columns(group, self.sizes) if self._packs_both(group) else ():
            self.scratch("tile", group.width * (high - low))

    def array(self, rows: int, columns: int, row_padding: int | None = None) -> Shape:
        return super().array(rows, columns, 0)

    def _rows(self, tokens: int, columns: int, group=None) -> RowsShape:
        flat = self.flat((max(tokens, self.capacity) + SPARE) * row_bytes(columns) // 4)
        made = RowsShape((tokens, columns), flat._buffer)
        made.group, made.row_padding = group, row_bytes(columns) // 2
        return made

    def _aligned(self, name: str, words: int, once: bool = False) -> None:
        """Scratch of every worker, or of the first alone."""
        if once:
            self._once[name] = max(self._once[name], words + LINE)
        else:
            self.scratch(name, words + LINE)

    def _most_rows(self, tokens: int) -> int:
        """The most rows in a piece of a row-wise operation."""
        return max((high - low for low, high in pieces(0, tokens, piece(tokens, ROWS, 4), 4)), default=0)

    def _left_rows(self, tokens: int, group) -> RowsShape:
        made = self._rows(tokens, group.in_features + group.rank, group)
        if group.rank:
            self._aligned("downs", packed_words(group.in_features, group.rank), True)
            self._aligned("low", self._most_rows(tokens) * group.rank)
        return made

    def _left(self, x, group) -> RowsShape:
        """[x | h], as linear.left()."""
        same = isinstance(x, RowsShape) and (x.group is group or not group.rank) and not group.dropout
        if group.dropout and group.rank:
            self.raw("mask", DROPPED * x.shape[0] * group.in_features)
            self._aligned("dropped", (self._most_rows(x.shape[0]) + SPARE) * row_bytes(group.in_features) // 4)
        return x if same else self._left_rows(x.shape[0], group)

    # ---- operations
    def _fused(self, x, group, columns: int):
        """A row-wise operation that ends in the group's left side, or in float32 where dropout needs it so."""
        if group.dropout:
            return self.array(x.shape[0], columns)
        self._aligned("edge", 3 * (columns + 15))
        return self._left_rows(x.shape[0], group)

    def norm_linear(self, x, gain, eps, group):
        return self.linear(self._fused(x, group, x.shape[1]), group)

    def norm_linear_backward(self, dys, x, gain, eps, group, residual, need_dx=True, then=None, into=None):
        dh = self.linear_backward(dys, self._fused(x, group, x.shape[1]), group, need_dx or into is not None)
        return self.rms_norm_backward(dh, x, gain, eps, residual) if need_dx else None

    def glu_linear(self, gate, up, activation, group):
        return self.linear(self._fused(gate, group, gate.shape[1]), group)

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        da = self.linear_backward((dy,), self._fused(gate, group, gate.shape[1]), group, need_dx)
        return self.glu_backward(da, gate, up, activation) if need_dx else None

    def glu_backward(self, dy, gate, up, activation):
        columns = gate.shape[1]
        both = self._rows(gate.shape[0], 2 * columns + self.row_padding)
        self._aligned("edge", 4 * (columns + 15))
        return both.part(columns), both.part(columns)

    def linear(self, x, group):
        tokens, rank, features = x.shape[0], group.rank, group.in_features
        y = self.array(tokens, group.width)
        x = self._left(x, group)
        self.flops += 2.0 * tokens * features * (group.width + rank) + 2.0 * tokens * low_rank_products(group)
        most, packed = tile_rows(group, self.sizes), self._packs(group)
        if packed:
            self._pack(group)
            most = group.width
        for index, low, high in forward_pieces(group, most):
            weight = group.weights[index]
            if packed:
                self._aligned("low", (high - low) * (0 if group.pairs[index] is None else group.ranks()[index][1]))
                continue
            self._tile(high - low, features + rank, packed_words(features + rank, high - low))
            if weight.hold == "stream":
                self.raw("tile", self.threads * (high - low) * (weight.nbytes // weight.out_features))
        return tuple(y.part(w.out_features) for w in group.weights)

    def _tile(self, rows: int, columns: int, packed: int) -> None:
        self.scratch("tile", rows * columns)
        self._aligned("packed", packed)

    def linear_backward(self, dys, x, group, need_dx=True):
        tokens, features, width, rank = x.shape[0], group.in_features, group.width, group.rank
        dy = self._gradient_rows(dys, group)
        if rank:
            x = self._left(x, group)
            self._pairs(tokens, group)
        if trains_whole(group):
            x = self._left(x, group)
            self._whole(tokens, group)
        dx = self.array(tokens, features) if need_dx else None
        self.flops += 2.0 * tokens * (2 * low_rank_products(group) + 2 * features * rank)
        if need_dx:
            self.flops += 2.0 * tokens * features * width
            self.raw("wide", sum(w.nbytes for w in group.weights if w.hold == "stream"))
            for low, high in backward_pieces(group, self.sizes) if not self._packs_both(group) else ():
                self._tile(width + rank, high - low, packed_words(width + rank, high - low))
        del dy, x
        return dx

    def _whole(self, tokens: int, group) -> None:
        """As gradients.gradient_jobs."""
        for weight in group.weights:
            if weight.gradient is not None:
                self._aligned("inner", packed_words(tokens, group.in_features), True)
                self.flops += 2.0 * tokens * group.in_features * weight.out_features
                for low, high in pieces(0, weight.out_features, PIECE, 16):
                    self._aligned("left", turned_words(high - low, tokens))

    def _gradient_rows(self, dys, group):
        for pair in group.pairs:
            if pair is not None:
                self._aligned("low", self._most_rows(dys[0].shape[0]) * pair.b.shape[1])
        self._aligned("ups", sum(packed_words(*s.b.shape) for s in group.pairs if s is not None), True)
        if all(isinstance(d, RowsShape) for d in dys) and dys[0].row_padding >= group.width + group.rank:
            return dys[0]
        return self._rows(dys[0].shape[0], group.width + group.rank)

    def _pairs(self, tokens: int, group) -> None:
        self._aligned("turned", turned_words(group.rank, tokens), True)
        self._aligned("inner", sum(packed_words(tokens, last - first) for first, last in group.ranks()), True)
        for low, high in pieces(0, group.in_features, GRADIENT, 16):
            self._aligned("packed", packed_words(tokens, high - low))
            self._aligned("low", max(b - a for a, b in group.ranks()) * (high - low))
        for pair in group.pairs:
            if pair is not None:
                for low, high in pieces(0, pair.b.shape[0], GRADIENT, 16):
                    self._aligned("packed", turned_words(high - low, tokens))

    def attention(self, q, k, v, heads: Heads):
        if heads.cap or heads.sinks:
            return super().attention(q, k, v, heads)
        tokens = q.shape[0]
        self._attend_bf16(heads, 2, attend.sizes)
        return self.array(tokens, heads.n_heads * heads.head_dim), self.flat(heads.n_heads * max(tokens, self.capacity))

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        if heads.cap or heads.sinks:
            return super().attention_backward(dout, q, k, v, out, lse, heads)
        tokens, narrow = q.shape[0], heads.n_kv_heads * heads.head_dim
        both = self.array(tokens, heads.n_heads * heads.head_dim + 2 * narrow)
        own = [self.array(tokens, narrow) for _ in range(2 * self._more_lanes(heads))]
        self._attend_bf16(heads, 5, attend.sizes_backward)
        del own
        return both.part(heads.n_heads * heads.head_dim), both.part(narrow), both.part(narrow)

    def _attend_bf16(self, heads: Heads, products: int, sizes) -> None:
        """Scratch of attention's tasks."""
        for _, tasks in tasks_of(self._starts, heads, self.sizes.scores, self.sizes.lanes):
            for task in tasks:
                keys = task.high - task.first_key(heads.window)
                self.flops += 2.0 * (task.high - task.low) * heads.group * keys * heads.head_dim * products
                self._aligned("attend", sum(n + 15 & -16 for n in sizes(keys, heads.head_dim)))

    def cross_entropy(self, h, head, targets, scale, gradient):
        if head.cap:
            return super().cross_entropy(h, head, targets, scale, gradient)
        rows, vocab, columns = h.shape[0], head.width, head.in_features + head.rank
        h = self._left(h, head)
        most = min(most_rows(self.sizes, head), max(rows, self.capacity))
        chunk = -(-rows // -(-rows // most))
        step = max(high - low for lane in vocabulary_lanes(self.sizes, head) for low, high in lane)
        if self._packs(head):
            self._pack(head)
            self._aligned("low", step * head.rank)
        dh = self.array(rows, head.in_features) if gradient else None
        keep = gradient and most * vocab <= self.sizes.logits
        logits = self.flat(most * vocab) if keep else self.scratch("logits", chunk * step)
        parts = self.flat(self.sizes.lanes * most * columns) if gradient else None
        self._tile(step, columns, max(packed_words(columns, step), packed_words(step, columns) if gradient else 0))
        self._aligned("edge", step + 16)
        if gradient:
            self._aligned("dlogits", (chunk + SPARE) * row_bytes(step) // 4)
            if head.rank:
                self._aligned("turned", turned_words(step, chunk))
                self._aligned("inner", packed_words(chunk, head.rank), True)
            if head.weights[0].gradient is not None:
                self._aligned("left", turned_words(step, chunk))
                self._aligned("inner", packed_words(chunk, head.in_features), True)
                self.flops += 2.0 * rows * vocab * head.in_features
        self.flops += 2.0 * rows * vocab * head.in_features * ((2 if keep else 3) if gradient else 1)
        if head.weights[0].hold == "stream":
            self.raw("tile", self.threads * step * (head.weights[0].nbytes // vocab))
        del h, logits, parts
        return 0.0, dh
