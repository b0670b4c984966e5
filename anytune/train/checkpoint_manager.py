"""Keeping a run's state: checkpoints are written, and taken up again."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from anytune.train.checkpoint import Checkpoint
from anytune.train.run_folder import RunFolder
from anytune.distributed.failure import PeerError, report


class CheckpointManager:
    """saved: the last good checkpoint, of step saved_step; None, 0 where there is none yet."""

    def __init__(self, trainee, folder: RunFolder, process_group, say: Callable[[str], None], keep: int):
        self.trainee, self.folder, self.process_group, self.say, self.keep = trainee, folder, process_group, say, keep
        self.saved: Path | None = None
        self.saved_step = 0

    def save(self, step: int, info: Callable[[], dict]) -> None:
        """Write a checkpoint of `step`.

        info(), called by rank 0: what goes into it, see checkpoint.py. Failures are reported, training goes on.
        """
        self._same_everywhere(step)
        made = self.process_group.on_rank0(lambda: self._write(step, info))
        if made is not None:  # on the other ranks, too
            self.saved, self.saved_step = Path(made), step

    def _write(self, step: int, info: Callable[[], dict]) -> str | None:
        if not self.sound():
            return None  # the next step will say so; the last good checkpoint stays the last
        folder, facts = self.folder.checkpoints, info()
        try:
            made = ckpt.save(folder, step, self.trainee.state(), facts, self.folder.best if facts["best"] else None)
        except OSError as error:
            kept = f"the one of step {self.saved_step} is kept" if self.saved else "there is none yet"
            self.say(f"The checkpoint of step {step} cannot be written to {folder}: {why(error)}; {kept}.")
            return None
        # before the others hear of it, as they may be gone, and before the one that was named so far is removed
        self.saved, self.saved_step = made, step
        report("saved", str(made))
        ckpt.prune(folder, self.keep, made)
        return str(made)

    def _same_everywhere(self, step: int) -> None:
        """Every rank has made the same update from the same sums: if not, its hardware or software is at fault."""
        if self.process_group.size == 1:
            return
        state = self.trainee.state()
        check = zlib.crc32(b"".join(zlib.crc32(state[name]).to_bytes(4, "big") for name in sorted(state)))
        if self.process_group.any(self.process_group.minimum(check) != check):
            kept = f" The last good checkpoint is {self.saved}." if self.saved else ""
            text = (
                f"After step {step} the processes' parameters differ, so training stopped: their machines compute "
                f"differently; use the same GPU model and software versions everywhere.{kept}"
            )
            raise UserError(text) if self.process_group.rank == 0 else PeerError(text)

    def sound(self) -> bool:
        """No NaN or infinity in the state; by sums, which carry either on and take no memory."""
        return all(math.isfinite(array.sum(dtype=np.float64)) for array in self.trainee.state().values())

    def restore(self, found: Checkpoint | None) -> None:
        """Begin in the state of `found`. A process group begins in rank 0's state, with or without one."""
        if found is not None or self.process_group.size > 1:
            from_file = found is not None and self.process_group.rank == 0
            state = found.tensors() if from_file else self.trainee.state()
            self.trainee.load_state(self.process_group.broadcast_arrays(state))


def why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
