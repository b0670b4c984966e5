"""The third part of a run: training, and the errors of one that ends early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anytune.distributed.process_group import SingleProcess
from anytune.distributed.failure import WorkerLost, launched
from anytune.errors import UserError
from anytune.train.callbacks import Calls
from anytune.train.outcome import Result
from anytune.train.planning import Planned
from anytune.train.prepare import Prepared
from anytune.train.progress import Console
from anytune.train.trainer import Trainer


def execute(
    prepared: Prepared,
    planned: Planned,
    calls: Calls,
    watch: Callable[[Any, int], None] | None,
    process_group: SingleProcess,
    console: Console,
) -> Result:
    """Train to the end, or until it is stopped. What ends it otherwise, a lost process, a full disk or a device without
    memory, is a UserError (WorkerLost) that says which checkpoint is left."""
    trainer = Trainer(
        planned.trainee,
        prepared.train_set,
        prepared.val_set,
        prepared.settings,
        planned.run,
        run_id=planned.run_id,
        identity=planned.identity,
        engine=planned.engine,
        resume=planned.resume,
        console=console,
        calls=calls,
        watch=watch,
        steps=planned.steps,
        product=planned.product,
        process_group=process_group,
    )
    ended = f"The run in {planned.run.path} had to stop"
    try:
        return trainer.run()
    except WorkerLost as error:
        kept = (
            f"the last checkpoint is {trainer.checkpoints.saved}, and the same command with --resume-from auto "
            "continues from it, with any number of processes"
            if trainer.checkpoints.saved
            else "there is no checkpoint yet"
        )
        lost = WorkerLost(f"{ended}, as {error}; {kept}.")
        if not launched():  # said at once: torchrun is about to end this process too
            console.say(str(lost))
            lost.told = console.stream is not None
        raise lost from None
    except OSError as error:
        kept = f"; the last good checkpoint is {trainer.checkpoints.saved}" if trainer.checkpoints.saved else ""
        raise UserError(f"{ended}: {error}{kept}.") from None
    except RuntimeError as error:
        what = prepared.model.engine.explain(error, planned.trainee.estimate.peak_bytes)
        if what is None:
            raise
        saved = trainer.checkpoints.saved
        kept = f"The last good checkpoint is {saved}." if saved else "There is no checkpoint yet."
        raise UserError(f"{ended}. {what} {kept}") from None
