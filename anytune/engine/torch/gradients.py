"""Gradients of what is not low-rank: matrices, biases, norms' gains and the embedding table, all added to float32.

They are added in place, in an order that does not depend on chance, and without asking the device for anything, so
that a recorded step makes them again.
"""

from __future__ import annotations

import torch

from .arrays import on_nvidia, real

Tensor = torch.Tensor


def group_gradients(e, dy: Tensor, x: Tensor, group) -> None:
    """dW += dyᵀ x and db += the sum of dy's rows, for what is trained; dy [T, width], x [T, in]."""
    for weight, bias, low, high in zip(group.weights, group.bias_gradients, group.bounds, group.bounds[1:]):
        if weight.gradient is not None:
            add_product(e, dy[:, low:high], x, weight.gradient)
        if bias is not None:
            bias += dy[:, low:high].sum(0, dtype=torch.float32)


def add_product(e, a: Tensor, b: Tensor, into: Tensor) -> None:
    """into [m, n] += aᵀ b, a [T, m] and b [T, n] of one dtype.

    Sums are float32; where a device's product gives its operands' format only, bfloat16 rounds each sum once more.
    """
    if a.dtype == torch.float32:  # also of float16 products: these activations may be too large for it
        into.addmm_(a.t(), b)
    elif on_nvidia(a):
        into += torch.mm(a.t(), b, out_dtype=torch.float32)
    else:
        into += torch.mm(a.t(), b)


def gain_gradient(e, dy: Tensor, x, eps: float, into: Tensor) -> None:
    """into [n] += the sum over rows and heads of dy * x / rms(x); dy, x [T, h n]."""
    width = into.shape[0]
    x, dy = (z.unflatten(1, (-1, width)) for z in (real(x), real(dy)))
    size = torch.linalg.vector_norm(x, dim=2, dtype=torch.float32)
    inverse = torch.rsqrt(size.square() / width + eps)
    into.addmv_((dy.float() * x).view(-1, width).t(), inverse.view(-1))


def embed_backward(e, dx: Tensor, ids: Tensor, scale: float, into: Tensor) -> None:
    """into[ids] += scale * dx."""
    add_rows(into, ids, real(dx).float() * scale)


def add_rows(into: Tensor, ids: Tensor, values: Tensor) -> None:
    """into[ids] += values. On CUDA by sorting, as index_put_ does it there: atomics would add in any order."""
    if into.is_cuda or on_nvidia(into):
        into.index_put_((ids.long(),), values, accumulate=True)
    else:
        into.index_add_(0, ids, values)
