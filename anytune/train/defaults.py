"""Batch, epochs and learning rate that a caller left open, from the sizes of data and model.

Two passes over a few chats in large steps are two or three updates, which change nothing. So small data gets smaller
steps and more passes, until there are STEPS of them, and small models the higher rates that they want.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from anytune.train.settings import FULL_RATE, TrainSettings
from anytune.units import quantity

OPEN = ("batch", "epochs", "lr")
STEPS = 50  # optimizer steps at least, if data and patience allow
PASSES = 50  # epochs at most
FEW = 20  # steps, below which little is learned
RATES = ((300e6, 1e-3), (800e6, 5e-4))  # (parameters below which, learning rate of an adapter)
RATE = 2e-4  # of larger models


def choose(
    settings: TrainSettings, unset: Iterable[str], tokens: int, longest: int, parameters: int, full: bool
) -> TrainSettings:
    """The settings with the fields of `unset` (names out of OPEN) chosen.

    tokens: of the training data; longest: of its longest example; parameters: of the model; full: they are trained.
    """
    unset, changes = set(unset), {}
    if "lr" in unset:
        changes["lr"] = FULL_RATE if full else next((rate for below, rate in RATES if parameters < below), RATE)
        changes["lr"] = max(changes["lr"], settings.lr_min)
    least = max(settings.ubatch, longest)  # of a step, in tokens
    if settings.max_steps is None:
        batch = settings.batch
        if "batch" in unset:
            while batch > least and steps_of(tokens, batch, least) * (settings.passes or 1) < STEPS:
                batch = max(least, batch // 2)
            changes["batch"] = batch
        if "epochs" in unset:
            each = steps_of(tokens, batch, least)
            changes["epochs"] = min(PASSES, max(settings.passes or 1, -(-STEPS // each)))
    return dataclasses.replace(settings, **changes)


def steps_of(tokens: int, batch: int, least: int) -> int:
    """Optimizer steps of one pass, about: micro-batches of `least` tokens are packed full."""
    return max(1, -(-tokens // (max(1, batch // least) * least)))


def sentence(settings: TrainSettings, unset: Iterable[str], tokens: int, parameters: int) -> str:
    """What was chosen, for the first lines of a run; "" if nothing was."""
    words = {
        "batch": f"-b {settings.batch}",
        "epochs": f"--num-epochs {settings.epochs}" if settings.epochs else "",
        "lr": f"--learning-rate {settings.lr:g}",
    }
    said = [words[name] for name in OPEN if name in unset and words[name]]
    if not said:
        return ""
    return f"Defaults: {', '.join(said)}, for {tokens:,} tokens of data and {quantity(parameters)} parameters"


def warning(steps: int, settings: TrainSettings) -> str:
    """A sentence if there are too few steps to learn much; else ""."""
    if steps >= FEW:
        return ""
    how = "Raise --max-steps" if settings.max_steps is not None else "Raise --num-epochs, lower -b"
    return f"Only {steps} optimizer step{'s' * (steps > 1)}: little will be learned. {how}, or add data."
