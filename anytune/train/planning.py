"""The second part of a run: what is trained, on which engine, in how many steps, and into which folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune import __version__
from anytune.distributed.process_group import SingleProcess
from anytune.errors import UserError
from anytune.train import defaults, preflight
from anytune.train.checkpoint import Checkpoint
from anytune.train.device import Place
from anytune.train.steps import Steps
from anytune.train.prepare import Prepared, plain
from anytune.train.product import AdapterProduct, ModelProduct
from anytune.train.run_folder import SCHEMA, RunFolder
from anytune.train.together import open_together, same_job, share_cores

if TYPE_CHECKING:
    from anytune.model import Full, Lora

Made = tuple[Any, "AdapterProduct | ModelProduct"]  # what is trained, and what is made of it


@dataclasses.dataclass(frozen=True)
class Planned:
    """All that the loop is given. resume: the checkpoint to continue from, or None. identity and engine go into the
    checkpoints that are written."""

    trainee: Any
    product: AdapterProduct | ModelProduct
    steps: Steps
    run: RunFolder
    run_id: str
    resume: Checkpoint | None
    identity: dict[str, Any]
    engine: dict[str, Any]


def plan(
    prepared: Prepared,
    make: Callable[[Prepared], Made],
    place: Place,
    threads: int | None,
    output: Path | None,
    record: dict[str, Any],
    process_group: SingleProcess,
    say: Callable[[str], None],
) -> Planned:
    """make(prepared): the trainee and its product, on the engine of `place`. record: what settings.json says besides.

    Prints the plan, with time and memory. Raises UserError if it cannot work: no memory, no space on the
    disk, an output that cannot be written, a checkpoint of something else.
    """
    model, settings = prepared.model, prepared.settings
    steps = _steps(prepared, process_group, say)
    trainee, product = _made(prepared, make, place, threads, process_group)
    say(place.sentence())
    engine = model.engine.identity()
    if process_group.size > 1:
        engine |= {"processes": process_group.size}
        say(f"Processes: {process_group.size}, which share the micro-batches of each step")
    speed = process_group.size * model.engine.flops_per_second()
    say(preflight.report(trainee, steps, prepared.val_set, settings, speed))
    if prepared.adapter is None and (frozen := preflight.experts(trainee)):
        say(frozen)
    process_group.on_rank0(lambda: _try_places(trainee, product, steps, output, say))
    identity = prepared.identity | {"trainee": plain(trainee.spec)}
    same_job(process_group, identity)
    record = plain(
        record
        | {
            "schema": SCHEMA,
            "anytune": __version__,
            "settings": dataclasses.asdict(settings),
            "total_steps": steps.total,
            "data_report": prepared.train_set.report,
        }
    )
    run, run_id, found = open_together(process_group, settings, model.gguf.path.stem, identity, record, say)
    run.file = product.file
    say(f"Run folder: {run.path}")
    if output is None:
        process_group.on_rank0(lambda: say(f"Output: {product.trial(run.product)}"))
    return Planned(trainee, product, steps, run, run_id, found, identity, engine)


def maker(lora: Lora | None, full: Full | None, output_type: str | None) -> Callable[[Prepared], Made]:
    """plan()'s `make`: of an adapter, or with `full` of the model's own tensors."""

    def adapter(prepared: Prepared) -> Made:
        from anytune.model import Lora

        settings = prepared.settings
        trainee = prepared.model.trainee(
            (lora or Lora()).seeded(settings.seed),
            adapter=prepared.adapter,
            ubatch=settings.ubatch,
            context=prepared.longest,
        )
        return trainee, AdapterProduct(trainee, prepared.model.gguf, prepared.template_source)

    def model(prepared: Prepared) -> Made:
        trainee = prepared.model.full_trainee(full, ubatch=prepared.settings.ubatch, context=prepared.longest)
        return trainee, ModelProduct(trainee, prepared.model.gguf, prepared.template_source, output_type)

    return adapter if full is None else model


def _steps(prepared: Prepared, process_group: SingleProcess, say: Callable[[str], None]) -> Steps:
    settings = prepared.settings
    steps = Steps(prepared.train_set, settings)
    if few := defaults.warning(steps.total, settings):
        say(few)
    idle = process_group.size - steps.per_step
    if idle > 0:
        say(
            f"A step is {steps.per_step} × {settings.ubatch} tokens, so {idle} of {process_group.size} processes "
            f"are idle: raise -b to {process_group.size * settings.ubatch} or more, or lower -ub."
        )
    return steps


def _made(
    prepared: Prepared,
    make: Callable[[Prepared], Made],
    place: Place,
    threads: int | None,
    process_group: SingleProcess,
) -> Made:
    """Trainee and product on the engine that trains."""
    share_cores(prepared.model.engine, threads, process_group)
    try:
        return make(prepared)
    except UserError as error:
        place.retreat(error)
        share_cores(prepared.model.engine, threads, process_group)
        return make(prepared)


def _try_places(trainee: Any, product: Any, steps: Steps, output: Path | None, say: Callable[[str], None]) -> None:
    """Is there enough disk space, and can the result be saved where requested?"""
    settings = steps.settings
    home = Path(settings.run_dir or ".")
    folders = [home, Path(settings.checkpoint_save_dir or home)]
    preflight.check_disk(trainee, product, folders, settings, steps.total, output)
    if output is not None:
        say(f"Output: {product.trial(output)}")
