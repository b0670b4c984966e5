"""How large the engine's temporary pieces may be: speed against memory, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """logits: elements of logits that exist at once. head: rows of the output head that are dequantized at once where
    it is not held dense. offload: layer inputs that wait for their backward do so in pinned host memory. turned:
    queries and keys are kept after rope too, where there are head norms. attended: what attention gave is kept of
    layers whose forward runs twice."""

    logits: int = 320 << 20
    head: int = 16384
    offload: bool = False
    turned: bool = False
    attended: bool = False


LEAN = Sizes(logits=80 << 20)
AWAY = Sizes(logits=80 << 20, offload=True)
