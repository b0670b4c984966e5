"""How large the engine's temporary pieces may be: speed against memory, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """logits: elements of logits that exist at once."""
    logits: int = 24 << 20


LEAN = Sizes(logits=4 << 20)
