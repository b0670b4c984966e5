"""The gated delta net's operations in torch; base.py says what they mean, chunks.py has the recurrence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from anytune.engine.base import DeltaHeads

from .arrays import own
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
        (q, one), (k, two) = (_unit(z.unflatten(1, (h.keys, h.key_size)), h.eps) for z in (q, k))
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

    def backward(self, grads: tuple, weights, into) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (dx, dbeta, dalpha) of Chunks.backward()'s; adds the gradients of a and its bias."""
        h, tokens = self.heads, len(self.q)
        dq, dk, dv, dg, dstrength = grads
        dq = _unit_backward(_tokens(dq, tokens) * h.key_size**-0.5, self.q, self.lengths[0], h.eps)
        dk = _unit_backward(_tokens(dk, tokens), self.k, self.lengths[1], h.eps)
        dg, dstrength = (_tokens(z[..., None].flatten(1, 2), tokens)[..., 0] for z in (dg, dstrength))
        dshifted = dg * weights[0] * torch.sigmoid(self.shifted)
        for target, gradient in zip(into, (dg * F.softplus(self.shifted), dshifted)):
            if target is not None:
                target += gradient.sum(0)
        dx = torch.cat([z.flatten(1) for z in (dq, dk, _tokens(dv.flatten(1, 2), tokens))], 1)
        return dx, dstrength * self.strength * (1 - self.strength), dshifted


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x over its length along the last axis, which is taken as eps at least, 1 / that)."""
    inverse = 1 / x.square().sum(-1, keepdim=True).sqrt().clamp(min=eps)
    return x * inverse, inverse


def _unit_backward(dy: Tensor, y: Tensor, inverse: Tensor, eps: float) -> Tensor:
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


def _normed(o: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = torch.rsqrt(o.square().mean(-1, keepdim=True) + eps)
    return o * inverse, inverse


def delta(e, x, beta, alpha, weights, heads: DeltaHeads):
    """What it keeps: nothing, the backward makes it again."""
    o, _, _ = _Inputs.of(x, beta, alpha, weights, heads, e.first).chunks.forward()
    out = own(e.array(x.shape[0], heads.inner))
    y = _normed(o, heads.eps)[0] * weights[2]
    return out.copy_(_tokens(y.flatten(1, 2), len(x)).flatten(1)), None


def delta_backward(e, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
    inputs = _Inputs.of(x, beta, alpha, weights, heads, e.first)
    o, states, _ = inputs.chunks.forward()
    normed, inverse = _normed(o, heads.eps)
    du = _valued(dy.float().unflatten(1, (heads.values, -1)), heads)
    if into[2] is not None:
        into[2].add_((du * normed).sum((0, 1, 2, 3)))
    du = du * weights[2]
    do = inverse * (du - normed * (du * normed).mean(-1, keepdim=True))
    made = inputs.backward(inputs.chunks.backward(do, states), weights, into[:2])
    return tuple(own(e.array(*z.shape)).copy_(z) for z in made)


def delta_cached(e, x, beta, alpha, weights, heads: DeltaHeads, cache: Tensor, where):
    """Single tokens of several sequences are one step of the recurrence for all; longer spans are run by chunks."""
    out, h = own(e.array(x.shape[0], heads.inner)), heads
    states = cache.view(len(cache), h.repeats, h.keys, h.key_size, h.value_size)
    if where.single:
        o = _step(x, beta, alpha, weights, h, states, where)
        return out.copy_((_normed(o, h.eps)[0] * weights[2]).flatten(1))
    for slot, low, high, position in where.spans:
        first = torch.full((high - low,), -1, dtype=torch.int32, device=e.device)
        rows = slice(low, high)
        chunks = _Inputs.of(x[rows], beta[rows], alpha[rows], weights, h, first).chunks
        o, _, behind = chunks.forward(states[slot] if position else None)
        states[slot] = behind
        y = _normed(o, h.eps)[0] * weights[2]
        out[rows] = _tokens(y.flatten(1, 2), high - low).flatten(1).to(out.dtype)
    return out


def _step(x, beta, alpha, weights, h: DeltaHeads, states: Tensor, where) -> Tensor:
    """One token of each sequence -> o [n, repeats, keys, value_size]; nothing is read back to the host."""
    width, slots, (a, bias, _) = h.keys * h.key_size, where.slot.long(), weights
    q, k, v = x.float().split([width, width, h.inner], 1)
    q, k = (_unit(z.unflatten(1, (1, h.keys, h.key_size)), h.eps)[0] for z in (q, k))
    v = v.unflatten(1, (h.repeats, h.keys, h.value_size))
    decay = torch.exp(a * F.softplus(alpha.float() + bias)) * (where.position > 0)[:, None]
    decay, strength = (z.unflatten(1, (h.repeats, h.keys))[..., None] for z in (decay, torch.sigmoid(beta.float())))
    state = states[slots] * decay[..., None]
    state = state + k[..., None] * (strength * (v - (k[..., None, :] @ state)[..., 0, :]))[..., None, :]
    states.index_copy_(0, slots, state)
    return (q[..., None, :] @ state)[..., 0, :] * h.key_size**-0.5
