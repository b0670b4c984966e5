"""Numbers of a GGUF's metadata, within the limits that make sense."""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.errors import UserError

from .architectures import ARCHITECTURES

# The least and the greatest value that makes sense; NaN lies in no range. Others: 0 to 2**32.
LIMITS = {
    "block_count": (1, 4096),
    "embedding_length": (1, 1 << 20),
    "attention.head_count": (1, 1 << 14),
    "feed_forward_length": (1, 1 << 22),
    "context_length": (1, 1 << 32),
    "attention.sliding_window": (0, 1 << 31),
    "attention.sliding_window_pattern": (0, 1 << 16),
    "rope.freq_base": (1.0001, 1e12),
    "rope.freq_base_swa": (1.0001, 1e12),
    "rope.scaling.attn_factor": (1e-4, 1e4),
    "rope.scaling.original_context_length": (1, 1 << 32),
}


class Reader:
    """A file's numbers by their keys, without the architecture's name before them. Raises UserError for odd ones."""

    def __init__(self, gguf, architecture: str):
        self.meta, self.where, self.name = gguf.metadata, gguf.path.name, architecture
        self.tensors = gguf.tensors

    def __call__(self, key: str, default: Any = None, kind: type = int) -> Any:
        value = self.meta.get(f"{self.name}.{key}", default)
        if value is None:
            raise UserError(f"{self.where} lacks the metadata key {self.name}.{key}: it is not a complete model file")
        if isinstance(value, list | np.ndarray) and len(value) and key in ARCHITECTURES[self.name].lists:
            value = max(value.tolist() if isinstance(value, np.ndarray) else value)
        if isinstance(value, list | np.ndarray):
            raise UserError(
                f"{self.where}: {self.name}.{key} is not one number, which anytune does not support "
                f"(layers of different shapes)"
            )
        return self._sound(key, value, kind)

    def _sound(self, key: str, value: Any, kind: type) -> Any:
        low, high = LIMITS.get(key, (0, 1 << 32))
        wrong = isinstance(value, bool) and kind is not bool or not isinstance(value, int | kind)
        if wrong or not low <= value <= high:
            raise UserError(f"{self.where}: {self.name}.{key} = {value!r:.40} is invalid: the file is damaged")
        return value

    def each(self, key: str, count: int, kind: type = int) -> tuple | None:
        """One value a layer, where the file has the key: a list of `count`, or one that holds for all."""
        value = self.meta.get(f"{self.name}.{key}")
        if value is None:
            return None
        values = (
            value.tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list) else [value] * count
        )
        if len(values) != count:
            raise UserError(
                f"{self.where}: {self.name}.{key} has {len(values)} values for {count} blocks: the file is damaged"
            )
        return tuple(self._sound(key, v, kind) for v in values)
