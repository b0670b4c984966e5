"""A causal convolution of each column for itself within each example, in plain torch."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def _reaches(first: Tensor, back: int) -> Tensor:
    """bool [T - back, 1]: whether the token `back` behind each of first[back:] is of the same example."""
    return (torch.arange(len(first) - back, device=first.device) >= first[back:])[:, None]


def sums(x: Tensor, weight: Tensor, first: Tensor) -> Tensor:
    """float32 [T, n]."""
    x, kernel = x.float(), weight.shape[1]
    y = x * weight[:, -1]
    for back in range(1, min(kernel, len(x))):
        y[back:] += x[:-back] * _reaches(first, back) * weight[:, kernel - 1 - back]
    return y


def convolve(x: Tensor, weight: Tensor, first: Tensor, out: Tensor, silu: bool) -> None:
    """x, out [T, n], weight float32 [n, kernel], first int [T]: where each token's example begins."""
    y = sums(x, weight, first)
    out.copy_(y * torch.sigmoid(y) if silu else y)


def convolve_backward(
    dy: Tensor, x: Tensor, weight: Tensor, first: Tensor, dx: Tensor, silu: bool, into: Tensor | None = None
) -> None:
    """Writes dx; adds the weight's gradient to `into`, where it is trained."""
    dz, kernel = dy.float(), weight.shape[1]
    if silu:
        z = sums(x, weight, first)
        s = torch.sigmoid(z)
        dz = dz * s * (1 + z * (1 - s))
    made = dz * weight[:, -1]
    for back in range(1, min(kernel, len(x))):
        made[:-back] += dz[back:] * _reaches(first, back) * weight[:, kernel - 1 - back]
    dx.copy_(made)
    if into is not None:
        weight_gradient(dz, x, first, into)


def weight_gradient(dz: Tensor, x: Tensor, first: Tensor, into: Tensor) -> None:
    """Adds it to `into` [n, kernel]; dz float32 [T, n]: the gradient of the sums."""
    kernel = into.shape[1]
    into[:, -1] += (dz * x.float()).sum(0)
    for back in range(1, min(kernel, len(x))):
        into[:, kernel - 1 - back] += (dz[back:] * _reaches(first, back) * x[:-back].float()).sum(0)
