"""The gated delta net over packed examples in plain torch, on any device; chunks.py has the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from anytune.engine.base import DeltaHeads

from .chunks import CHUNK, Chunks

Tensor = torch.Tensor


@dataclass
class _Inputs:
    """A stream's x, beta and alpha as Chunks, and what leads back from there."""

    heads: DeltaHeads
    q: Tensor  # [T, keys, key_size], of length 1
    k: Tensor
    lengths: tuple[Tensor, Tensor]  # 1 / the lengths before
    shifted: Tensor  # alpha + bias [T, values]
    strength: Tensor  # [T, values]
    chunks: Chunks

    @classmethod
    def of(cls, x: Tensor, beta: Tensor, alpha: Tensor, weights, heads: DeltaHeads, first: Tensor) -> _Inputs:
        h, (a, bias, _) = heads, weights
        width = h.keys * h.key_size
        q, k, v = x.float().split([width, width, h.inner], 1)
        (q, one), (k, two) = (unit(z.unflatten(1, (h.keys, h.key_size)), h.eps) for z in (q, k))
        shifted, strength = alpha.float() + bias, torch.sigmoid(beta.float())
        made = Chunks(
            _keyed(q) * h.key_size**-0.5,
            _keyed(k),
            _valued(v.unflatten(1, (h.values, -1)), h),
            _valued((a * F.softplus(shifted))[..., None], h)[..., 0],
            _valued(strength[..., None], h)[..., 0],
            _padded_first(first),
        )
        return cls(heads, q, k, (one, two), shifted, strength, made)

    def backward(self, grads: tuple, weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float32 (dx, dbeta, dalpha, dg) of Chunks.backward()'s."""
        h, tokens = self.heads, len(self.q)
        dq, dk, dv, dg, dstrength = grads
        dq = unit_backward(_tokens(dq, tokens) * h.key_size**-0.5, self.q, self.lengths[0], h.eps)
        dk = unit_backward(_tokens(dk, tokens), self.k, self.lengths[1], h.eps)
        dg, dstrength = (_tokens(z[..., None].flatten(1, 2), tokens)[..., 0] for z in (dg, dstrength))
        dx = torch.cat([z.flatten(1) for z in (dq, dk, _tokens(dv.flatten(1, 2), tokens))], 1)
        dshifted = dg * weights[0] * torch.sigmoid(self.shifted)
        return dx, dstrength * self.strength * (1 - self.strength), dshifted, dg


def unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x over its length along the last axis, which is taken as eps at least, 1 / that)."""
    inverse = 1 / x.square().sum(-1, keepdim=True).sqrt().clamp(min=eps)
    return x * inverse, inverse


def unit_backward(dy: Tensor, y: Tensor, inverse: Tensor, eps: float) -> Tensor:
    inner = (dy * y).sum(-1, keepdim=True) * (inverse < 1 / eps)
    return inverse * (dy - y * inner)


def _pad(x: Tensor) -> Tensor:
    """Zero rows up to whole chunks, and the chunks: [T, heads, n] -> [N, heads, C, n]."""
    x = F.pad(x, (0, 0, 0, 0, 0, -len(x) % CHUNK))
    return x.unflatten(0, (-1, CHUNK)).transpose(1, 2)


def _keyed(x: Tensor) -> Tensor:
    """[T, keys, n] -> [N, 1, keys, C, n]."""
    return _pad(x)[:, None]


def _valued(x: Tensor, heads: DeltaHeads) -> Tensor:
    """[T, values, n] -> [N, repeats, keys, C, n]."""
    return _pad(x).unflatten(1, (heads.repeats, heads.keys))


def _tokens(x: Tensor, tokens: int) -> Tensor:
    """[N, heads, C, n] -> [T, heads, n]."""
    return x.transpose(1, 2).flatten(0, 1)[:tokens]


def _padded_first(first: Tensor) -> Tensor:
    """[N, C]: padding tokens, which write nothing and decay nothing, belong to the last example."""
    return torch.cat([first, first[-1:].expand(-len(first) % CHUNK)]).view(-1, CHUNK)


def normed(o: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = torch.rsqrt(o.square().mean(-1, keepdim=True) + eps)
    return o * inverse, inverse


def delta(x, beta, alpha, weights, heads: DeltaHeads, first: Tensor, out: Tensor, state: Tensor | None = None):
    """x, beta, alpha, weights: as base.py has them; first: int [T], where each token's example begins. Writes out
    [T, inner]; returns the state behind all [values, key_size, value_size] if one is before."""
    h = heads
    before = None if state is None else state.view(h.repeats, h.keys, h.key_size, h.value_size)
    o, _, behind = _Inputs.of(x, beta, alpha, weights, h, first).chunks.forward(before)
    y = normed(o, h.eps)[0] * weights[2]
    out.copy_(_tokens(y.flatten(1, 2), len(x)).flatten(1))
    return None if state is None else behind.view_as(state)


def delta_backward(
    dy, x, beta, alpha, weights, heads: DeltaHeads, first, out: tuple[Tensor, Tensor, Tensor], into=(None, None, None)
):
    """Writes out: dx, dbeta and dalpha. into: what gradients of the weights are added to, where they are trained."""
    inputs = _Inputs.of(x, beta, alpha, weights, heads, first)
    o, states, _ = inputs.chunks.forward()
    units, inverse = normed(o, heads.eps)
    du = _valued(dy.float().unflatten(1, (heads.values, -1)), heads)
    gains = (du * units).sum(-2) if into[2] is not None else None
    du = du * weights[2]
    do = inverse * (du - units * (du * units).mean(-1, keepdim=True))
    *grads, dg = inputs.backward(inputs.chunks.backward(do, states), weights)
    for place, grad in zip(out, grads):
        place.copy_(grad)
    weight_gradients(into, weights, alpha, dg, gains)


def weight_gradients(into, weights, alpha: Tensor, dg: Tensor, gains: Tensor | None) -> None:
    """Adds those of a, its bias and the gain, where they are trained. dg [T, values]: of the decays' logarithms; gains
    [..., value_size]: what is to be added up."""
    shifted = alpha.float() + weights[1] if into[0] is not None or into[1] is not None else None
    if into[0] is not None:
        into[0].add_((dg * F.softplus(shifted)).sum(0))
    if into[1] is not None:
        into[1].add_((dg * weights[0] * torch.sigmoid(shifted)).sum(0))
    if into[2] is not None:
        into[2].add_(gains.flatten(0, -2).sum(0))
