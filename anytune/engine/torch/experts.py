"""Mixtures of experts on a torch device: tokens sorted by the expert that they chose, and all experts' products as one
(routing.py sorts them).

Where the device has grouped products (can_group()) a group of experts is one matrix [experts, width + R, in + R], laid
out as weights.py has it and dequantized for each use, and where an expert's tokens end stays on the device, so that a
step can be recorded. Elsewhere each expert with tokens is a Group of its own, one after the other. A few tokens to be
decoded take copies of their experts' matrices alone.
"""

from __future__ import annotations

import numpy as np
import torch

from anytune.engine.trains import Trains

from .gradients import add_rows
from .linear import dropped, linear, linear_backward
from .routing import Routing
from .weights import PAD, Group, LoraPair, Weight, align

Tensor = torch.Tensor


def can_group(e) -> bool:
    """Whether grouped products run on the device without asking the host."""
    if e.device.type != "cuda" or torch.version.hip is not None or e.dtype != torch.bfloat16 or not e.compiled:
        return False
    return hasattr(torch, "_grouped_mm") and torch.cuda.get_device_capability(e.device) >= (9, 0)


class ExpertWeights(Weight):
    """A tensor [experts, out, in], as one matrix [experts * out, in]. It stays in its blocks."""

    def __init__(self, engine, gguf, name: str, hold: str):
        super().__init__(engine, gguf, name, "blocks")
        self.expert_features = gguf.tensors[name].shape[-2]
        self.change_hold(hold)

    def change_hold(self, how: str) -> None:
        super().change_hold("blocks" if how in ("dense", "shard", "float32") else how)

    def expert(self, number: int) -> Expert:
        return Expert(self, number)

    def matrices(self, out: Tensor) -> None:
        """Dequantize all into out [experts, out, in]."""
        self.engine.dequantize(self.blocks(), self.type.name, out)


class Expert:
    """One expert's matrix [out, in]."""

    gradient = None

    def __init__(self, whole: ExpertWeights, number: int):
        self.whole, self.hold, self.type = whole, whole.hold, whole.type
        self.out_features, self.in_features = whole.expert_features, whole.in_features
        self.first = number * self.out_features

    def rows(self, low: int, high: int, out: Tensor) -> None:
        self.whole.rows(self.first + low, self.first + high, out)


class Experts(Trains):
    """The linears of all experts that share an input. See weights.Group; there is one dimension more. whole: whether
    they are one matrix."""

    dense = None

    def __init__(self, weights, biases, pairs, dropout: float, number: int, bias_gradients, whole: bool):
        none = (None,) * len(weights)
        self.weights, self.biases = tuple(weights), tuple(biases or none)
        self.pairs: tuple[LoraPair | None, ...] = tuple(pairs or none)
        self.dropout, self.number, self.bias_gradients = dropout, number, tuple(bias_gradients or none)
        self.in_features = self.weights[0].in_features
        self.bounds = np.cumsum([0] + [w.expert_features for w in self.weights]).tolist()
        self.width, self.experts = self.bounds[-1], self.weights[0].out_features // self.weights[0].expert_features
        self.spans, at = [], 0
        for pair in self.pairs:
            size = 0 if pair is None else pair.a.shape[1]
            self.spans.append((at, at + size))
            at += size
        self.rank = -(-at // PAD) * PAD
        self.columns = self.in_features + self.rank
        self.stride = align(self.columns)
        self.whole, self._made = whole, {}

    @property
    def hold(self) -> str:
        return "trained" if self.trains_matrix else self.weights[0].hold

    @property
    def size(self) -> int:
        """Elements of its matrix."""
        return (self.experts if self.whole else 1) * (self.width + self.rank) * self.stride

    def of(self, expert: int) -> Group:
        """One expert's linears."""
        if expert not in self._made:

            def part(x):
                return None if x is None else x[expert]

            pairs = [
                s and LoraPair(s.a[expert], s.b[expert], s.scale, part(s.grad_a), part(s.grad_b)) for s in self.pairs
            ]
            self._made[expert] = Group(
                [w.expert(expert) for w in self.weights],
                [part(b) for b in self.biases],
                pairs,
                self.dropout,
                self.number,
                [part(b) for b in self.bias_gradients],
            )
        return self._made[expert]

    def parts(self):
        """(weight, bias, pair, first column, last, first rank, last) of each linear."""
        return zip(self.weights, self.biases, self.pairs, self.bounds, self.bounds[1:], *zip(*self.spans), strict=False)


def expert_group(e, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None) -> Experts:
    if e.loads is None:
        e.loads = torch.zeros(3, dtype=torch.float64, device=e.device)
    return Experts(weights, biases, pairs, dropout, number, bias_gradients, e.grouped)


def expert_linear(e, x: Tensor, group: Experts, routing: Routing) -> tuple[Tensor, ...]:
    if group.whole and not e.training and len(x) <= group.experts // 2 and not group.trains_matrix:
        y = _copies(e, x, group, routing)
    elif group.whole:
        m = _matrix(e, group)
        inputs = _with_low(e, x, group, m, routing, dropped(e, x, group)) if group.rank else x
        y = _grouped(inputs, m[:, : group.width, : group.columns].transpose(1, 2), routing)
    else:
        y = e.array(len(x), group.width)
        for expert, low, high in routing.spans():
            for out, part in zip(_split(y[low:high], group), linear(e, x[low:high], group.of(expert))):
                out.copy_(part)
    if group.whole:
        for _, bias, _, low, high, _, _ in group.parts():
            if bias is not None:
                y[:, low:high] += bias.index_select(0, routing.slots)
    return tuple(_split(y, group))


def expert_linear_backward(e, dys: tuple, x: Tensor, group: Experts, routing: Routing, need_dx: bool = True):
    dy = e.joined(dys)
    if group.whole:
        return _whole_backward(e, dy, x, group, routing, need_dx)
    dx = e.array(len(dy), group.in_features) if need_dx else None
    for expert, low, high in routing.spans():
        made = linear_backward(e, (dy[low:high],), None if x is None else x[low:high], group.of(expert), need_dx)
        if need_dx:
            dx[low:high] = made
    return dx


def _split(y: Tensor, group: Experts) -> list[Tensor]:
    return [y[:, low:high] for low, high in zip(group.bounds, group.bounds[1:])]


def _matrix(e, group: Experts) -> Tensor:
    """[experts, width + R, stride] with weights and pairs in place, until the next group takes the scratch."""
    if e.scratch is None or e.scratch.numel() < group.size:
        e.scratch = torch.zeros(group.size, dtype=e.dtype, device=e.device)
    m = e.scratch[: group.size].view(group.experts, -1, group.stride)
    for weight, low, high in zip(group.weights, group.bounds, group.bounds[1:]):
        weight.matrices(m[:, low:high, : group.in_features])
    if group.rank:
        _put_pairs(m, group, lambda factor: factor)
    return m


def _put_pairs(m: Tensor, group: Experts, take) -> None:
    """Every B beside and every s·A below the weights, of the experts that take() takes."""
    m[:, :, group.in_features : group.columns].zero_()
    m[:, group.width :].zero_()
    for _, _, pair, low, high, first, last in group.parts():
        if pair is not None:
            m[:, low:high, group.in_features + first : group.in_features + last] = take(pair.b)
            m[:, group.width + first : group.width + last, : group.in_features] = take(pair.a) * pair.scale


def _copies(e, x: Tensor, group: Experts, routing: Routing) -> Tensor:
    """Products of a few slots, each with a copy of its expert's matrix: no other expert is read."""
    experts, features = routing.slots, group.in_features
    m = torch.empty((len(x), group.width + group.rank, group.stride), dtype=e.dtype, device=e.device)
    for weight, low, high in zip(group.weights, group.bounds, group.bounds[1:]):
        rows = experts[:, None] * weight.expert_features + torch.arange(weight.expert_features, device=e.device)
        e.lookup(weight.blocks(), rows.reshape(-1), weight.type.name, m[:, low:high, :features], 1.0)
    y = torch.bmm(m[:, : group.width, :features], x.unsqueeze(2)).squeeze(2)
    if group.rank:
        _put_pairs(m, group, lambda factor: factor.index_select(0, experts))
        low = torch.bmm(m[:, group.width :, :features], x.unsqueeze(2))
        y += torch.bmm(m[:, : group.width, features : group.columns], low).squeeze(2)
    return y


def _grouped(a: Tensor, b: Tensor, routing: Routing) -> Tensor:
    """a [S, k], b [experts, k, n] -> each slot's row times its expert's matrix, [S, n]."""
    return torch._grouped_mm(a, b, offs=routing.ends)


def _with_low(e, x: Tensor, group: Experts, m: Tensor, routing: Routing, source: Tensor) -> Tensor:
    """[x | s source Aᵀ]."""
    inputs = e.extend(x, group.rank)
    inputs[:, group.in_features :] = _grouped(source, m[:, group.width :, : group.in_features].transpose(1, 2), routing)
    return inputs


def _whole_backward(e, dy: Tensor, x: Tensor, group: Experts, routing: Routing, need_dx: bool) -> Tensor | None:
    features, width, wide, dx = group.in_features, group.width, dy, None
    m = _matrix(e, group) if need_dx or group.rank else None
    masked = bool(group.rank and group.dropout and e.training)
    if group.rank:
        wide = e.extend(dy, group.rank)
        wide[:, width:] = _grouped(dy, m[:, :width, features : group.columns], routing)
    if need_dx and masked:
        dx = _grouped(dy, m[:, :width, :features], routing)
        through = _grouped(wide[:, width:], m[:, width:, :features], routing)
        dx += dropped(e, through, group)
    elif need_dx:
        dx = _grouped(wide, m[:, : width + group.rank, :features], routing)
    if group.trains_pairs:
        source = dropped(e, x, group)
        _pair_gradients(e, dy, wide[:, width:], source, _with_low(e, x, group, m, routing, source), group, routing)
    if group.trains_matrix or group.trains_bias:
        _own_gradients(dy, x, group, routing)
    return dx


def _pair_gradients(e, dy, dy_low, source, inputs, group: Experts, routing: Routing) -> None:
    down = torch._grouped_mm(dy_low.t(), source, offs=routing.ends)  # [experts, R, in]
    up = torch._grouped_mm(dy.t(), inputs[:, group.in_features :], offs=routing.ends)  # [experts, width, R]
    for _, _, pair, low, high, first, last in group.parts():
        if pair is not None and pair.grad_a is not None:
            pair.grad_a.add_(down[:, first:last], alpha=pair.scale)
            pair.grad_b.add_(up[:, low:high, first:last])


def _own_gradients(dy: Tensor, x: Tensor, group: Experts, routing: Routing) -> None:
    """Of matrices and biases that are trained."""
    for at, (weight, _, _, low, high, _, _) in enumerate(group.parts()):
        part = dy[:, low:high]
        if weight.gradient is not None:
            weight.gradient.add_(torch._grouped_mm(part.t(), x, offs=routing.ends))
        if group.bias_gradients[at] is not None:
            add_rows(group.bias_gradients[at], routing.slots, part.float())
