"""What callers may hand over as an adapter: one, a file of one, the run that made it, or several of these at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.gguf import GGUF

    class HasAdapter(Protocol):
        """A Run."""

        run_dir: Path

        @property
        def adapter(self) -> Adapter | None: ...

    One: TypeAlias = Adapter | str | os.PathLike | HasAdapter
    AdapterLike: TypeAlias = One | Sequence[One] | None
else:
    AdapterLike = Any  # resolve() checks it, with clearer errors


def resolve(given: AdapterLike, gguf: GGUF) -> Adapter | None:
    """The adapter for the base `gguf`; None for None. Several add up, as llama.cpp's --lora does. Raises UserError."""
    if given is None or isinstance(given, Adapter):
        return given
    if isinstance(given, str | os.PathLike):
        path = Path(given).expanduser()
        if not path.exists():
            raise UserError(f"There is no adapter {path}: check the path.")
        return Adapter.load(path, gguf=gguf)
    if isinstance(given, list | tuple):
        from anytune.adapter.combine import combine

        found = [adapter for item in given if (adapter := resolve(item, gguf)) is not None]
        return combine([(adapter, 1.0) for adapter in found]) if found else None
    if hasattr(given, "run_dir") and hasattr(given, "adapter"):
        if given.adapter is None:
            raise UserError(f"The run in {given.run_dir} has no adapter: name another one.")
        return given.adapter
    raise UserError(
        f"adapter cannot be a {type(given).__name__}: give an Adapter, the path of one, a Run, or a list of these."
    )
