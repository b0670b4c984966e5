"""Generation: linears and logits for a few tokens at a time, right from the GGUF blocks, and caches of keys and values.

A token reads every weight once, so the blocks are never dequantized into memory: a fused product dequantizes them in
registers. With one new token a sequence all shapes are static, and the whole token is one recorded graph.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from anytune.engine.base import Heads

from .linear import linear, product
from .replay import capture
from .weights import Group

Tensor = torch.Tensor


@dataclass
class Places:
    """Where new rows go: spans as base.py gives them (None: one row each), and per row its slot and position (int32
    [T]). What is made of them is made once for all layers of a body's run, and so is part of a recording."""
    spans: list[tuple[int, int, int, int]] | None
    slot: Tensor
    position: Tensor

    @property
    def single(self) -> bool:
        """One new row a sequence."""
        return self.spans is None or len(self.spans) == self.slot.shape[0]

    @functools.cached_property
    def length(self) -> Tensor:
        """Keys that each row sees, without a window: int32 [T]."""
        return self.position + 1

    def flat(self, context: int) -> Tensor:
        """Rows of a cache [slots * context, width]: int64 [T]."""
        if "_flat" not in self.__dict__:
            self._flat = self.slot.long() * context + self.position
        return self._flat


def places(e, spans) -> Places:
    slot = np.concatenate([np.full(high - low, slot) for slot, low, high, _ in spans])
    position = np.concatenate([np.arange(p, p + high - low) for _, low, high, p in spans])
    return Places(list(spans), e.integers(slot), e.integers(position))


def cache(e, slots: int, context: int, width: int) -> Tensor:
    return torch.zeros((slots, context, width), dtype=e.act, device=e.device)


def store(e, cache: Tensor, where: Places, rows: Tensor) -> None:
    cache.view(-1, cache.shape[2]).index_copy_(0, where.flat(cache.shape[1]), rows)


def attend_cache(e, q: Tensor, keys: Tensor, values: Tensor, where: Places, heads: Heads) -> Tensor:
    out = e.array(q.shape[0], heads.queries * heads.size)
    out.ends = True
    if where.single and hasattr(e.f, "attend_rows"):
        e.f.attend_rows(q, keys, values, where.slot, where.length, heads, out)
    else:
        e.f.attend_cache(q, keys, values, where.spans, heads, out)
    return out


def linear_few(e, x: Tensor, group: Group) -> tuple[Tensor, ...]:
    """As linear(), for few rows and no backward."""
    if x.shape[0] > e.few or group.dense is not None or not _fused(e, group):
        return linear(e, x, group)
    y = e.array(x.shape[0], group.width)
    y.ends = True
    _gemv(e, x, group, y)
    parts = group.split(y)
    parts[-1].ends = True
    return parts


def logits(e, h: Tensor, head: Group) -> Tensor:
    """h: [n, d] -> float32 [n, vocab]."""
    out = torch.empty((h.shape[0], head.width), dtype=torch.float32, device=e.device)
    if h.shape[0] <= e.few and head.dense is None and _fused(e, head):
        _gemv(e, h, head, out)
        return out
    weight, step = head.weights[0], e.sizes.head
    tile = torch.empty((min(step, head.width), head.in_features), dtype=e.dtype, device=e.device)
    for low in range(0, head.width, step):
        high = min(low + step, head.width)
        product(e, h, weight.piece(low, high, tile).t(), out[:, low:high])
    slot = head.slots[0]
    if slot is not None:
        out += (h.float() @ slot.a.t() * slot.scale) @ slot.b.t()
    if head.bias is not None:
        out += head.bias
    return out


def _fused(e, group: Group) -> bool:
    return (hasattr(e.f, "gemv") and not group.trains_matrix
            and all(w.type.name in e.f.gemv_types for w in group.weights))


def _gemv(e, x: Tensor, group: Group, y: Tensor) -> None:
    down = _down(e, x, group)
    for raw, name, low, high, slots in blocks_of(group):
        up = None
        if down is not None and slots is not None:
            up = group.up[low:high]
        e.f.gemv(x, raw, name, y[:, low:high], down if up is not None else None, up)
    if group.bias is not None:
        y += group.bias


def _down(e, x: Tensor, group: Group) -> Tensor | None:
    """s x Aᵀ of all the group's pairs: float32 [n, R]; with it group.up [width, R], zero where a pair has no part."""
    if not group.rank:
        return None
    if group.up is None:
        group.down = torch.zeros((group.rank, group.in_features), dtype=torch.float32, device=e.device)
        group.up = torch.zeros((group.width, group.rank), dtype=torch.float32, device=e.device)
        for slot, low, high, (first, last) in zip(group.slots, group.bounds, group.bounds[1:], group.spans):
            if slot is not None:
                group.down[first:last] = slot.a * slot.scale
                group.up[low:high, first:last] = slot.b
    return x.float() @ group.down.t()


def blocks_of(group: Group) -> list:
    """(raw blocks, type, first column, last, whether it has a pair) of the group;
    linears of one type are one matrix."""
    if group.raw is None:
        group.raw, pair = [], True if group.rank else None
        names = {w.type.name for w in group.weights}
        if len(names) == 1 and len(group.weights) > 1:
            joined = torch.cat([w.blocks() for w in group.weights])
            at = 0
            for weight in group.weights:   # the weights' own bytes now lie in the joined matrix
                weight.adopt(joined[at:at + weight.out_features])
                at += weight.out_features
            group.raw.append((joined, names.pop(), 0, group.width, pair))
        else:
            for weight, low, high in zip(group.weights, group.bounds, group.bounds[1:]):
                group.raw.append((weight.blocks(), weight.type.name, low, high, pair))
    return group.raw


class TokenGraphs:
    """One recorded graph for each number of sequences that take one token each;
    those of the last few decoders are kept."""

    MOST = 4

    def __init__(self, engine):
        self.engine, self.known, self.pinned = engine, {}, None

    def clear(self) -> None:
        self.known, self.pinned = {}, None

    def fetch(self, logits: Tensor) -> np.ndarray:
        """float32 [n, vocab] on the host, good until the next call:
        through pinned memory, which is several times faster."""
        if self.engine.device.type != "cuda":
            return self.engine.view(logits)
        if self.pinned is None or self.pinned.numel() < logits.numel():
            self.pinned = torch.empty(logits.numel(), dtype=torch.float32, pin_memory=True)
        out = self.pinned[:logits.numel()].view(logits.shape)
        out.copy_(logits, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return out.numpy()

    def run(self, body, ids, spans, rows) -> Tensor | None:
        """body(ids, positions, places, rows) -> logits, on the device; see base.py's decode()."""
        e = self.engine
        single = all(high - low == 1 for _, low, high, _ in spans) and len(rows) == len(spans)
        if not (e.where.graphs and single):
            where = e.places(spans)
            return body(e.integers(ids), where.position, where, e.integers(rows) if len(rows) else None)
        values = np.array([ids, [s for s, _, _, _ in spans], [p for _, _, _, p in spans], rows], np.int32)
        key = (body, len(spans))
        token = self.known.pop(key, None) or Token(e, body, len(spans))
        self.known[key] = token
        while len(self.known) > self.MOST:
            self.known.pop(next(iter(self.known)))
        return token.run(values)


class Token:
    """One new token for each of n sequences: eager the first time, recorded the second, replayed from then on."""

    def __init__(self, engine, body, n: int):
        self.engine, self.body, self.runs, self.graph, self.logits = engine, body, 0, None, None
        self.numbers = torch.zeros((4, n), dtype=torch.int32, device=engine.device)

    def run(self, values: np.ndarray) -> Tensor:
        """values int32 [4, n]: token, slot, position, row of the logits."""
        self.numbers.copy_(torch.from_numpy(values))
        self.runs += 1
        if self.runs == 1:
            return self._forward()
        if self.graph is None:
            with capture() as graph:
                self.logits = self._forward()
            self.graph = graph
        self.graph.replay()
        return self.logits

    def _forward(self) -> Tensor:
        token, slot, position, row = self.numbers
        return self.body(token, position, Places(None, slot, position), row)
