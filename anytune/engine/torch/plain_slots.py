"""Rows of a mixture's slots in plain torch; kernels/slots.py has the twins. place int64 [T, used]: a token's slots."""

from __future__ import annotations

import torch

from . import plain

Tensor = torch.Tensor


def spread(x, place, out) -> None:
    """out [S, n]: to each slot its token's row of x [T, n]."""
    out.index_copy_(0, place.reshape(-1), x.to(out.dtype).repeat_interleave(place.shape[1], 0))


def collect(y, place, out) -> None:
    """out [T, n]: the sum of each token's slots of y [S, n], in float32."""
    rows = y.index_select(0, place.reshape(-1)).view(*place.shape, -1)
    out.copy_(rows.sum(1, dtype=torch.float32))


def weigh_backward(dy, x, weights, inner) -> None:
    """inner [S], float32: dy [S, n] times x [S, n], summed over a row; then dy *= weights, float32 [S]."""
    inner.copy_((dy.float() * x).sum(1))
    dy.copy_(dy.float() * weights[:, None])


def weighed(gate, up, activation, weights, out) -> None:
    """out [S, n] = act(gate) * up * weights, float32 [S]; activation as plain.glu has it."""
    inner = torch.empty_like(out)
    plain.glu(gate, up, activation, inner)
    torch.mul(inner, weights[:, None].to(out.dtype), out=out)


def weighed_backward(dy, gate, up, activation, weights, dgate, dup, inner) -> None:
    """Of weighed(): dgate, dup; inner [S], float32: the gradient by the weights. dy is given up."""
    between = torch.empty_like(dy)
    plain.glu(gate, up, activation, between)
    weigh_backward(dy, between, weights, inner)
    plain.glu_backward(dy, gate, up, activation, dgate, dup)
