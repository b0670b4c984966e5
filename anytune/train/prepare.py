"""The first part of a run: data, template and settings, as far as they are known before anything is trained."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.distributed.process_group import SingleProcess
from anytune.train import defaults
from anytune.train.data import Sets, longest_of, read_sets
from anytune.train.inputs import Inputs
from anytune.train.product import read_adapter
from anytune.train.progress import Console
from anytune.train.resume import recorded
from anytune.train.settings import FULL_RATE, TrainSettings
from anytune.train.together import rhythm, same_job

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Lora, Model
    from anytune.text import ChatTemplate, Dataset


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is trained on. longest: tokens of the longest example. adapter: the one to continue from, or None.
    identity: what a run that continues this one must have alike (see checkpoint.py), but for the trainee."""

    model: Model
    adapter: Adapter | None
    template: ChatTemplate
    train_set: Dataset
    val_set: Dataset | None
    longest: int
    settings: TrainSettings
    identity: dict[str, Any]

    @property
    def template_source(self) -> str | None:
        """The template that the data went through; None: it was plain text, and is served as such."""
        chats = self.train_set.report.get("chats", 1)
        return getattr(self.template, "source", None) if chats else None


def prepare(
    model: Model,
    inputs: Inputs,
    lora: Lora | None,
    adapter: Adapter | str | os.PathLike | None,
    full: bool,
    settings: TrainSettings,
    unset: Collection[str],
    process_group: SingleProcess,
    console: Console,
) -> Prepared:
    """Read the data, on the date of the run that goes on, and choose the settings that are left open (`unset`).

    Raises UserError, also where another process was given something else.
    """
    adapter = _adapter(adapter, model, lora, console)
    template = _template(model, inputs.chat_template, adapter, console)
    candidates = functools.partial(_candidates, model, settings, unset, full)
    sets, template = read_sets(model, template, inputs, settings, candidates, process_group, console)
    possible, identity = candidates(sets), _identity(model, template, sets)
    settings = possible[process_group.on_rank0(lambda: recorded(possible, identity))]
    if said := defaults.sentence(settings, unset, sets[0].tokens, model.gguf.n_parameters):
        console.say(said)
    longest = longest_of(sets)
    settings, notes = settings.fitted(longest)
    for note in notes:
        console.say(note)
    known = identity(settings)
    same_job(process_group, known | {"settings": known["settings"] | rhythm(settings, model.engine, process_group)})
    return Prepared(model, adapter, template, *sets, longest, settings, known)


def plain(data: dict) -> dict:
    """The same as JSON has it, so that what is read back compares equal."""
    return json.loads(json.dumps(data, default=str))


def _identity(model: Model, template: ChatTemplate, sets: Sets) -> Callable[[TrainSettings], dict]:
    """What is known of a run's identity once its data is read, as a function of its settings."""
    train_set, val_set = sets
    known = {
        "base": model.gguf.sha256(),
        "data": train_set.fingerprint,
        "validation": val_set.fingerprint if val_set is not None else None,
    }
    if template.tells_date:
        known["date"] = template.today.isoformat()
    return lambda settings: plain(known | {"settings": settings.fitted(longest_of(sets))[0].exact()})


def _candidates(
    model: Model, settings: TrainSettings, unset: Collection[str], full: bool, sets: Sets
) -> list[TrainSettings]:
    """The settings that a run of these sets may have: what is left open chosen by their size, or as versions before
    had it, whose runs go on."""
    if not unset:
        return [settings]
    chosen = defaults.choose(settings, unset, sets[0].tokens, longest_of(sets), model.gguf.n_parameters, full)
    if full and "lr" in unset:
        settings = dataclasses.replace(settings, lr=max(FULL_RATE, settings.lr_min))
    return [chosen, settings]


def _adapter(adapter: Any, model: Model, lora: Lora | None, console: Console) -> Adapter | None:
    """The adapter to continue from, read where it is a path. Raises UserError for a lora beside it that asks for
    something else."""
    if isinstance(adapter, (str, os.PathLike)):
        adapter = read_adapter(Path(adapter), model.gguf)
        if (remark := adapter.other_base(model.gguf)) is not None:
            console.say(f"Note: {remark}")
    if adapter is not None and lora is not None:
        from anytune.model.lora import refuse_beside

        refuse_beside(lora, adapter)
    return adapter


def _template(model: Model, file: Any, adapter: Adapter | None, console: Console) -> ChatTemplate:
    """The template that the data goes through: the file's, else the one that the adapter was trained with, else the
    model's."""
    from anytune.text import ChatTemplate

    trained = adapter.chat_template if adapter is not None else None
    if file is not None:
        template = ChatTemplate.for_model(model.gguf, model.tokenizer, file=file)
        if trained and trained != template.source:
            console.say(
                f"Note: the adapter was trained with a different chat template than {file}, which is used from now on"
            )
        return template
    if trained is None or trained == model.template.source:
        return model.template
    console.say("Using the adapter's chat template, which differs from the model's own")
    return ChatTemplate(trained, model.tokenizer, origin="adapter")
