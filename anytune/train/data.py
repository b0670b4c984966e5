"""The data sets of a run: read, tokenized, and rendered on the date on which the run began.

A template may print the date. A run that goes on tomorrow must see the same tokens, so its date is a part of it.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anytune.text.dataset import beyond
from anytune.text.reading import reads_once
from anytune.train.inputs import Inputs
from anytune.train.resume import recorded_dates
from anytune.train.settings import TrainSettings
from anytune.distributed.process_group import SingleProcess

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate, Dataset
    from anytune.train.progress import Console

Sets = tuple["Dataset", "Dataset | None"]
_DATES = 8  # of runs that may be meant, at most


def read_sets(
    model: Model,
    template: ChatTemplate,
    inputs: Inputs,
    settings: TrainSettings,
    candidates: Callable[[Sets], list[TrainSettings]],
    process_group: SingleProcess,
    console: Console,
) -> tuple[Sets, ChatTemplate]:
    """((training set, validation set or None), the template with the date of the run). Raises UserError.

    candidates(sets): the settings that a run of them may have.
    Where a run is continued, its own date is the one that makes its data again.
    """
    recorded = (
        process_group.on_rank0(lambda: recorded_dates(settings, model.gguf.sha256())) if settings.resume_from else []
    )
    runs = [run for run in recorded if _date(run["date"])][:_DATES]
    if settings.resume_from in (None, "auto") or not runs:
        runs.append({"date": process_group.broadcast(template.today.isoformat())})  # a new one
    if any(map(reads_once, (*inputs.data, *inputs.val_file))):
        runs = runs[:1]  # a pipe gives its data only once
    for run in runs:
        dated = template if len(runs) == process_group.size == 1 and not recorded else template.at(_date(run["date"]))
        sets, said = _build(model, dated, inputs, settings)
        if not dated.tells_date or run is runs[-1] or _same(run, sets, candidates(sets)):
            break
    for sentence in (*said, beyond([part for part in sets if part is not None], model.config.context)):
        if sentence:
            console.say(sentence)
    return sets, dated


def longest_of(sets: Sets) -> int:
    """Tokens of the longest example."""
    return max(int(data.lengths.max()) for data in sets if data is not None)


def _same(run: dict, sets: Sets, candidates: list[TrainSettings]) -> bool:
    """Whether a recorded run had these sets, and one of these settings."""
    exact = [json.loads(json.dumps(one.fitted(longest_of(sets))[0].exact(), default=str)) for one in candidates]
    return run.get("data") == sets[0].fingerprint and run.get("settings") in exact


def _date(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _build(model: Model, template: ChatTemplate, inputs: Inputs, settings: TrainSettings) -> tuple[Sets, list[str]]:
    """((training set, validation set or None), sentences for the user)."""
    from anytune.text import build_dataset

    said: list[str] = []

    def build(paths, verb: str) -> Dataset:
        built = build_dataset(paths, model.tokenizer, template, context=settings.context, **inputs.options)
        said.append(f"{verb} {built.report['learned']}")
        said.extend(built.report.get("notes", ()))
        return built

    train_set = build(inputs.data, "Learns")
    if inputs.val_file:
        return (train_set, build(inputs.val_file, "Validates on")), said
    return (train_set.split(inputs.val_split, settings.seed) if inputs.val_split else (train_set, None)), said
