"""A causal convolution of each column for itself within each example, in torch."""

from __future__ import annotations

import torch

from .arrays import own
from .plain_convolution import sums

Tensor = torch.Tensor


def convolve(e, x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    out = own(e.array(*x.shape))
    e.f.convolve(x, weight, e.first, out, silu)
    return out


def convolve_backward(e, dy: Tensor, x: Tensor, weight: Tensor, silu: bool, into=None) -> Tensor:
    dx = own(e.array(*x.shape))
    e.f.convolve_backward(dy, x, weight, e.first, dx, silu, into)
    return dx


def convolve_cached(e, x: Tensor, weight: Tensor, silu: bool, cache: Tensor, where) -> Tensor:
    out, before = own(e.array(*x.shape)), weight.shape[1] - 1
    held = cache.view(len(cache), before, x.shape[1])
    if where.single:  # nothing is read back to the host, so that it can be recorded
        slots = where.slot.long()
        window = torch.cat([held[slots] * (where.position > 0)[:, None, None], x.float()[:, None]], 1)
        held.index_copy_(0, slots, window[:, 1:])
        y = (window * weight.t()).sum(1)
        return out.copy_(y * torch.sigmoid(y) if silu else y)
    for slot, low, high, position in where.spans:
        window = torch.cat([held[slot] * (position > 0), x[low:high].float()])
        held[slot] = window[len(window) - before :]
        y = sums(window, weight, torch.zeros(len(window), dtype=torch.int32, device=e.device))[before:]
        out[low:high] = (y * torch.sigmoid(y) if silu else y).to(out.dtype)
    return out


def state(e, slots: int, size: int) -> Tensor:
    return torch.zeros((slots, size), dtype=torch.float32, device=e.device)
