"""The WebGPU engine's ways to train within a device's memory.

WebGPU does not say how much memory a device has. Where the device shares the machine's memory (software, integrated),
what is free there is the limit; a card is asked until it says no, or held to --memory.
"""

from __future__ import annotations

from anytune.engine.budget import Way
from anytune.memory import MIB, available_bytes

from .dry import Dry, dry
from .sizes import LEAN, Sizes

HOLDS = (
    ("blocks", 0.0, "weights stay in their GGUF blocks on the device"),
    ("stream", 0.6, "weights are copied from the file to the device at each use"),
)
PIECES = ((Sizes(), 0.0, ""), (LEAN, 0.03, "; the loss is computed in small pieces"))
SMALL = 8 * MIB  # recordings' parameters, staging and other things that no count sees
UNKNOWN = 1 << 50  # bytes: a card does not say how many it has


class Budget:
    """See anytune.engine.budget. memory: bytes that may be taken of the device."""

    def __init__(self, engine, weights, memory: int | None):
        self.engine = engine
        device = engine.device
        shared = device.info.get("adapter_type") != "DiscreteGPU"
        self.place = "this device's memory"
        # the weights that are there already are counted with the way that holds them
        self.base = SMALL + device.live - sum(w.nbytes for w in engine.weights if w.loaded)
        self.limit = memory if memory is not None else self.base + (int(0.9 * available_bytes()) if shared else UNKNOWN)
        exotic = sorted({w.type.name for w in weights.matrices.values() if not w.known})
        note = f"; {', '.join(exotic)} blocks are stored as F32" if exotic else ""
        self.ways = [
            Way(cost + more, hold, sizes, text + note + words)
            for hold, cost, text in HOLDS
            for sizes, more, words in PIECES
        ]

    def dry(self, way: Way, capacity: int) -> Dry:
        return dry(self.engine, way.sizes, capacity)
