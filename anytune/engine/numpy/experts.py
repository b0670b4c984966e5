"""Mixtures of experts: each expert's products over the tokens that chose it (routing.py sorts them).

Each expert's matrices are weights of their own (weights.py), so that what is read, and dequantized once for each use,
is that of experts that got a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from anytune.engine.trains import Trains

from .gradients import gradient_jobs
from .linear import (
    Group,
    LoraPair,
    backward_pieces,
    backward_tile,
    dropped,
    forward_pieces,
    forward_tile,
    into_rank,
    pair_jobs,
    raw_buffers,
    scaled_down,
)
from .routing import Routing, slot_rows
from .workers import Job


@dataclass
class Experts(Trains):
    """The linears of all experts that share an input. See Group; weights, biases and pairs have one dimension more."""

    weights: tuple
    biases: tuple
    pairs: tuple[LoraPair | None, ...]
    dropout: float
    number: int
    bias_gradients: tuple
    _made: dict[int, Group] = field(default_factory=dict, repr=False)

    @property
    def in_features(self) -> int:
        return self.weights[0].in_features

    @property
    def width(self) -> int:
        return sum(w.expert_features for w in self.weights)

    @property
    def rank(self) -> int:
        return sum(s.a.shape[1] for s in self.pairs if s is not None)

    def of(self, expert: int) -> Group:
        """One expert's linears."""
        if expert not in self._made:
            self._made[expert] = Group(
                tuple(w.expert(expert) for w in self.weights),
                tuple(b if b is None else b[expert] for b in self.biases),
                tuple(s and _pair(s, expert) for s in self.pairs),
                self.dropout,
                self.number,
                tuple(b if b is None else b[expert] for b in self.bias_gradients),
            )
        return self._made[expert]


def _pair(s: LoraPair, expert: int) -> LoraPair:
    grads = (g if g is None else g[expert] for g in (s.grad_a, s.grad_b))
    return LoraPair(s.a[expert], s.b[expert], s.scale, *grads)


def expert_group(e, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None) -> Experts:
    none = (None,) * len(weights)
    return Experts(
        tuple(weights), tuple(biases or none), tuple(pairs or none), dropout, number, tuple(bias_gradients or none)
    )


def _low_ranks(e, x: np.ndarray, group: Experts, routing: Routing, mask) -> np.ndarray:
    """[x | s x Aᵀ], by each slot's expert."""
    if not group.rank:
        return x
    extended, features = e.extend(x, group.rank, routing.router.used), group.in_features

    def work(expert: int, low: int, high: int, number: int) -> None:
        one = group.of(expert)
        source = x[low:high] if mask is None else dropped(e, x, one, mask, low, high)
        np.matmul(source, scaled_down(one).T, out=extended[low:high, features:])

    e.workers.run([partial(work, *span) for span in routing.spans])
    return extended


def expert_linear(e, x: np.ndarray, group: Experts, routing: Routing) -> tuple[np.ndarray, ...]:
    y = slot_rows(e, routing, group.width, 0)
    mask = e.dropout_mask(group, len(x)) if group.dropout and e.training and group.rank else None
    inputs, jobs = _low_ranks(e, x, group, routing, mask), []
    for expert, low, high in routing.spans:
        one = group.of(expert)
        jobs += [
            partial(forward_tile, e, inputs[low:high], one, index, a, b, y[low:high])
            for index, a, b in forward_pieces(one, e.sizes)
        ]
    e.workers.run(jobs)
    bounds = np.cumsum([0, *(w.expert_features for w in group.weights)]).tolist()
    return tuple(y[:, a:b] for a, b in zip(bounds, bounds[1:]))


def expert_linear_backward(e, dys, x: np.ndarray | None, group: Experts, routing: Routing, need_dx: bool = True):
    dy, rank = e.joined(tuple(e.view(d) for d in dys), routing.router.used), group.rank
    mask = e.dropout_mask(group, len(dy)) if group.dropout and e.training and rank else None
    inputs = _low_ranks(e, x, group, routing, mask) if group.trains_pairs else None
    if rank:
        dy = e.extend(dy, rank, routing.router.used)
        e.workers.run([partial(_into_rank, dy, group.of(i), a, b) for i, a, b in routing.spans])
    dx = slot_rows(e, routing, group.in_features, 0) if need_dx else None
    jobs: list[Job] = []
    for expert, low, high in routing.spans:
        one, rows = group.of(expert), slice(low, high)
        if group.trains:
            jobs += gradient_jobs(e, dy[rows], x[rows], one)
        if need_dx:
            jobs += _input_jobs(e, dy[rows], one, dx[rows], None if mask is None else mask[rows])
        if group.trains_pairs:
            jobs += pair_jobs(e, dy[rows], x[rows], inputs[rows], one, None if mask is None else mask[rows])
    e.workers.run(jobs)
    return dx


def _into_rank(dy, one: Group, low: int, high: int, number: int) -> None:
    into_rank(dy, one, low, high)


def _input_jobs(e, dy, one: Group, dx, mask) -> list[Job]:
    """What makes dx of one expert's slots; a streamed expert is read once, by the one who uses it."""
    downs = scaled_down(one) if one.rank else np.empty((0, one.in_features), np.float32)
    cuts = list(backward_pieces(one, e.sizes))

    def work(some: list, number: int) -> None:
        raw = _read(e, one, number)
        for low, high in some:
            backward_tile(e, dy, one, downs, low, high, raw, dx, mask is None, number)
            if mask is not None:
                through = dy[:, one.width : one.width + one.rank] @ downs[:, low:high]
                dx[:, low:high] += through * (mask[:, low:high] * np.float32(1.0 / (1.0 - one.dropout)))

    if any(w.needs_raw() for w in one.weights):
        return [partial(work, cuts)]
    return [partial(work, [cut]) for cut in cuts]


def _read(e, one: Group, number: int) -> tuple:
    """The bytes of one expert's streamed matrices, in the worker's own buffer."""
    raw = raw_buffers(e, one, number)
    for weight, buffer in zip(one.weights, raw):
        if buffer is not None:
            weight.read_rows(0, weight.out_features, buffer)
    return raw
