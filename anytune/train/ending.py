"""What a run leaves behind: the product at its best or at its end, the plot, and what to do after a NaN."""

from __future__ import annotations

from typing import Any

from anytune.errors import UserError
from anytune.files import copy
from anytune.train.checkpoint_manager import CheckpointManager, why
from anytune.train.plot import plot_losses
from anytune.train.progress import Console
from anytune.train.run_folder import RunFolder
from anytune.train.settings import TrainSettings


class Ending:
    """Rank 0's. product: as Trainer's."""

    def __init__(
        self, product: Any, folder: RunFolder, checkpoints: CheckpointManager, settings: TrainSettings, console: Console
    ):
        self.product, self.folder, self.checkpoints = product, folder, checkpoints
        self.settings, self.console = settings, console

    def save_best(self, step: int) -> bool:
        try:
            self.product.now().save(self.folder.best)
        except (OSError, UserError) as error:
            self.console.say(f"The best {self.product.noun} so far (step {step}) cannot be kept: {why(error)}")
            return False
        return True

    def write(self, step: int, best: dict | None) -> None:
        """The product of a run that did some steps: that of its best evaluation, or as it is now."""
        if step == 0:
            return
        if best is not None:
            copy(self.folder.best, self.folder.product)
        elif self.checkpoints.sound():
            self.product.now().save(self.folder.product)
        else:  # the last update was too much
            saved = f"The last good state is {self.checkpoints.saved}. " if self.checkpoints.saved else ""
            raise UserError(f"After step {step} the parameters are no longer finite. {saved}{self._advice()}")
        self._plot()

    def _plot(self) -> None:
        try:
            plot_losses(self.folder.metrics, self.folder.plot, self.folder.name)
        except OSError as error:
            self.console.say(f"The loss plot cannot be written: {why(error)}.")

    def diverged(self, step: int, done: int, what: str, places: set[str]) -> str:
        """What to say of a step that is not finite, after so many that are done, whose product is kept. places: of the
        step's examples."""
        lines = ", ".join(sorted(places))
        if len(lines) > 300:
            lines = lines[:300] + "…"
        kept = ""
        if done > 0 and self.checkpoints.sound():
            self.product.now().save(self.folder.product)
            kept = f"The result before it is in {self.folder.product} ({self.product.again}). "
        elif self.checkpoints.saved:
            kept = f"The last good state is {self.checkpoints.saved}. "
        start = f"Step {step}: {what}, so training stopped before applying it ({lines}). {kept}"
        if done == 0:  # nothing has been learned that a lower rate would change
            return f"{start}The model's file or the adapter is damaged, or --dtype is too narrow for its activations."
        return start + self._advice()

    def _advice(self) -> str:
        return (
            f"Start again with a lower --learning-rate (now {self.settings.lr:g}), a longer --warmup-ratio "
            "or a lower --max-grad-norm."
        )
