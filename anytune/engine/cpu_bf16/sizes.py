"""The bf16 CPU engine's sizes: the NumPy engine's, and whether matrices are kept as the products read them."""

from __future__ import annotations

from dataclasses import dataclass

from anytune.engine.numpy.sizes import Sizes


@dataclass(frozen=True)
class Bf16Sizes(Sizes):
    """packed: see packed.py: "" for no weights, "y" for the products that make y,
    "both" for those that make dx as well."""

    packed: str = ""
