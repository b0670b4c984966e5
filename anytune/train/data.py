"""The data sets of a run: read, tokenized, and rendered on the date on which the run began.

A template may print the date. A run that goes on tomorrow must see the same tokens, so its date is a part of it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anytune.text.dataset import beyond
from anytune.text.reading import reads_once
from anytune.train.resume import recorded_dates
from anytune.train.settings import TrainSettings
from anytune.train.team import Solo

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate, Dataset
    from anytune.train.progress import Console

_DATES = 8  # of runs that may be meant, at most


def read_sets(model: Model, template: ChatTemplate, data: Sequence, val_file: Sequence, val_split: float,
              options: dict[str, Any], settings: TrainSettings, team: Solo,
              console: Console) -> tuple[tuple[Dataset, Dataset | None], ChatTemplate]:
    """((training set, validation set or None), the template with the date of the run). Raises UserError.

    options: build_dataset's. Where a run is continued, its own date is the one that makes its data again.
    """
    recorded = team.lead(lambda: recorded_dates(settings, model.gguf.sha256())) if settings.resume_from else []
    dates = [(date, data) for date, data in recorded[:_DATES] if _date(date)]
    if settings.resume_from in (None, "auto") or not dates:
        dates.append((team.spread(template.today.isoformat()), None))
    if any(map(reads_once, (*data, *val_file))):
        dates = dates[:1]  # a pipe gives its data only once
    for date, wanted in dates:
        dated = template.at(_date(date)) if len(dates) > 1 or recorded or team.size > 1 else template
        sets, said = _build(model, dated, data, val_file, val_split, options, settings)
        if not dated.tells_date or wanted in (None, sets[0].fingerprint):
            break
    for sentence in (*said, beyond([part for part in sets if part is not None], model.config.context)):
        if sentence:
            console.say(sentence)
    return sets, dated


def _date(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _build(model, template, data, val_file, val_split: float, options: dict, settings: TrainSettings):
    """((training set, validation set or None), sentences for the user)."""
    from anytune.text import build_dataset

    said: list[str] = []

    def build(paths, verb: str) -> Dataset:
        built = build_dataset(paths, model.tokenizer, template, context=settings.context, **options)
        said.append(f"{verb} {built.report['learned']}")
        said.extend(built.report.get("notes", ()))
        return built

    train_set = build(data, "Learns")
    if val_file:
        return (train_set, build(val_file, "Validates on")), said
    return (train_set.split(val_split, settings.seed) if val_split else (train_set, None)), said
