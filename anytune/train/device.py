"""Which engine trains, and why. --device auto takes bf16 products for an adapter where the processor has them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.engine.devices import bf16_missing, engine_for, gpu_unused
from anytune.engine.probe import remembered
from anytune.distributed.environment import torchrun_variables

if TYPE_CHECKING:
    from anytune.model import Model


class Place:
    """The engine that a model trains on: its own, or for as long as the run lasts cpu-bf16 in the place of numpy.

    At the end of its `with` block the model has its own engine back, so that what it computes afterwards (verify,
    generate) is exact again.
    """

    def __init__(self, model: Model, recorded: dict[str, Any], full: bool):
        """recorded: the engine of the checkpoint to continue from, {} without one. full: the weights are trained."""
        self.model, self.own, self.why = model, model.engine, _why(model)
        if (
            model.asked != "auto"
            or model.engine.name != "numpy"
            or torchrun_variables()
            or os.environ.get("ANYTUNE_DEVICE")
        ):
            return
        if recorded.get("engine") in ("numpy", "cpu-bf16"):
            wanted, self.why = recorded["engine"], "the checkpoint was made on it"
        elif full:
            wanted, self.why = "numpy", "small weight updates are lost in bf16"
        elif remembered() == "numpy":
            wanted, self.why = "numpy", "anytune doctor found it faster here than cpu-bf16"
        elif (lack := bf16_missing()) is not None:
            wanted, self.why = "numpy", f"cpu-bf16, which is faster, is not available: {lack}"
        else:
            wanted, self.why = "cpu-bf16", "this processor has AVX512-BF16; --device numpy computes in float32"
        if wanted == "cpu-bf16":
            model.move(engine_for("cpu-bf16", model.engine.workers.count))

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def moved(self) -> bool:
        return self.model.engine is not self.own

    def retreat(self, error: UserError) -> None:
        """Back to the model's own engine: the memory does not suffice for the other. Raises `error` if that is it."""
        if not self.moved:
            raise error
        self.leave()
        self.why = "cpu-bf16, which is faster, needs more memory than available"

    def leave(self) -> None:
        if self.moved:
            moved = self.model.engine
            self.model.move(self.own)
            moved.release()
            moved.workers.close()

    def sentence(self) -> str:
        unused = gpu_unused(self.model.engine.name) if self.model.asked == "auto" else ""
        return f"Device: {self.model.engine.name}, because {self.why}{unused}"


def _why(model: Model) -> str:
    if model.asked != "auto":
        return f"--device {model.asked} asks for it" if model.asked else "the model was loaded on it"
    if os.environ.get("ANYTUNE_DEVICE"):
        return "ANYTUNE_DEVICE is set to it"
    if model.engine.name in ("numpy", "cpu-bf16"):
        return "anytune doctor found it fastest here" if remembered() == model.engine.name else "it runs everywhere"
    return "it can use the GPU"
