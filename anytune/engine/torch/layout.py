"""Arrays in their buffers: the room behind them, and arrays that lie side by side."""

from __future__ import annotations

import torch
from .arrays import own, padding_behind, same_buffer

Tensor = torch.Tensor


def extend(e, x: Tensor, columns: int) -> Tensor:
    """x [T, n] with `columns` more: in place if room lies behind x in its buffer, else a copy."""
    width = x.shape[1] + columns
    if padding_behind(x) >= columns:
        return x.as_strided((x.shape[0], width), x.stride())
    wider = e.array(x.shape[0], x.shape[1], columns)
    wider.copy_(x)
    return wider.as_strided((x.shape[0], width), wider.stride())


def joined(e, parts: tuple[Tensor, ...]) -> Tensor:
    """The parts [T, n_i] side by side: one view if they lie so, else a copy."""
    if len(parts) == 1:
        return parts[0]
    first, at = parts[0], parts[0].storage_offset()
    width = sum(p.shape[1] for p in parts)
    for part in parts:
        if not same_buffer(part, first) or part.stride() != first.stride() or part.storage_offset() != at:
            out = own(e.array(first.shape[0], width))
            return own(out.copy_(torch.cat(parts, dim=1)))
        at += part.shape[1]
    out = first.as_strided((first.shape[0], width), first.stride())
    for name in ("ends", "low_of", "row_scale"):
        setattr(out, name, getattr(parts[-1], name, None))
    return out
