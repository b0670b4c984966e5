"""A causal convolution of each column for itself within each example, heads in halves, and sigmoid gates, in torch."""

from __future__ import annotations

import torch

from .arrays import own

Tensor = torch.Tensor


def _reaches(first: Tensor, back: int) -> Tensor:
    """bool [T - back, 1]: whether the token `back` behind each of first[back:] is of the same example."""
    return (torch.arange(len(first) - back, device=first.device) >= first[back:])[:, None]


def _sums(x: Tensor, weight: Tensor, first: Tensor) -> Tensor:
    """float32 [T, n]."""
    x, kernel = x.float(), weight.shape[1]
    y = x * weight[:, -1]
    for back in range(1, min(kernel, len(x))):
        y[back:] += x[:-back] * _reaches(first, back) * weight[:, kernel - 1 - back]
    return y


def convolve(e, x: Tensor, weight: Tensor, silu: bool) -> Tensor:
    y = _sums(x, weight, e.first)
    return own(e.array(*x.shape)).copy_(y * torch.sigmoid(y) if silu else y)


def convolve_backward(e, dy: Tensor, x: Tensor, weight: Tensor, silu: bool, into=None) -> Tensor:
    dz, tokens, kernel = dy.float(), x.shape[0], weight.shape[1]
    if silu:
        z = _sums(x, weight, e.first)
        s = torch.sigmoid(z)
        dz = dz * s * (1 + z * (1 - s))
    dx = dz * weight[:, -1]
    if into is not None:
        into[:, -1] += (dz * x.float()).sum(0)
    for back in range(1, min(kernel, tokens)):
        reached = dz[back:] * _reaches(e.first, back)
        dx[:-back] += reached * weight[:, kernel - 1 - back]
        if into is not None:
            into[:, kernel - 1 - back] += (reached * x[:-back].float()).sum(0)
    return own(e.array(*x.shape)).copy_(dx)


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
        y = _sums(window, weight, torch.zeros(len(window), dtype=torch.int32, device=e.device))[before:]
        out[low:high] = (y * torch.sigmoid(y) if silu else y).to(out.dtype)
    return out


def split_heads(e, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    halves = x.unflatten(1, (heads, 2, -1))
    return tuple(own(e.array(x.shape[0], x.shape[1] // 2)).copy_(halves[:, :, at].flatten(1)) for at in (0, 1))


def join_heads(e, first: Tensor, second: Tensor, heads: int) -> Tensor:
    both = torch.stack([first.unflatten(1, (heads, -1)), second.unflatten(1, (heads, -1))], 2)
    return own(e.array(first.shape[0], 2 * first.shape[1])).copy_(both.flatten(1))


def gated(e, x: Tensor, gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return e.glu(gate, x, "silu")
    return own(e.array(*x.shape)).copy_(x.float() * torch.sigmoid(gate.float()))


def gated_backward(e, dy: Tensor, x: Tensor, gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "silu":
        dgate, dx = e.glu_backward(dy, gate, x, "silu")
        return dx, dgate
    s, d = torch.sigmoid(gate.float()), dy.float()
    return (own(e.array(*x.shape)).copy_(d * s), own(e.array(*x.shape)).copy_(d * x.float() * s * (1 - s)))


def state(e, slots: int, size: int) -> Tensor:
    return torch.zeros((slots, size), dtype=torch.float32, device=e.device)
