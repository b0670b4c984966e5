"""Adapters without gradients: closed forms from activations.

statistics.py sums over tokens, closed.py solves, fit.py walks teacher and student through the layers side by side;
distillation.py, compression.py, repairing.py, merging.py and collection.py are one command's work each, report.py says
what came of it. The commands' functions are here too, and are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "distill": "distillation",
    "collect": "distillation",
    "compress": "compression",
    "repair": "repairing",
    "merge": "merging",
    "solve": "collection",
    "Settings": "job",
    "Outputs": "ending",
    "Reading": "data",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
