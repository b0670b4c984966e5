"""The gated delta net's operations; base.py says what they mean, plain_delta.py and kernels/delta.py compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from anytune.engine.base import DeltaHeads

from .arrays import own
from .plain_delta import normed, unit

Tensor = torch.Tensor


def delta(e, x, beta, alpha, weights, heads: DeltaHeads):
    """What it keeps: nothing, the backward makes it again."""
    out = own(e.array(x.shape[0], heads.inner))
    e.f.delta(x, beta, alpha, weights, heads, e.first, out)
    return out, None


def delta_backward(e, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
    out = tuple(own(e.array(*z.shape)) for z in (x, beta, alpha))
    e.f.delta_backward(dy, x, beta, alpha, weights, heads, e.first, out, into)
    return out


def delta_cached(e, x, beta, alpha, weights, heads: DeltaHeads, cache: Tensor, where):
    """Single tokens of several sequences are one step of the recurrence for all; longer spans are run by chunks."""
    out, h = own(e.array(x.shape[0], heads.inner)), heads
    states = cache.view(len(cache), h.values, h.key_size, h.value_size)
    if where.single:
        o = _step(x, beta, alpha, weights, h, states.unflatten(1, (h.repeats, h.keys)), where)
        return out.copy_((normed(o, h.eps)[0] * weights[2]).flatten(1))
    for slot, low, high, position in where.spans:
        first = torch.full((high - low,), -1, dtype=torch.int32, device=e.device)
        parts, before = (z[low:high] for z in (x, beta, alpha)), states[slot]
        states[slot] = e.f.delta(
            *parts, weights, h, first, out[low:high], before if position else torch.zeros_like(before)
        )
    return out


def _step(x, beta, alpha, weights, h: DeltaHeads, states: Tensor, where) -> Tensor:
    """One token of each sequence -> o [n, repeats, keys, value_size]; nothing is read back to the host."""
    width, slots, (a, bias, _) = h.keys * h.key_size, where.slot.long(), weights
    q, k, v = x.float().split([width, width, h.inner], 1)
    q, k = (unit(z.unflatten(1, (1, h.keys, h.key_size)), h.eps)[0] for z in (q, k))
    v = v.unflatten(1, (h.repeats, h.keys, h.value_size))
    decay = torch.exp(a * F.softplus(alpha.float() + bias)) * (where.position > 0)[:, None]
    decay, strength = (z.unflatten(1, (h.repeats, h.keys))[..., None] for z in (decay, torch.sigmoid(beta.float())))
    state = states[slots] * decay[..., None]
    state = state + k[..., None] * (strength * (v - (k[..., None, :] @ state)[..., 0, :]))[..., None, :]
    states.index_copy_(0, slots, state)
    return (q[..., None, :] @ state)[..., 0, :] * h.key_size**-0.5
