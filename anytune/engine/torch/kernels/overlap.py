"""Kernels that are set up while the one before them still runs: NVIDIA's programmatic dependent launch, from Hopper on.

A step of few tokens is hundreds of short kernels, and setting one up takes about as long as some of them run. A kernel that
is launched with LAUNCH begins with in_turn(): it lets the next one be set up, and waits until all that was launched before it
has ended and is visible. So nothing may be read or written before in_turn(); behind it everything is as it always was.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl


def possible() -> bool:
    """Whether every device here can, and kernels are compiled."""
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    return all(torch.cuda.get_device_capability(i) >= (9, 0) for i in range(torch.cuda.device_count()))


CAN = possible() and os.environ.get("ANYTUNE_OVERLAP", "1") != "0"
OVERLAPS = tl.constexpr(CAN)
LAUNCH = {"launch_pdl": True} if CAN else {}


@triton.jit
def in_turn():
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
