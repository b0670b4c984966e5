"""Pairs of matrices that the file has a scale of: of each expert, s.

llama.cpp adds a pair's result after the scale, s (W x) + B A x, and an Adapter holds what its file has. Where a pair is
trained or merged, and in peft, it acts before the scale: s (W + B' A) x with B' = B / s.
"""

from __future__ import annotations

import numpy as np

from anytune.gguf import GGUF


def before_scale(base: GGUF, name: str, b: np.ndarray) -> np.ndarray:
    """B' of an Adapter's B [experts, out, rank] of tensor `name`; 0 where s is 0."""
    s = _scales(base, name)
    return b if s is None else np.divide(b, s, out=np.zeros_like(b), where=s != 0)


def after_scale(base: GGUF, name: str, b: np.ndarray) -> np.ndarray:
    """The inverse."""
    s = _scales(base, name)
    return b if s is None else b * s


def has_scales(base: GGUF, name: str) -> bool:
    return f"{name.removesuffix('.weight')}.scale" in base.tensors


def _scales(base: GGUF, name: str) -> np.ndarray | None:
    """float32 [experts, 1, 1]"""
    if not has_scales(base, name):
        return None
    return np.asarray(base.float32(f"{name.removesuffix('.weight')}.scale"), np.float32).reshape(-1, 1, 1)
