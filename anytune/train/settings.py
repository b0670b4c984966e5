"""Every hyper-parameter of a run, with its command-line flag, its default and its limits, as one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anytune.errors import UserError, did_you_mean

SCHEDULERS = ("constant", "linear", "cosine")
SINKS = ("tensorboard", "wandb")
EPOCHS = 2
FULL_RATE = 2e-5  # of a model's own weights: adapters want about ten times it
ALL = 1 << 62


def _flag(name: str, default: Any, *, exact: bool = True):
    """A field set by flag `name`; exact: a resumed run must have the same value to end in the same bytes."""
    return field(default=default, metadata={"flag": name, "exact": exact})


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Tokens are the unit of the three sizes; steps are optimizer steps.

    context, ubatch, batch   longest example, tokens of a micro-batch, tokens of an optimizer step (at most)
    epochs, max_steps        neither: 2 epochs; only max_steps: as many epochs as that takes; both: the first
    warmup_steps             None: warmup_ratio of all steps, rounded up
    val_every                evaluate every so many steps; 0: at the end of each epoch
    early_stop               stop after so many evaluations without a better validation loss; 0: never
    checkpoint_save_steps    0: only at the end and when interrupted
    keep_checkpoints         None: all with checkpoint_save_dir, else the last 2
    resume_from              a checkpoint, a run folder, or "auto" (the newest good one, or start over)
    report_to                names of SINKS, comma-separated

    Raises UserError, naming the flag, for a value that cannot work.
    """

    context: int = _flag("-c", 512)
    ubatch: int = _flag("-ub", 512)
    batch: int = _flag("-b", 2048)
    epochs: int | None = _flag("--num-epochs", None)
    max_steps: int | None = _flag("--max-steps", None)
    lr: float = _flag("--learning-rate", 2e-4)
    lr_min: float = _flag("--lr-min", 0.0)
    scheduler: str = _flag("--lr-scheduler", "cosine")
    warmup_ratio: float = _flag("--warmup-ratio", 0.03)
    warmup_steps: int | None = _flag("--warmup-steps", None)
    weight_decay: float = _flag("--weight-decay", 0.01)
    beta1: float = _flag("--adam-beta1", 0.9)
    beta2: float = _flag("--adam-beta2", 0.999)
    eps: float = _flag("--adam-eps", 1e-8)
    max_grad_norm: float = _flag("--max-grad-norm", 1.0)
    seed: int = _flag("--seed", 42)
    val_every: int = _flag("--val-every", 0)
    early_stop: int = _flag("--early-stop", 0)
    checkpoint_save_steps: int = _flag("--checkpoint-save-steps", 100, exact=False)
    checkpoint_save_dir: str | None = _flag("--checkpoint-save-dir", None, exact=False)
    keep_checkpoints: int | None = _flag("--keep-checkpoints", None, exact=False)
    resume_from: str | None = _flag("--resume-from", None, exact=False)
    report_to: str = _flag("--report-to", "", exact=False)
    run_name: str | None = _flag("--run-name", None, exact=False)
    run_dir: str | None = _flag("--run-dir", None, exact=False)

    def __post_init__(self):
        for name, (kind, holds, wanted) in LIMITS.items():
            value = getattr(self, name)
            if value is None and DEFAULTS[name] is None:
                continue
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
                object.__setattr__(self, name, value)
            good = isinstance(value, kind) and not isinstance(value, bool)
            if good and kind is float:
                good = math.isfinite(value)
            if not good or not holds(value):
                raise UserError(f"{FLAGS[name]} must be {wanted}, not {value!r}.")
        if self.lr_min > self.lr:
            raise UserError(f"--lr-min {self.lr_min:g} is above --learning-rate {self.lr:g}: lower it.")
        for sink in self.sinks:
            if sink not in SINKS:
                raise UserError(f"--report-to supports {' and '.join(SINKS)}, not {sink!r}.{did_you_mean(sink, SINKS)}")

    @property
    def sinks(self) -> list[str]:
        names = [name.strip() for name in self.report_to.split(",")]
        return [name for name in names if name and name != "none"]

    @property
    def passes(self) -> int | None:
        """Epochs at most; None: as many as max_steps takes."""
        return EPOCHS if self.epochs is None and self.max_steps is None else self.epochs

    @property
    def kept(self) -> int:
        """How many of the last checkpoints are kept."""
        return self.keep_checkpoints or (ALL if self.checkpoint_save_dir else 2)

    def exact(self) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint (JSON-able)."""
        return {name: getattr(self, name) for name in EXACT} | {"epochs": self.passes}

    def fitted(self, longest: int) -> tuple[TrainSettings, list[str]]:
        """Settings whose micro-batch holds the longest example and whose step holds a micro-batch.

        longest: tokens of the longest example. Returns the settings and one sentence for each change.
        """
        notes, changes = [], {}
        ubatch = max(self.ubatch, longest)
        if ubatch != self.ubatch:
            changes["ubatch"] = ubatch
            notes.append(
                f"-ub raised from {self.ubatch} to {ubatch}: the longest example must fit into a micro-batch (a "
                "lower -c would truncate it)."
            )
        if self.batch < ubatch:
            changes["batch"] = ubatch
            notes.append(
                f"-b raised from {self.batch} to {ubatch}: a step is at least one micro-batch of -ub tokens (a lower "
                "-ub makes smaller steps)."
            )
        elif self.batch % ubatch:
            notes.append(
                f"-b {self.batch} is not a multiple of -ub {ubatch}: a step is {self.batch // ubatch * ubatch}."
            )
        return (dataclasses.replace(self, **changes) if changes else self), notes


def _at_least(low: float, high: float = math.inf) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


#: name -> (type, condition, what the message asks for)
LIMITS = {
    "context": (int, _at_least(2, 2**31), "a whole number of tokens, from 2 to 2^31"),
    "ubatch": (int, _at_least(2, 2**31), "a whole number of tokens, from 2 to 2^31"),
    "batch": (int, _at_least(2, 2**31), "a whole number of tokens, from 2 to 2^31"),
    "epochs": (int, _at_least(1, 10**6), "a whole number, from 1 to a million"),
    "max_steps": (int, _at_least(1, 10**8), "a whole number, from 1 to a hundred million"),
    "lr": (float, lambda v: 0 < v < 10, "a number above 0 and below 10 (2e-4 is usual for adapters)"),
    "lr_min": (float, _at_least(0), "a number, at least 0"),
    "scheduler": (str, lambda v: v in SCHEDULERS, "one of " + ", ".join(SCHEDULERS)),
    "warmup_ratio": (float, lambda v: 0 <= v < 1, "a number from 0 up to, not including, 1"),
    "warmup_steps": (int, _at_least(0), "a whole number, at least 0"),
    "weight_decay": (float, lambda v: 0 <= v < 10, "a number from 0 up to 10"),
    "beta1": (float, lambda v: 0 <= v < 1, "a number from 0 up to, not including, 1"),
    "beta2": (float, lambda v: 0 <= v < 1, "a number from 0 up to, not including, 1"),
    "eps": (float, lambda v: 0 < v < 1, "a number between 0 and 1"),
    "max_grad_norm": (float, _at_least(0), "a number, at least 0 (0: no clipping)"),
    "seed": (int, lambda v: 0 <= v < 2**63, "a whole number from 0 up to 2^63"),
    "val_every": (int, _at_least(0), "a whole number of steps (0: at the end of each epoch)"),
    "early_stop": (int, _at_least(0), "a whole number of evaluations (0: off)"),
    "checkpoint_save_steps": (int, _at_least(0), "a whole number of steps (0: only at the end)"),
    "checkpoint_save_dir": (str, bool, "a folder"),
    "keep_checkpoints": (int, _at_least(1), "a whole number, at least 1"),
    "resume_from": (str, bool, "a folder or auto"),
    "report_to": (str, lambda v: True, "a comma-separated list of names"),
    "run_name": (
        str,
        lambda v: v and not set(v) & set('/\\:*?"<>|\0\n') and v[0] != ".",
        "a plain name without slashes",
    ),
    "run_dir": (str, bool, "a folder"),
}
FIELDS = {f.name: f for f in dataclasses.fields(TrainSettings)}
FLAGS = {name: f.metadata["flag"] for name, f in FIELDS.items()}
DEFAULTS = {name: f.default for name, f in FIELDS.items()}
EXACT = [name for name, f in FIELDS.items() if f.metadata["exact"]]
