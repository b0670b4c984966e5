"""The last part of a run: saving its result where requested, and the closing messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.train.folders import taken
from anytune.train.outcome import Result, Run
from anytune.train.planning import Planned
from anytune.train.progress import size
from anytune.train.run_folder import RunFolder

if TYPE_CHECKING:
    from anytune.distributed.process_group import SingleProcess

ROOM = 100 << 20  # bytes of a run's folder that are worth a word


def deliver(
    result: Result,
    planned: Planned,
    output: Path | None,
    engine: Any,
    process_group: SingleProcess,
    say: Callable[[str], None],
) -> Run:
    """Write the result to `output` as well (None: it stays in the run's folder alone). engine: what trained, whose
    memory is let go. Raises UserError."""
    peak = engine.peak()
    if peak:
        say(f"Memory: {size(peak)} at most, {size(planned.trainee.estimate.peak_bytes)} estimated")
    engine.release()
    if output is not None and result.path is not None:
        process_group.on_rank0(lambda: _write(planned.product, result.path, output))
    if result.timing is not None:
        say(result.timing.text())
    say(_ending(result, output, planned.product))
    process_group.on_rank0(lambda: _tell_room(planned.run, result, say))
    return Run(**{field.name: getattr(result, field.name) for field in dataclasses.fields(Result)}, output=output)


def _write(product: Any, made: Path, output: Path) -> None:
    try:
        product.deliver(made, output)
    except OSError as error:
        raise UserError(
            f"The {product.noun} cannot be written to {output}: {error.strerror or error}; it is kept as {made}."
        ) from None


def _ending(result: Result, output: Path | None, product: Any) -> str:
    steps = f"after step {result.step} of {result.total_steps}"
    head = {
        "finished": f"Finished {steps}.",
        "early": f"Stopped {steps}: validation no longer improved.",
        "interrupted": f"Interrupted {steps}.",
        "callback": f"Stopped {steps}: requested by a callback.",
    }[result.stopped]
    parts = [head]
    if result.best:
        parts.append(f"Best validation loss {result.best['val_loss']:.4f} at step {result.best['step']}.")
    if result.path is not None:
        parts.append(f"{product.noun.capitalize()}: {output or result.path}")
    if result.stopped in ("interrupted", "callback"):
        where = result.checkpoint or "auto"
        parts.append(
            f"Continue with the same command and --resume-from {where}"
            if result.checkpoint
            else "No step was completed, so nothing was saved."
        )
    return "\n".join(parts)


def _tell_room(run: RunFolder, result: Result, say: Callable[[str], None]) -> None:
    """Say what a finished run leaves on the disk, if that is much."""
    inside, whole = taken(run.checkpoints), taken(run.path)
    if result.stopped not in ("finished", "early") or max(inside, whole) < ROOM:
        return
    own = run.checkpoints.parent.resolve() == run.path.resolve()
    stopped = "--stopped " if result.stopped == "early" else ""
    say(
        f"{run.path} takes {size(whole)}, {size(inside)} of it checkpoints: `anytune runs clean {stopped}{run.path}` "
        "removes them"
        if own
        else f"The checkpoints in {run.checkpoints} take {size(inside)}: remove them if you do not want to continue"
    )
