"""Kernels that the host launches; on arrays that are only shapes (torch's `meta` device) nothing is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Entry:
    """A kernel by the name of its Triton function: entry[grid](array, ...)."""

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable:
        def launch(first: Any, *args: Any, **options: Any) -> None:
            if not first.is_meta:
                self.kernel[grid](first, *args, **options)

        return launch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)
