"""Attention's sinks in torch: a score without a value in each query head's softmax."""

from __future__ import annotations

import torch

from anytune.engine.base import Heads

from .arrays import own

Tensor = torch.Tensor


def sink(e, out: Tensor, lse: Tensor, sinks: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    grown = torch.logaddexp(lse, sinks[:, None])
    share = torch.exp(lse - grown).t().repeat_interleave(heads.head_dim, 1).to(out.dtype)
    return torch.mul(out, share, out=own(e.array(*out.shape))), grown


def sink_gradient(e, dout: Tensor, out: Tensor, lse: Tensor, sinks: Tensor, heads: Heads, into: Tensor) -> None:
    inner = (dout.float() * out).unflatten(1, (heads.n_heads, -1)).sum(2)
    into -= (torch.exp(sinks[:, None] - lse).t() * inner).sum(0)
