"""Before step 1: what will be trained, with what time and memory, and proof that it can be saved."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np

from anytune.errors import UserError
from anytune.files import try_writing
from anytune.train.steps import Steps
from anytune.train.progress import duration, size
from anytune.train.settings import TrainSettings

STATE = 16  # bytes of a trained parameter: itself, its gradient, two moments


def report(trainee, steps: Steps, val, settings: TrainSettings, flops_per_second: float) -> str:
    """A few lines for people: parameters, examples, steps, time, memory."""
    held = f"{len(val):,} more for validation" if val is not None else "no validation data"
    epochs, estimate = len(steps.epoch_steps), getattr(trainee, "estimate", None)
    lines = [
        f"Training: {trainee.n_parameters:,} parameters in {len(trainee.names)} tensors, on {len(steps.dataset):,} "
        f"examples ({held})",
        f"Steps: {steps.total:,} in {epochs} epoch{'s' * (epochs > 1)}, up to {steps.per_step} × {settings.ubatch} "
        f"tokens, learning rate {settings.lr:g} ({settings.scheduler})",
    ]
    if flops := getattr(estimate, "flops_per_token", 0):
        seconds = flops * steps.tokens / flops_per_second
        lines[-1] += f": about {duration(seconds)} (a rough estimate, refined after step 1)"
    if estimate is not None:
        how = getattr(estimate, "text", "")
        lines.append(f"Memory: about {size(estimate.peak_bytes)}{f' ({how})' if how else ''}")
    if settings.checkpoint_save_dir:
        count = checkpoints_kept(settings, steps.total)
        each = sum(array.nbytes for array in trainee.state().values())
        lines.append(
            f"Checkpoints: up to {count:,} of {size(each)} each in {settings.checkpoint_save_dir} "
            f"({size(count * each)}; --keep-checkpoints changes it)"
        )
    return "\n".join(lines)


def experts(trainee) -> str | None:
    """That a mixture's experts are frozen, and what it would take to train them too; None where they are not."""
    from anytune.model.lora import frozen_experts

    lora = getattr(trainee, "lora", None)
    if lora is None:
        return None
    left = frozen_experts(trainee.model.gguf, trainee.config, trainee.names, lora.rank)
    if not left:
        return None
    return (
        f"Experts: frozen; --lora-modules all,experts trains them too ({left:,} more parameters, "
        f"{size(STATE * left)} of memory)"
    )


def checkpoints_kept(settings: TrainSettings, steps: int) -> int:
    """How many checkpoints of a run of so many steps will lie on the disk in the end."""
    every = settings.checkpoint_save_steps
    return min(settings.kept, (steps // every if every else 0) + 1)


def check_writable(folder: Path, flags: str) -> Path:
    """The folder itself, or the nearest above it that exists. Raises UserError unless files can be made there."""
    place = folder.resolve()
    place = next((above for above in (place, *place.parents) if above.exists()), place)
    try:
        try_writing(place)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}; set {flags}.") from None
    return place


def check_disk(trainee, product, folders: list[Path], settings: TrainSettings, steps: int, output: Path | None) -> None:
    """Raise UserError if checkpoints and what is made (see product.py) will not fit on their disks.

    folders: where the run and its checkpoints will be (they need not exist yet). steps: of the whole run.
    """
    state = sum(array.nbytes for array in trainee.state().values())
    made = product.nbytes()
    run, checkpoints = folders
    wants = [
        (checkpoints, state * (checkpoints_kept(settings, steps) + 1), "--checkpoint-save-dir or --keep-checkpoints"),
        (run, 3 * made, "--run-dir"),
    ]
    if output is not None:
        wants.append((output.resolve().parent, made, product.flag))
    needed: dict[int, int] = {}
    for folder, amount, flag in wants:
        folder = check_writable(folder, flag)
        try:
            disk = os.stat(folder).st_dev
            free = shutil.disk_usage(folder).free
        except OSError:
            continue
        needed[disk] = needed.get(disk, 0) + amount + (1 << 20)
        if needed[disk] > free:
            raise UserError(
                f"{folder} has {size(free)} free, and this run needs about {size(needed[disk])} there: free some "
                f"space, or set {flag}."
            )


def save_adapter(adapter, path: Path, gguf=None) -> None:
    """Write a GGUF adapter (path ends in .gguf) or a peft folder (any other name; gguf: the base file)."""
    if path.suffix.lower() == ".gguf":
        adapter.save(path)
    else:
        adapter.save_peft(path, gguf)


def _same(one, two) -> bool:
    """Whether two pairs (a, b) are equal but for ranks that are zero, which are not written and whose share b takes."""
    from anytune.adapter.adapter import without_zeros

    (a, b), (a2, b2) = without_zeros(*one), without_zeros(*two)
    return np.array_equal(a, a2) and b.shape == b2.shape and np.allclose(b, b2, rtol=1e-6, atol=0)


def trial_save(adapter, path: Path, load, gguf=None) -> None:
    """Write the untrained adapter beside `path` and read it back, so that saving cannot fail after hours.

    load(path) -> adapter with .tensors. Nothing stays. Raises UserError saying what is wrong with the place, which
    files.check_output() has found fit for a file or a folder.
    """
    path = path.resolve()
    trial = path.parent / f".anytune-trial-{os.getpid()}{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try_writing(path.parent)
        save_adapter(adapter, trial, gguf)
        again = load(trial)
        for name, pair in adapter.tensors.items():
            if not _same(pair, again.tensors[name]):
                raise UserError(
                    f"The adapter's {name} reads back differently than it was written to {path.parent}: the disk "
                    "may be faulty."
                )
        if set(again.tensors) != set(adapter.tensors):
            raise UserError(f"The adapter reads back differently than it was written to {path.parent}.")
    except OSError as error:
        raise UserError(
            f"The adapter cannot be saved to {path}: {error.strerror or error}; choose another --output-adapter."
        ) from None
    finally:
        if trial.is_dir():
            shutil.rmtree(trial, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                trial.unlink()
