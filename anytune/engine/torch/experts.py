"""Mixtures of experts on a torch device: tokens sorted by the expert that they chose, and all experts' products as one.

Where the device has grouped products (can_group()) a group of experts is one matrix [experts, width + R, in + R], laid
out as weights.py has it and dequantized for each use, and where an expert's tokens end stays on the device, so that a
step can be recorded. Elsewhere each expert with tokens is a Group of its own, one after the other. A few tokens to be
decoded take copies of their experts' matrices alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from anytune.engine.base import Router

from .arrays import own, real
from .linear import dropped, linear, linear_backward
from .weights import PAD, Group, LoraPair, Weight, align

Tensor = torch.Tensor
LEAST = 2.0**-14  # the sum that weights are normalized by is at least this, as in llama.cpp


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


class Experts:
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
    def trains_pairs(self) -> bool:
        return any(s is not None and s.grad_a is not None for s in self.pairs)

    @property
    def trains_matrix(self) -> bool:
        return any(w.gradient is not None for w in self.weights)

    @property
    def trains(self) -> bool:
        return self.trains_pairs or self.trains_matrix or any(b is not None for b in self.bias_gradients)

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


@dataclass
class Routing:
    """chosen, weights [T, used]: experts and their weights, largest first; tokens [S]: of each slot; place [T, used]:
    where a token's slots are; ends int32 [experts]: where an expert's slots end; parts [T, experts]: what the weights
    were made of. All on the device."""

    router: Router
    chosen: Tensor
    weights: Tensor
    tokens: Tensor
    place: Tensor
    ends: Tensor
    parts: Tensor

    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first slot, last slot) of those that got a token: asks the device."""
        ends = self.ends.tolist()
        return [(i, a, b) for i, (a, b) in enumerate(zip([0, *ends], ends)) if b > a]

    @property
    def slots(self) -> Tensor:
        """The expert of each slot, int64 [S]."""
        return self.chosen.reshape(-1).index_select(0, _inverse(self.place.reshape(-1)))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))


def expert_group(e, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None) -> Experts:
    if e.loads is None:
        e.loads = torch.zeros(3, dtype=torch.float64, device=e.device)
    return Experts(weights, biases, pairs, dropout, number, bias_gradients, e.grouped)


def take_loads(e) -> dict[str, float]:
    if e.loads is None:
        return {}
    count, peak, idle = e.loads.tolist()
    e.loads.zero_()
    return {"expert_peak": peak / count, "expert_idle": idle / count} if count else {}


def route(e, scores: Tensor, bias: Tensor | None, router: Router) -> Routing:
    scores = real(scores).float()
    parts = {"chosen": lambda x: x, "sigmoid": torch.sigmoid}.get(router.kind, lambda x: x.softmax(1))(scores)
    order = torch.sort(parts if bias is None else parts + bias, dim=1, descending=True, stable=True).indices
    chosen = order[:, : router.used].contiguous()
    weights = parts.gather(1, chosen)
    if router.kind == "chosen":
        weights = weights.softmax(1)
    elif router.normalized:
        weights = weights / weights.sum(1, keepdim=True).clamp(min=LEAST)
    flat = chosen.reshape(-1)
    slots = torch.sort(flat, stable=True).indices
    counts = (flat[:, None] == torch.arange(router.experts, device=flat.device)).sum(0)
    if e.training and e.loads is not None:
        even = len(flat) / router.experts
        e.loads += torch.stack(
            [torch.ones_like(counts[0]).double(), counts.max() / even, (counts == 0).double().mean()]
        )
    place = _inverse(slots).view(chosen.shape)
    ends = counts.cumsum(0).to(torch.int32)
    return Routing(router, chosen, weights * router.scale, slots // router.used, place, ends, parts)


def route_backward(e, dweights: Tensor, routing: Routing) -> Tensor:
    router, chosen = routing.router, routing.chosen
    d, weights = dweights * router.scale, routing.weights / router.scale
    parts, out = routing.parts.gather(1, chosen), torch.zeros_like(routing.parts)
    if router.kind == "chosen" or router.kind == "softmax" and router.normalized:
        d = weights * (d - (weights * d).sum(1, keepdim=True))
    else:
        if router.normalized:
            d = (d - (weights * d).sum(1, keepdim=True)) / parts.sum(1, keepdim=True).clamp(min=LEAST)
        if router.kind == "sigmoid":
            d = d * parts * (1 - parts)
        else:
            out = routing.parts * -(d * parts).sum(1, keepdim=True)
            d = d * parts
    out = out.scatter_add(1, chosen, d)
    return own(e.array(*out.shape)).copy_(out)


def dispatch(e, x, routing: Routing) -> Tensor:
    out = own(e.array(len(routing.tokens), x.shape[1]))
    out.copy_(real(x).index_select(0, routing.tokens))
    return out


def combine(e, y: Tensor, routing: Routing, beside: tuple = ()) -> Tensor:
    slots = y.index_select(0, routing.place.reshape(-1)).view(*routing.place.shape, -1)
    out = own(e.array(len(slots), y.shape[1])).copy_(slots.sum(1))
    for x in beside:
        out += x
    return out


def _slot_weights(routing: Routing) -> Tensor:
    """[S, 1]"""
    return routing.weights.reshape(-1).index_select(0, _inverse(routing.place.reshape(-1)))[:, None]


def weigh(e, x: Tensor, routing: Routing) -> Tensor:
    return torch.mul(x, _slot_weights(routing).to(x.dtype), out=own(e.array(*x.shape)))


def weigh_backward(e, dy: Tensor, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    inner = (dy.float() * x).sum(1)
    return dy.mul_(_slot_weights(routing).to(dy.dtype)), inner[routing.place]


def weigh_bias(e, y: Tensor, bias: Tensor, routing: Routing) -> Tensor:
    return y.add_((_slot_weights(routing) * bias.index_select(0, routing.slots)).to(y.dtype))


def weigh_bias_backward(e, dy: Tensor, bias: Tensor, routing: Routing, dweights: Tensor, into=None) -> Tensor:
    slots = routing.slots
    if into is not None:
        into.index_add_(0, slots, _slot_weights(routing) * dy.float())
    return dweights + (dy.float() * bias.index_select(0, slots)).sum(1)[routing.place]


def _clamped(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    g, u = gate.float().clamp(max=7), up.float().clamp(-7, 7)
    return g, u, torch.sigmoid(1.702 * g)


def clamped_glu(e, gate: Tensor, up: Tensor) -> Tensor:
    g, u, s = _clamped(gate, up)
    return own(e.array(*gate.shape)).copy_(g * s * (u + 1))


def clamped_glu_backward(e, dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    g, u, s = _clamped(gate, up)
    both, width = e.array(gate.shape[0], 2 * gate.shape[1]), gate.shape[1]
    dgate, dup = both[:, :width], own(both[:, width:])
    dgate.copy_(dy * (u + 1) * s * (1 + 1.702 * g * (1 - s)) * (gate <= 7))
    dup.copy_(dy * g * s * (up.abs() <= 7))
    return dgate, dup


def gate_rows(e, x: Tensor, gate: Tensor) -> Tensor:
    return torch.mul(x, gate.sigmoid(), out=own(e.array(*x.shape)))


def gate_rows_backward(e, dy: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    by = gate.float().sigmoid()
    dgate = (dy.float() * x).sum(1, keepdim=True) * by * (1 - by)
    return torch.mul(dy, by.to(dy.dtype), out=own(e.array(*x.shape))), own(e.array(*gate.shape)).copy_(dgate)


# ---- products ------------------------------------------------------------------------------------------------


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
    dx = e.array(len(x), group.in_features) if need_dx else None
    for expert, low, high in routing.spans():
        made = linear_backward(e, (dy[low:high],), x[low:high], group.of(expert), need_dx)
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
    if group.trains_matrix or any(b is not None for b in group.bias_gradients):
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
            group.bias_gradients[at].index_add_(0, routing.slots, part.float())
