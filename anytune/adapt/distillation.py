"""Distilling: what a teacher says behind a prompt, with an adapter or as another file, becomes an adapter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.adapt import report
from anytune.adapt.answers import with_answers
from anytune.adapt.data import Context, Reading, judged, read, read_shots
from anytune.adapt.ending import Outputs, Result, check_outputs, finish
from anytune.adapt.fit import Recipe
from anytune.adapt.intermediate import Intermediate
from anytune.adapt.job import Settings, Task, Teacher, as_adapter, fingerprint, memory_peak, prepare, run_fit, truncated
from anytune.adapt.measure import measure
from anytune.adapt.partial import Partial
from anytune.adapt.ranks import costs, spread
from anytune.adapt.recording import Recorder, about
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.model import Model

PROMPTS = {"ridge": 0.1, "guard": 1.3, "steps": 15, "shaped": True}  # the teacher sees more than the student
WEIGHTS = {"ridge": 1e-3, "guard": 0.0, "steps": 0, "shaped": False}  # it is of other weights
SPLIT = 0.2
STEP_GUARD = 0.5  # of the guard: its weight in gradient steps, which are few and begin inside it


def distill(
    model: Model,
    data: Sequence[str | os.PathLike] | str | os.PathLike,
    *,
    system: str | None = None,
    shots: Sequence[str | os.PathLike] = (),
    teacher_adapter: Adapter | None = None,
    teacher_model: Model | None = None,
    rank: int = 16,
    ridge: float | None = None,
    guard: float | None = None,
    steps: int | None = None,
    reading: Reading | None = None,
    val_file: Sequence[str | os.PathLike] = (),
    val_split: float = SPLIT,
    seed: int = 42,
    settings: Settings | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """An adapter with which `model` says what the teacher says: itself behind a system message and shots (files of
    conversations), with another adapter, or another file of the same shape; or several of these together.

    ridge, guard, steps: None takes what suits the teacher (PROMPTS, WEIGHTS). val_file, val_split: what is held out.
    Returns a Result, whose adapter was written if outputs asks for it and it is a success. Raises UserError.
    """
    settings, outputs = settings or Settings(), outputs or Outputs()
    check_outputs(outputs, settings.resume)
    task, notes = distillation_task(
        model,
        data,
        system=system,
        shots=shots,
        teacher_adapter=teacher_adapter,
        teacher_model=teacher_model,
        reading=reading,
        val_file=val_file,
        val_split=val_split,
        seed=seed,
        settings=settings,
    )
    recipe, usual_steps = _recipe(model, task, rank, ridge, guard)
    steps = usual_steps if steps is None else steps
    settings = dataclasses.replace(settings, output=outputs.output)
    prepare(model, task.teacher.model)
    identity = fingerprint(model, [task], recipe, settings, **{"--steps": steps, "--lora-alpha": settings.alpha})
    template = reading.template.source if reading else model.template_source
    with Intermediate(outputs.intermediate, model, settings.resume) as kept:
        fitted = run_fit(model, [task], recipe, dataclasses.replace(settings, keep=kept.record), identity)
        made = as_adapter(model, fitted.pairs, settings.alpha, template)
        kept.sums(recipe, template)
        kept.adapter("closed-form", made)
    label, plain = f"closed form, rank {rank}", _plain(task, rank)
    closed_form = None
    if steps:
        from anytune.adapt.steps import gradient_steps, prompt_steps

        further = prompt_steps if task.teacher.context else gradient_steps
        closed_form, took = made, None
        made, took = further(model, task, made, steps, settings, seed=seed, guard=STEP_GUARD * recipe.guard)
        fitted.cpu, fitted.seconds = fitted.cpu + took["cpu"], fitted.seconds + took["seconds"]
        plain = {f"{label}, without steps": closed_form, **plain}
        label = f"closed form and {steps} steps, rank {rank}"
    found = measure(model, task, made, plain, settings)
    facts = {
        "command": "distill",
        "rank": rank,
        "ridge": recipe.ridge,
        "guard": recipe.guard,
        "steps": steps,
        "tokens": sum(e.own for e in task.examples),
        "examples": len(task.examples),
        "notes": notes,
        "raised": fitted.raised,
        "context_tokens": len(task.examples[0].behind) - len(task.examples[0].ids),
        "gaps": [layer.gap for layer in fitted.layers],
        **report.measured_facts(found),
        "took": {"cpu": fitted.cpu, "seconds": fitted.seconds, "peak": memory_peak(model)},
    }
    done = finish(model, made, facts, [found], outputs, label)
    if outputs.output is not None and done.success:
        Partial(outputs.output, identity).remove()
    return done


def collect(
    model: Model,
    data: Sequence[str | os.PathLike] | str | os.PathLike,
    output: str | os.PathLike,
    *,
    system: str | None = None,
    shots: Sequence[str | os.PathLike] = (),
    teacher_adapter: Adapter | None = None,
    teacher_model: Model | None = None,
    rank: int = 16,
    ridge: float | None = None,
    guard: float | None = None,
    reading: Reading | None = None,
    val_file: Sequence[str | os.PathLike] = (),
    val_split: float = SPLIT,
    seed: int = 42,
    settings: Settings | None = None,
    force: bool = False,
) -> Result:
    """As distill() without steps, but what is written to `output` are the sums that solve() needs, as a .npz. force:
    replace a file that is there."""
    settings = dataclasses.replace(settings or Settings(), output=output)
    if Path(output).suffix != ".npz":
        raise UserError(f"{output} must end in .npz: statistics are not an adapter yet.")
    check_outputs(Outputs(output, force=force), settings.resume)
    task, notes = distillation_task(
        model,
        data,
        system=system,
        shots=shots,
        teacher_adapter=teacher_adapter,
        teacher_model=teacher_model,
        reading=reading,
        val_file=val_file,
        val_split=val_split,
        seed=seed,
        settings=settings,
    )
    recipe, _ = _recipe(model, task, rank, ridge, guard)
    prepare(model, task.teacher.model)
    identity = fingerprint(model, [task], recipe, settings)
    template = reading.template.source if reading else model.template_source
    with Recorder(output, settings.resume) as recorder:
        fitted = run_fit(model, [task], recipe, dataclasses.replace(settings, keep=recorder.add), identity)
        made = as_adapter(model, fitted.pairs, None, template)
        found = measure(model, task, made, _plain(task, rank), settings)
        measured = report.measured_facts(found)
        if measured["success"]:
            recorder.pack(model.config.products(), {**about(model, recipe, template), "measured": measured})
    Partial(output, identity).remove()
    facts = {
        "command": "collect",
        "rank": rank,
        "ridge": recipe.ridge,
        "guard": recipe.guard,
        "notes": notes,
        "tokens": sum(e.own for e in task.examples),
        "raised": fitted.raised,
        **measured,
        "paths": [str(output)],
        "took": {"cpu": fitted.cpu, "seconds": fitted.seconds, "peak": memory_peak(model)},
    }
    return Result(made, facts, [found], f"solved, rank {rank}")


def _recipe(model: Model, task: Task, rank: int, ridge: float | None, guard: float | None) -> tuple[Recipe, int]:
    """(how the fit of a task runs, gradient steps behind it), by what suits the teacher where nothing is asked for."""
    usual = PROMPTS if task.teacher.context else WEIGHTS
    ridge, guard = usual["ridge"] if ridge is None else ridge, usual["guard"] if guard is None else guard
    shaped = usual["shaped"]
    return Recipe(rank, ridge, guard, relative=shaped, ranks=spread(costs(model), rank) if shaped else None), usual[
        "steps"
    ]


def distillation_task(
    model: Model,
    data: Any,
    *,
    system: str | None,
    shots: Sequence[str | os.PathLike],
    teacher_adapter: Adapter | None,
    teacher_model: Model | None,
    reading: Reading | None,
    val_file: Sequence[str | os.PathLike],
    val_split: float,
    seed: int,
    settings: Settings,
) -> tuple[Task, list[str]]:
    """(teacher and examples, notes for the user). UserError if there is no teacher, or none of the model's shape."""
    reading = reading or Reading(model.template)
    context = Context(system, read_shots(shots, reading))
    other = teacher_model or model
    if not context and teacher_adapter is None and same_file(model, other):
        raise UserError(
            "There is no teacher: give a prompt (--system-file, --shots), --teacher-lora or --teacher-model."
        )
    check_shape(model, other)
    if teacher_adapter is not None:
        teacher_adapter.check(other.gguf, "the teacher's adapter")
    teacher = Teacher(other, teacher_adapter, context)
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    with with_answers(teacher, paths, reading, settings.tell) as (paths, answered):
        examples, held = read(model, paths, reading, context, 0.0 if val_file else val_split, seed)
    if val_file:
        with with_answers(teacher, list(val_file), reading, settings.tell) as (others, _):
            held = read(model, others, reading, context)[0]
    held = judged(held)
    return Task(teacher, examples.examples, held.examples), [*examples.notes, *answered]


def same_file(model: Model, other: Model) -> bool:
    return other is model or model.gguf.path.samefile(other.gguf.path)


def check_shape(model: Model, other: Model) -> None:
    """UserError unless two models have the same layers, widths and tokens."""
    if other is model:
        return
    for what in ("architecture", "layers", "width", "heads", "n_kv_heads", "head_size", "hidden", "vocabulary"):
        one, two = getattr(model.config, what), getattr(other.config, what)
        if one != two:
            raise UserError(
                f"{other.gguf.path.name} does not have the student's shape ({what} {two}, and {one} in "
                f"{model.gguf.path.name}): use another file of the same model."
            )
    tokens = "tokenizer.ggml.tokens"
    if list(model.gguf.metadata.get(tokens, ())) != list(other.gguf.metadata.get(tokens, ())):
        raise UserError(
            f"{other.gguf.path.name} has a different vocabulary than {model.gguf.path.name}: use another file of "
            "the same model."
        )


def _plain(task: Task, rank: int) -> dict[str, Adapter]:
    """What one would do without activations: an adapter's truncated SVD."""
    adapter = task.teacher.adapter
    if adapter is None or task.teacher.context or rank >= adapter.rank:
        return {}
    return {f"truncated SVD, rank {rank}": truncated(adapter, rank)}
