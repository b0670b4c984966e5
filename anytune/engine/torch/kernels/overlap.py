"""Launches that are set up while the one before them ends (CUDA's programmatic dependent launch): a decoded token is
some 300 short kernels, each of which waits for the whole device otherwise."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def settle(OVERLAP: tl.constexpr):
    """Before the first access to memory: all that was launched before is done, and what comes next may be set up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


def overlap(x: torch.Tensor, rows: int) -> dict[str, bool]:
    """How to launch a kernel that calls settle(), which works on so many rows of x: overlapped if it is one token."""
    on = rows == 1 and x.is_cuda and _supported(x.device)
    return {"OVERLAP": True, "launch_pdl": True} if on else {"OVERLAP": False}


@functools.cache
def _supported(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
