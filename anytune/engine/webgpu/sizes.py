"""How large the engine's temporary pieces may be: speed against memory, in one place."""

from __future__ import annotations

from dataclasses import dataclass

# elements that a sum's slices may take without more memory: there is always a buffer of this size
SCRATCH = 2 << 20


def scratch_size(elements: int) -> int:
    """Of a buffer for slices: few sizes, so that all of them take turns in the same one."""
    return max(SCRATCH, 1 << (elements - 1).bit_length())


@dataclass(frozen=True)
class Sizes:
    """logits: elements of logits that exist at once."""

    logits: int = 24 << 20


LEAN = Sizes(logits=4 << 20)
