"""Pairs of matrices that the file has a scale of: of each expert, s.

llama.cpp adds what a pair gives behind the scale, s (W x) + B A x, and an Adapter is as its file is. Beside the
weights, where it is trained and merged, and in peft, a pair acts before it: s (W + B' A) x with B' = B / s.
"""

from __future__ import annotations

import numpy as np

from anytune.gguf import GGUF


def within(base: GGUF, name: str, b: np.ndarray) -> np.ndarray:
    """B of an Adapter [experts, out, rank] as it acts beside the weights of tensor `name`; 0 where s is."""
    s = _scales(base, name)
    return b if s is None else np.divide(b, s, out=np.zeros_like(b), where=s != 0)


def behind(base: GGUF, name: str, b: np.ndarray) -> np.ndarray:
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
