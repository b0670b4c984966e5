"""The adapter of a training that is under way: its newest whole checkpoint, or what it made in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.model.lora_layout import Layout
from anytune.train import checkpoint as ckpt


@dataclass(frozen=True)
class State:
    """One state of a run. label: how it is shown; created: in seconds of Unix time."""

    path: Path
    label: str
    created: int


@dataclass(frozen=True)
class Run:
    """A run's folder under a name."""

    name: str
    folder: Path

    def newest(self) -> State | None:
        """What would be served now; None before the first checkpoint."""
        made = self.folder / "adapter.gguf"
        if made.is_file():
            return State(made, made.name, int(made.stat().st_mtime))
        found = next(iter(ckpt.listing(self.folder / "checkpoints")), None)
        try:
            return None if found is None else State(found, found.name, int(found.stat().st_mtime))
        except FileNotFoundError:  # replaced by a newer one in this moment
            return self.newest()

    def load(self, state: State, gguf: Any) -> Adapter:
        """The adapter of a state. Raises UserError if it is damaged or of another model."""
        if state.path.suffix == ".gguf":
            return Adapter.load(state.path, gguf=gguf)
        found = ckpt.load(state.path)
        spec, identity = found.info["identity"].get("trainee"), found.info["identity"]
        if not isinstance(spec, dict) or spec.get("kind") != "lora":
            raise UserError(f"The run {self.name!r} does not train an adapter, and only adapters can be served.")
        if identity.get("base") != gguf.sha256():
            raise UserError(f"The run {self.name!r} trains a different model file than the one served.")
        names = str(spec["modules"]).split(",")
        layout = Layout.of({name: tuple(gguf.tensors[name].shape) for name in names}, spec["rank"])
        flat = found.tensors()["parameters"]
        if flat.shape != (layout.size,):
            raise UserError(f"The checkpoint of the run {self.name!r} does not fit its own settings.")
        return Adapter(
            {pair.name: (pair.view_a(flat).copy(), pair.view_b(flat).copy()) for pair in layout.pairs},
            spec["rank"],
            float(spec["alpha"]),
            bool(spec["rslora"]),
            str(gguf.metadata["general.architecture"]),
            base_sha256=gguf.sha256(),
        )
