"""Latent attention's heads in torch: numpy/latent.py has their meaning."""

from __future__ import annotations

import torch

from anytune.engine.shapes import LatentHeads

from .arrays import own, real

Tensor = torch.Tensor


def latent_heads(e, q: Tensor, kv: Tensor, shared: Tensor, shape: LatentHeads) -> tuple[Tensor, ...]:
    s, rope = shape, shape.rope
    given, both = (real(x).unflatten(1, (s.heads, -1)) for x in (q, kv))
    made = tuple(own(e.array(len(q), s.heads * s.size)) for _ in range(3))
    queries, keys, values = (x.unflatten(1, (s.heads, -1)) for x in made)
    queries[:, :, :rope].copy_(given[:, :, s.nope :])
    queries[:, :, rope : s.keys].copy_(given[:, :, : s.nope])
    keys[:, :, :rope].copy_(shared[:, None].expand(-1, s.heads, -1))
    keys[:, :, rope : s.keys].copy_(both[:, :, : s.nope])
    values[:, :, : s.value].copy_(both[:, :, s.nope :])
    for x, used in ((queries, s.keys), (keys, s.keys), (values, s.value)):
        if used < s.size:
            x[:, :, used:].zero_()
    return made


def latent_heads_backward(e, dq: Tensor, dk: Tensor, dv: Tensor, shape: LatentHeads) -> tuple[Tensor, ...]:
    s, rope = shape, shape.rope
    queries, keys, values = (x.unflatten(1, (s.heads, -1)) for x in (dq, dk, dv))
    widths = s.heads * s.keys, s.heads * (s.nope + s.value), rope
    made = tuple(own(e.array(len(dq), width)) for width in widths)
    given, both = (x.unflatten(1, (s.heads, -1)) for x in made[:2])
    given[:, :, s.nope :].copy_(queries[:, :, :rope])
    given[:, :, : s.nope].copy_(queries[:, :, rope : s.keys])
    both[:, :, : s.nope].copy_(keys[:, :, rope : s.keys])
    both[:, :, s.nope :].copy_(values[:, :, : s.value])
    made[2].copy_(keys[:, :, :rope].sum(1, dtype=torch.float32))
    return made


def resize_heads(e, x: Tensor, heads: int, size: int) -> Tensor:
    out, given = own(e.array(len(x), heads * size)), real(x).unflatten(1, (heads, -1))
    made, kept = out.unflatten(1, (heads, -1)), min(size, given.shape[2])
    made[:, :, :kept].copy_(given[:, :, :kept])
    if kept < size:
        made[:, :, kept:].zero_()
    return out


def latent_matrix(e, k: Tensor, v: Tensor) -> Tensor:
    """In the products' type, as matrices are that are dequantized once."""
    return torch.cat([k.transpose(1, 2), v], 1).flatten(0, 1).to(e.dtype)


def head_product(e, x: Tensor, matrix, heads: int, low: int, high: int, back: bool) -> Tensor:
    tile = torch.empty((matrix.out_features, matrix.in_features), dtype=e.dtype, device=e.device)
    kind = torch.float32 if e.dtype == torch.float16 else e.dtype  # whose range activations may leave
    each = matrix.piece(0, matrix.out_features, tile).unflatten(0, (heads, -1))[:, low:high].to(kind)
    given = real(x).unflatten(1, (heads, -1)).transpose(0, 1).to(kind)
    made = torch.bmm(given, each if back else each.transpose(1, 2)).transpose(0, 1).flatten(1)
    return own(e.array(len(x), made.shape[1])).copy_(made)
