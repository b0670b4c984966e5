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
from anytune.engine.composed import Composed

from .arrays import real
from .attention import attend_cache as attend_spans
from .linear import linear, product
from .replay import beside, capture
from .resources import Lane, Owned, page_locked, sweep
from .weights import Group

Tensor = torch.Tensor
KERNEL = 512  # the widest head that the kernel of a few rows takes: those of latents are wider


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


def attend_cache(e, q: Tensor, keys: Tensor, values: Tensor, where: Places, heads: Heads, sinks=None) -> Tensor:
    out = e.array(q.shape[0], heads.n_heads * heads.head_dim)
    out.ends = True
    if sinks is not None or heads.head_dim > KERNEL:
        if where.spans is None:
            _attend_all(q, keys, values, where, heads, sinks, out)
        else:
            attend_spans(q, keys, values, where.spans, heads, out, sinks)
    elif where.single and hasattr(e.f, "attend_rows"):
        e.f.attend_rows(q, keys, values, where.slot, where.length, heads, out)
    else:
        e.f.attend_cache(q, keys, values, where.spans, heads, out)
    return out


def _attend_all(q, keys, values, where: Places, heads: Heads, sinks: Tensor | None, out: Tensor) -> None:
    """One new row a sequence, in plain torch: against all of its cache, since its length is on the device."""
    slot, place = where.slot.long(), torch.arange(keys.shape[1], device=q.device)
    k, v = (x.index_select(0, slot).unflatten(2, (heads.n_kv_heads, -1)).float() for x in (keys, values))
    scores = torch.einsum("tkgd,tckd->tkgc", q.float().unflatten(1, (heads.n_kv_heads, heads.group, -1)), k)
    scores = scores.flatten(1, 2) * heads.scale
    hidden = place[None] >= where.length[:, None]
    if heads.window:
        hidden |= place[None] < where.length[:, None] - heads.window
    scores.masked_fill_(hidden[:, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None].expand(len(scores), -1, 1)], 2)
    p = scores.softmax(2)[:, :, : keys.shape[1]]
    made = torch.einsum("tkgc,tckd->tkgd", p.unflatten(1, (heads.n_kv_heads, heads.group)), v)
    out.copy_(made.flatten(1))


def linear_decode(e, x: Tensor, group: Group) -> tuple[Tensor, ...]:
    """As linear(), for few rows and no backward."""
    if x.shape[0] > e.decode_rows or group.dense is not None or not _fused(e, group):
        return linear(e, x, group)
    y = e.array(x.shape[0], group.width)
    y.ends = True
    _gemv(e, real(x), group, y)
    parts = group.split(y)
    parts[-1].ends = True
    return parts


def qk_norm_rope_store(
    e, qkv: tuple[Tensor, ...], gains, eps: float, table, positions: Tensor, heads: Heads, neox: bool, caches, where
) -> Tensor:
    if not hasattr(e.f, "qk_norm_rope_store"):
        return Composed.qk_norm_rope_store(e, qkv, gains, eps, table, positions, heads, neox, caches, where)
    q = e.array(*qkv[0].shape)
    e.f.qk_norm_rope_store(
        *qkv,
        *(gains or (None, None)),
        eps,
        *table,
        positions,
        heads.n_heads,
        heads.n_kv_heads,
        neox,
        q,
        *caches,
        where.slot,
    )
    return q


def logits(e, h: Tensor, head: Group) -> Tensor:
    """h: [n, d] -> float32 [n, vocab]."""
    out = _logits(e, h, head)
    return out.div_(head.cap).tanh_().mul_(head.cap) if head.cap else out


def _logits(e, h: Tensor, head: Group) -> Tensor:
    out = torch.empty((h.shape[0], head.width), dtype=torch.float32, device=e.device)
    if h.shape[0] <= e.decode_rows and head.dense is None and _fused(e, head):
        _gemv(e, h, head, out)
        return out
    weight, step = head.weights[0], e.sizes.head
    tile = torch.empty((min(step, head.width), head.in_features), dtype=e.dtype, device=e.device)
    for low in range(0, head.width, step):
        high = min(low + step, head.width)
        product(e, h, weight.piece(low, high, tile).t(), out[:, low:high])
    slot = head.pairs[0]
    if slot is not None:
        out += (h.float() @ slot.a.t() * slot.scale) @ slot.b.t()
    if head.bias is not None:
        out += head.bias
    return out


def _fused(e, group: Group) -> bool:
    return hasattr(e.f, "gemv") and all(w.type is not None and w.type.name in e.f.gemv_types for w in group.weights)


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
        for slot, low, high, (first, last) in zip(group.pairs, group.bounds, group.bounds[1:], group.spans):
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
            for weight in group.weights:  # the weights' own bytes now lie in the joined matrix
                weight.adopt(joined[at : at + weight.out_features])
                at += weight.out_features
            group.raw.append((joined, names.pop(), 0, group.width, pair))
        else:
            for weight, low, high in zip(group.weights, group.bounds, group.bounds[1:]):
                group.raw.append((weight.blocks(), weight.type.name, low, high, pair))
    return group.raw


class TokenGraphs:
    """One recorded graph for each number of sequences that take one token each, and each number of best tokens wanted;
    those of the last few decoders are kept."""

    MOST = 4

    def __init__(self, engine):
        self.engine, self.known, self.pinned, self.own = engine, {}, None, None
        self.lanes, self.letters = Owned(), Owned()

    def clear(self) -> None:
        self.known, self.pinned, self.own = {}, None, None
        for owned in (self.letters, self.lanes):
            owned.free()

    def fetch(self, made: Tensor) -> np.ndarray:
        """float32 on the host, good until the next call: through pinned memory, which is several times faster."""
        if self.engine.device.type != "cuda":
            return self.engine.view(made)
        if self.pinned is None or self.pinned.numel() < made.numel():
            self.letters.free()
            self.pinned = self.letters.keep(page_locked(made.numel(), torch.float32))
        out = self.pinned[: made.numel()].view(made.shape)
        out.copy_(made, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return out.numpy()

    def run(self, body, ids, spans, rows, most: int) -> Tensor | None:
        """body(ids, positions, places, rows) -> logits, on the device; see base.py's decode(). With `most`: packed.

        The same bodies run on one stream, eager and recorded."""
        e = self.engine
        sweep()
        single = all(high - low == 1 for _, low, high, _ in spans) and len(rows) == len(spans)
        if not (e.graphs and single):
            where = e.places(spans)
            made = body(e.integers(ids), where.position, where, e.integers(rows) if len(rows) else None)
            return packed(made, most) if most and made is not None else made
        if self.own is None:
            self.own = self.lanes.keep(Lane(e.device)).stream
        values = np.array([ids, [s for s, _, _, _ in spans], [p for _, _, _, p in spans], rows], np.int32)
        key = (body, len(spans), most)
        token = self.known.pop(key, None) or Token(e, body, len(spans), most, self.own)
        self.known[key] = token
        while len(self.known) > self.MOST:
            self.known.pop(next(iter(self.known)))
        return token.run(values)


class Token:
    """One new token for each of n sequences: eager the first time, recorded the second, replayed from then on."""

    def __init__(self, engine, body, n: int, most: int, own):
        self.engine, self.body, self.most, self.own = engine, body, most, own
        self.runs, self.graph, self.made, self.graphs = 0, None, None, Owned()
        self.numbers = torch.zeros((4, n), dtype=torch.int32, device=engine.device)

    def run(self, values: np.ndarray) -> Tensor:
        """values int32 [4, n]: token, slot, position, row of the logits."""
        self.numbers.copy_(torch.from_numpy(values))
        self.runs += 1
        if self.runs == 1:
            with beside(self.own):
                return self._forward()
        if self.graph is None:
            with capture(stream=self.own) as graph:
                self.made = self._forward()
            self.graph = self.graphs.keep(graph)
        self.graph.replay()
        return self.made

    def _forward(self) -> Tensor:
        token, slot, position, row = self.numbers
        logits = self.body(token, position, Places(None, slot, position), row)
        return packed(logits, self.most) if self.most else logits


def packed(logits: Tensor, most: int) -> Tensor:
    """float32 [n, 2 most]: the largest logits of each row, largest first, and behind them their tokens' ids (as
    numbers: below 2**24 they are exact)."""
    values, ids = (
        logits.max(1, keepdim=True) if most == 1 else torch.topk(logits, most, dim=1, largest=True, sorted=True)
    )
    return torch.cat([values, ids.float()], 1)


def unpacked(made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [n, most], logits float32 [n, most]) of packed()."""
    most = made.shape[1] // 2
    return made[:, most:].astype(np.int64), made[:, :most].copy()
