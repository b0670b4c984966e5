"""The whole job: model and data in, adapter or model and run folder out. `anytune train` and anytune.finetune call it.

train() returns a Run for every orderly end; Run.exit_code tells which. (finetune() for Python callers is in api.py.)
Started by torchrun (or anytune train --gpus), the processes train together: see together.py.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.adapter.adapter import Adapter
from anytune.distributed.environment import local_device
from anytune.errors import UserError
from anytune.text.given import sources
from anytune.train.callbacks import Calls
from anytune.train.deliver import deliver
from anytune.train.device import Place
from anytune.train.execute import execute
from anytune.train.inputs import Inputs, check_inputs, check_outputs
from anytune.train.outcome import Run
from anytune.train.planning import maker, plan
from anytune.train.prepare import prepare
from anytune.train.progress import Console
from anytune.train.resume import recorded_engine
from anytune.train.settings import FIELDS, TrainSettings
from anytune.train.together import joined

if TYPE_CHECKING:
    from anytune.model import Full, Lora, Model


def train(
    model: Model | str | os.PathLike,
    data,
    *,
    lora: Lora | None = None,
    adapter: Adapter | str | os.PathLike | None = None,
    full: Full | None = None,
    output: str | os.PathLike | None = None,
    output_type: str | None = "F16",
    val_file: str | os.PathLike | None = None,
    val_split: float = 0.0,
    loss: str = "auto",
    assistant_loss_only: bool = False,
    chat_template: str | os.PathLike | None = None,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    overflow: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    shard: bool = False,
    quiet: bool = False,
    callbacks: Any = None,
    progress: Callable[[dict], Any] | None = None,
    watch: Callable[[Any, int], None] | None = None,
    settings: TrainSettings | None = None,
    unset: Collection[str] = (),
    force: bool = True,
    words: Callable[[str], str] | None = None,
    **hyper: Any,
) -> Run:
    """Build the data set, train, save. Everything is written under the run's folder (see run_folder.py).

    model          a loaded Model, or a GGUF file's path (loaded with device, threads, memory)
    data           a path or a list of paths (-f), or an iterable of dicts (see anytune.text.given)
    lora           what to train; None: Lora() with the run's seed
    adapter        an adapter to continue from: an Adapter, or the path of one (--lora). Rank, alpha, modules and,
                   unless chat_template is given, the template are its own
    full           train these of the model's own tensors instead of an adapter
    output         where the result goes besides the run's folder: name.gguf, or (of an adapter) a peft folder's name
    output_type    of a model: a type as `anytune quantize` has them, None: each tensor's own
    val_file       validation data, or a list (--val-file); val_split: or a fraction of `data` (--val-split)
    loss           auto: of chats the assistant's words, of pairs the completion, running text whole; all: every token;
                   assistant: as auto, but running text is refused. assistant_loss_only=True is loss="assistant"
    chat_template (a file), format, columns, overflow: see anytune.text.build_dataset
    memory         bytes; threads: None: the cores that there are
    shard          with several processes: each holds a slice of the base, whatever would fit
    quiet          nothing on stderr (the log is kept); words: what is said goes through it
    callbacks      see callbacks.py; progress: called with each row of metrics
    watch          called with the trainee and the step, before the first step and at each checkpoint
    unset          names of settings out of defaults.OPEN that are chosen by the sizes of data and model
    force          replace an output that exists
    settings       a TrainSettings; or its fields as keywords: epochs=2, lr=1e-4, resume_from="auto", …

    With torchrun's environment this process joins the others; all must be given the same. Process 0 writes the files,
    says what is to be said and calls progress; `device` "cuda" is each one's own.

    Returns a Run. Raises UserError for whatever the caller can mend, WorkerLost if another process of the process
    group is gone.
    """
    settings, calls = _settings(settings, hyper), Calls(callbacks, progress)
    if assistant_loss_only and loss == "all":
        raise UserError('assistant_loss_only and loss="all" contradict each other: give one of them.')
    inputs = Inputs(
        data=sources(data),
        val_file=sources(val_file) if val_file is not None else [],
        val_split=val_split,
        chat_template=chat_template,
        loss="assistant" if assistant_loss_only else loss,
        format=format,
        columns=columns,
        overflow=overflow,
    )
    check_inputs(inputs, settings)
    check_outputs(
        output,
        settings,
        getattr(getattr(model, "gguf", None), "path", model),
        inputs.data,
        inputs.val_file,
        None if isinstance(adapter, Adapter) else adapter,
        chat_template,
        force,
    )
    _check_kind(full, lora, adapter, shard)
    model, output = _opened(model, device, threads, memory), Path(output) if output is not None else None
    record = inputs.record() | {"model": model.gguf.path, "output": output, "output_type": output_type}
    with joined(model, shard) as group, Console(quiet=quiet or group.rank > 0, words=words) as console:
        prepared = prepare(model, inputs, lora, adapter, full is not None, settings, unset, group, console)
        recorded = group.on_rank0(lambda: recorded_engine(prepared.settings, prepared.identity))
        with Place(model, recorded, full is not None) as place:
            make = maker(lora, full, output_type)
            planned = plan(prepared, make, place, threads, output, record, group, console.say)
            result = execute(prepared, planned, calls, watch, group, console)
            made = deliver(result, planned, output, model.engine, group, console.say)
        if calls.error is not None:
            raise calls.error
    return made


def _settings(settings: TrainSettings | None, hyper: dict[str, Any]) -> TrainSettings:
    unknown = sorted(set(hyper) - set(FIELDS))
    if unknown:
        raise UserError(f"finetune() has no option {unknown[0]!r}; training takes {', '.join(FIELDS)}.")
    return dataclasses.replace(settings, **hyper) if settings else TrainSettings(**hyper)


def _check_kind(full: Full | None, lora: Lora | None, adapter: Any, shard: bool) -> None:
    if full is not None and (lora is not None or adapter is not None):
        raise UserError("Train an adapter or the model itself (--full), not both in one run.")
    if full is not None and shard:
        raise UserError("--shard splits a frozen base, but with --full the base is trained: omit it.")


def _opened(model: Any, device: str, threads: int | None, memory: int | None) -> Model:
    if not isinstance(model, (str, os.PathLike)):
        return model
    from anytune.model import load

    return load(model, device=local_device(device), threads=threads, memory=memory)
