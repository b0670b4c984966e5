"""Gates in torch: numpy/gates.py has what each is of."""

from __future__ import annotations

import torch

from .arrays import own

Tensor = torch.Tensor


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


def split_heads(e, x: Tensor, heads: int, first: int = 0) -> tuple[Tensor, Tensor]:
    whole = x.unflatten(1, (heads, -1))
    at = first or whole.shape[2] // 2
    made = tuple(own(e.array(x.shape[0], heads * size)) for size in (at, whole.shape[2] - at))
    for out, part in zip(made, (whole[:, :, :at], whole[:, :, at:])):
        out.unflatten(1, (heads, -1)).copy_(part)
    return made


def join_heads(e, first: Tensor, second: Tensor, heads: int) -> Tensor:
    out, at = own(e.array(first.shape[0], first.shape[1] + second.shape[1])), first.shape[1] // heads
    whole = out.unflatten(1, (heads, -1))
    whole[:, :, :at].copy_(first.unflatten(1, (heads, -1)))
    whole[:, :, at:].copy_(second.unflatten(1, (heads, -1)))
    return out


def gated(e, x: Tensor, gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return e.glu(gate, x, "silu")
    if activation == "none":
        return torch.mul(x, gate, out=own(e.array(*x.shape)))
    out = own(e.array(*x.shape))
    e.f.gated(x, gate, out)
    return out


def gated_backward(e, dy: Tensor, x: Tensor, gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "silu":
        dgate, dx = e.glu_backward(dy, gate, x, "silu")
        return dx, dgate
    if activation == "none":
        return tuple(torch.mul(dy, z, out=own(e.array(*x.shape))) for z in (gate, x))
    dx, dgate = own(e.array(*x.shape)), own(e.array(*x.shape))
    e.f.gated_backward(dy, x, gate, dx, dgate)
    return dx, dgate
