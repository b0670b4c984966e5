"""Which experts a token goes to, on a torch device: tokens sorted by expert, weights, sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anytune.engine.base import Router
from anytune.engine.shapes import LEAST_SUM

from .arrays import own, real
from .gradients import add_rows

Tensor = torch.Tensor


@dataclass
class Routing:
    """chosen, shares [T, used]: experts and their weights before all factors, largest first; factor: these; order [S]:
    which of these a slot is; by_slot [S]: its weight; place [T, used]: where a token's slots are; ends int32 [experts]:
    where an expert's slots end; parts [T, experts]: what the weights were made of. All on the device."""

    router: Router
    chosen: Tensor
    shares: Tensor
    factor: Tensor | float
    order: Tensor
    by_slot: Tensor
    place: Tensor
    ends: Tensor
    parts: Tensor

    @property
    def weights(self) -> Tensor:
        return self.shares * self.factor

    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first slot, last slot) of those that got a token: asks the device."""
        ends = self.ends.tolist()
        return [(i, a, b) for i, (a, b) in enumerate(zip([0, *ends], ends)) if b > a]

    @property
    def slots(self) -> Tensor:
        """The expert of each slot, int64 [S]."""
        return self.chosen.reshape(-1).index_select(0, self.order)


def take_loads(e) -> dict[str, float]:
    if e.loads is None:
        return {}
    count, peak, idle = e.loads.tolist()
    e.loads.zero_()
    return {"expert_peak": peak / count, "expert_idle": idle / count} if count else {}


def _near(choice: Tensor, router: Router) -> Tensor:
    """choice [T, experts], -inf but in the groups that a token may choose from."""
    groups = choice.unflatten(1, (router.groups, -1))
    best = torch.sort(groups, dim=2, descending=True).values[:, :, :2].sum(2)
    far = torch.sort(best, dim=1, descending=True, stable=True).indices[:, router.near :]
    hidden = torch.zeros_like(best).scatter(1, far, -torch.inf)
    return (groups + hidden[:, :, None]).flatten(1)


def route(e, scores: Tensor, bias: Tensor | None, router: Router, scales: Tensor | None = None) -> Routing:
    scores = real(scores).float()
    parts = {"chosen": lambda x: x, "sigmoid": torch.sigmoid}.get(router.kind, lambda x: x.softmax(1))(scores)
    choice = parts if bias is None else parts + bias
    if router.groups > 1:
        choice = _near(choice, router)
    order = torch.sort(choice, dim=1, descending=True, stable=True).indices
    chosen = order[:, : router.used].contiguous()
    shares = parts.gather(1, chosen)
    if router.kind == "chosen":
        shares = shares.softmax(1)
    elif router.normalized:
        shares = shares / shares.sum(1, keepdim=True).clamp(min=LEAST_SUM)
    factor = router.scale if scales is None else router.scale * scales[chosen]
    small = torch.uint8 if router.experts <= 256 else torch.int16  # a quarter of int64's passes
    sorted_, order = torch.sort(chosen.reshape(-1).to(small), stable=True)
    numbers = torch.arange(router.experts, dtype=small, device=order.device)
    ends = torch.searchsorted(sorted_, numbers, right=True, out_int32=True)
    if e.training and e.loads is not None:
        counts, even = torch.diff(ends, prepend=ends.new_zeros(1)), len(order) / router.experts
        e.loads += torch.stack(
            [torch.ones_like(counts[0]).double(), counts.max() / even, (counts == 0).double().mean()]
        )
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    by_slot = (shares * factor).reshape(-1).index_select(0, order)
    return Routing(router, chosen, shares, factor, order, by_slot, place.view(chosen.shape), ends, parts)


def route_backward(e, dweights: Tensor, routing: Routing, into: Tensor | None = None) -> Tensor:
    router, chosen = routing.router, routing.chosen
    d, weights = dweights * routing.factor, routing.shares
    if into is not None:
        add_rows(into, chosen.reshape(-1), (dweights * weights).reshape(-1) * router.scale)
    parts, out = routing.parts.gather(1, chosen), torch.zeros_like(routing.parts)
    if router.kind == "chosen" or router.kind == "softmax" and router.normalized:
        d = weights * (d - (weights * d).sum(1, keepdim=True))
    else:
        if router.normalized:
            d = (d - (weights * d).sum(1, keepdim=True)) / parts.sum(1, keepdim=True).clamp(min=LEAST_SUM)
        if router.kind == "sigmoid":
            d = d * parts * (1 - parts)
        else:
            out = routing.parts * -(d * parts).sum(1, keepdim=True)
            d = d * parts
    out = out.scatter_add(1, chosen, d)
    return own(e.array(*out.shape)).copy_(out)


def dispatch(e, x, routing: Routing) -> Tensor:
    out = own(e.array(routing.place.numel(), x.shape[1]))
    e.f.spread(real(x), routing.place, out)
    return out


def combine(e, y: Tensor, routing: Routing, beside: tuple = ()) -> Tensor:
    out = own(e.array(len(routing.place), y.shape[1]))
    e.f.collect(y, routing.place, out)
    for x in beside:
        out += x
    return out


def weigh(e, x: Tensor, routing: Routing) -> Tensor:
    return torch.mul(x, routing.by_slot[:, None].to(x.dtype), out=own(e.array(*x.shape)))


def weigh_backward(e, dy: Tensor, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    inner = torch.empty_like(routing.by_slot)
    e.f.weigh_backward(dy, x, routing.by_slot, inner)
    return dy, inner[routing.place]


def weighed_glu(e, gate: Tensor, up: Tensor, activation: str, routing: Routing) -> Tensor:
    out = own(e.array(*gate.shape))
    e.f.weighed(gate, up, activation, routing.by_slot, out)
    return out


def weighed_glu_backward(e, dy: Tensor, gate: Tensor, up: Tensor, activation: str, routing: Routing):
    both, inner = e.array(gate.shape[0], 2 * gate.shape[1]), torch.empty_like(routing.by_slot)
    dgate, dup = both[:, : gate.shape[1]], own(both[:, gate.shape[1] :])
    e.f.weighed_backward(dy, gate, up, activation, routing.by_slot, dgate, dup, inner)
    return (dgate, dup), inner[routing.place]


def weigh_bias(e, y: Tensor, bias: Tensor, routing: Routing) -> Tensor:
    return y.add_((routing.by_slot[:, None] * bias.index_select(0, routing.slots)).to(y.dtype))


def weigh_bias_backward(e, dy: Tensor, bias: Tensor, routing: Routing, dweights: Tensor, into=None) -> Tensor:
    slots = routing.slots
    if into is not None:
        add_rows(into, slots, routing.by_slot[:, None] * dy.float())
    return dweights + (dy.float() * bias.index_select(0, slots)).sum(1)[routing.place]
