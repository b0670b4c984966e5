"""The bf16 CPU engine run dry: as the NumPy engine, without the products' kernels."""

from __future__ import annotations

from typing import Any

from anytune.engine.numpy import dry as numpy_dry
from anytune.engine.numpy.dry import Silent

from . import attend, gemm, rowwise, tiles


class Unremembered(dict):
    """Scratch is asked for at each use."""

    def __setitem__(self, name: str, place: Any) -> None:
        pass


class Dry(numpy_dry.Dry):
    gemm, tiles, rowwise, attend = map(Silent, (gemm, tiles, rowwise, attend))

    def _forget_scratch(self) -> None:
        self.scratch_at = [Unremembered()]


def dry(engine: Any, sizes: Any, capacity: int) -> Dry:
    """See anytune.engine.numpy.dry."""
    return numpy_dry.dry(engine, sizes, capacity, Dry)
