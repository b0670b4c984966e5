"""The torch engine's ways to train within a device's memory.

Fastest first: weights dequantized once (2 bytes each); kept as the file's blocks and dequantized at each use; kept in
pinned host memory and copied at each use. Layer inputs that wait for their backward may wait on the host. Several
processes may share the blocks out; they must decide alike, so the process with the least free memory decides.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from anytune.engine.budget import Way
from anytune.memory import MIB, available_bytes, process_bytes

from . import fp8
from .dry import Dry, dry
from .sizes import AWAY, LEAN, Sizes

# cost over the fastest way, as a part of a step, measured at 8,192 tokens on an H100 (bench/results/train_gpu.json)
HOLDS = (
    ("dense", 0.0, "weights are dequantized once"),
    ("blocks", 0.06, "weights stay in their GGUF blocks and are dequantized at each use"),
    ("stream", 0.5, "weights stay in host memory and are copied at each use"),
)
SHARD = ("shard", 0.12, "each process holds a slice of the weights' GGUF blocks and gathers the others at each use")
PIECES = tuple(
    (replace(sizes, attended=attended), cost, words)
    for sizes, cost, words in (
        (Sizes(turned=True), 0.0, ""),
        (Sizes(), 0.01, ""),
        (LEAN, 0.02, "; the loss is computed in small pieces"),
        (AWAY, 0.05, "; the loss is computed in small pieces; layer inputs are offloaded to host memory"),
    )
    for attended in (True, False)
)
WORKSPACE = 48 * MIB  # cuBLAS's, and small things that no count sees


class Budget:
    """See anytune.engine.budget. memory: bytes that this process may take of the device; None: what is free, less a
    slack for the allocator. On a CPU the whole process counts."""

    def __init__(self, engine, weights, memory: int | None):
        self.engine = engine
        self.place = "this GPU's memory" if engine.device.type != "cpu" else "memory"
        self.base, free = self._taken()
        self.base += WORKSPACE
        self.limit = memory if memory is not None else self.base + int(0.92 * free)
        process_group, holds = engine.process_group, HOLDS
        if process_group is not None:
            self.limit = self.base + process_group.minimum(self.limit - self.base)
            holds = (SHARD,) if process_group.shard else (*HOLDS, SHARD)
        away = engine.device.type == "cuda"
        told = fp8.TOLD if engine.fp8 else ""
        self.ways = [
            Way(cost + more, hold, sizes, text + words + told, sizes.attended)
            for hold, cost, text in holds
            for sizes, more, words in PIECES
            if away or (hold != "stream" and not sizes.offload)
        ]

    def _taken(self) -> tuple[int, int]:
        """(bytes that this process's tensors take now, bytes that are free)."""
        device = self.engine.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            return torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
        if device.type == "mps":
            taken = torch.mps.current_allocated_memory()
            return taken, torch.mps.recommended_max_memory() - taken
        if device.type == "xpu":
            taken = torch.xpu.memory_allocated(device)
            return taken, torch.xpu.get_device_properties(device).total_memory - torch.xpu.memory_reserved(device)
        process_group = self.engine.process_group  # whose processes on this machine share its memory
        return process_bytes(), available_bytes() // (process_group.local_size if process_group is not None else 1)

    def dry(self, way: Way, capacity: int) -> Dry:
        return dry(self.engine, way.sizes)


def peak(engine) -> int:
    """The most bytes of the device that this process's tensors ever took (0 where torch does not say)."""
    return torch.cuda.max_memory_allocated(engine.device) if engine.device.type == "cuda" else 0
