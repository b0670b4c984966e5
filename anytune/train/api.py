"""finetune() as Python calls it: every argument by name and type, any iterable as data, callbacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import public
from anytune.words import python_words
from anytune.errors import UserError
from anytune.train.callbacks import Callbacks, Row
from anytune.train.defaults import OPEN
from anytune.train.settings import TrainSettings

if TYPE_CHECKING:
    from anytune.model import Full, Lora, Model
    from anytune.train.outcome import Run

FilePath = str | os.PathLike
Data = str | os.PathLike | Iterable
SYNONYMS = {  # names of other libraries, and of versions before
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_length": "context",
    "max_seq_length": "context",
    "lr_scheduler_type": "scheduler",
    "lr_scheduler": "scheduler",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "save_steps": "checkpoint_save_steps",
    "eval_steps": "val_every",
    "save_total_limit": "keep_checkpoints",
    "resume_from_checkpoint": "resume_from",
    "train_dataset": "data",
    "eval_dataset": "val_data",
    "val_file": "val_data",
    "peft_config": "lora",
    "output_adapter": "output",
}


@public(SYNONYMS)
def finetune(
    model: Model | str | os.PathLike,
    data: Data,
    *,
    lora: Lora | None = None,
    adapter: AdapterLike = None,
    full: Full | bool | None = None,
    output: FilePath | None = None,
    output_type: str | None = "F16",
    force: bool = False,
    val_data: Data | None = None,
    val_split: float = 0.0,
    loss: Literal["auto", "assistant", "all"] = "auto",
    assistant_loss_only: bool = False,
    chat_template: FilePath | None = None,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    overflow: Literal["split", "truncate", "drop", "error"] | None = None,
    context: int = 512,
    ubatch: int = 512,
    batch: int | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    lr_min: float = 0.0,
    scheduler: Literal["constant", "linear", "cosine"] = "cosine",
    warmup_ratio: float = 0.03,
    warmup_steps: int | None = None,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    max_grad_norm: float = 1.0,
    seed: int = 42,
    val_every: int = 0,
    early_stop: int = 0,
    checkpoint_save_steps: int = 100,
    checkpoint_save_dir: FilePath | None = None,
    keep_checkpoints: int | None = None,
    resume_from: FilePath | None = None,
    report_to: str | Sequence[str] = "",
    run_name: str | None = None,
    run_dir: FilePath | None = None,
    device: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    shard: bool = False,
    quiet: bool = False,
    callbacks: Callbacks | Mapping | Sequence | object | None = None,
    progress: Callable[[Row], Any] | None = None,
) -> Run:
    """Train a LoRA adapter: `run = anytune.finetune(model, "chats.jsonl", epochs=2)`, then `run.adapter.save(path)`.

    model           a Model, or what anytune.load takes (opened with device, threads, memory)
    data            a file, a list of files, or an iterable of dicts, such as a `datasets` object: docs/data.md
    lora            Lora(rank=16, …), or peft's LoraConfig; without a seed of its own it begins by `seed`
    adapter         go on from this one: an Adapter, the path of one, a Run, or a list of these, which add up
    full            Full(…), or True for all: train the model's own weights instead, as `anytune train --full` does
    output          where the result goes besides the run's folder: name.gguf, or the name of a peft folder
    output_type     of a model: a type of `anytune quantize`, None: each tensor's own
    force           replace an output that exists
    val_data, val_split    what is never trained on: data of its own, or a fraction of `data`
    loss            auto: of chats the assistant's words, of pairs the completion, running text whole; all: every
                    token; assistant (or assistant_loss_only): as auto, and running text is refused
    chat_template, format, columns, overflow    how data is read: docs/data.md
    context, ubatch, batch    tokens of the longest example, of a micro-batch, of an optimizer step
    epochs, batch, learning_rate    None: by the sizes of data and model, and said before the first step
    scheduler … max_grad_norm       AdamW and its schedule; max_grad_norm 0 disables clipping
    val_every, early_stop           steps between evaluations (0: an epoch); evaluations without a better loss
    checkpoint_save_steps … run_dir    the run's folder: docs/run-folder.md. resume_from: a checkpoint, a run's folder
                    or "auto"
    memory          bytes, or such as "300MiB"
    shard           in several processes (torchrun): each holds a slice of the base
    quiet           nothing on stderr
    callbacks       Callbacks(on_step=…, on_evaluate=…, on_checkpoint=…), an object like it, or several; one that
                    returns False ends the run in good order
    progress        called with each step's row of metrics

    Returns a Run: adapter, path, metrics, stopped ("finished", "early" or "callback"). Raises UserError; and
    KeyboardInterrupt, whose .run is the Run, after checkpoint and result so far were written.
    """
    from anytune.memory import parse_bytes
    from anytune.model import Full
    from anytune.train.finetune import train

    if not (full is None or isinstance(full, bool | Full)):
        raise UserError(
            f"full is a {type(full).__name__}: give anytune.Full(…), or True for all of the model's weights."
        )
    whole = Full() if full is True else full or None
    sizes = {"batch": batch, "epochs": epochs, "max_steps": max_steps, "lr": learning_rate}
    settings = TrainSettings(
        **{name: value for name, value in sizes.items() if value is not None},
        context=context,
        ubatch=ubatch,
        lr_min=lr_min,
        scheduler=scheduler,
        warmup_ratio=warmup_ratio,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        max_grad_norm=max_grad_norm,
        seed=seed,
        val_every=val_every,
        early_stop=early_stop,
        checkpoint_save_steps=checkpoint_save_steps,
        checkpoint_save_dir=_text(checkpoint_save_dir),
        keep_checkpoints=keep_checkpoints,
        resume_from=_text(resume_from),
        report_to=report_to if isinstance(report_to, str) else ",".join(report_to),
        run_name=run_name,
        run_dir=_text(run_dir),
    )
    opened = _open(model, device, threads, parse_bytes(memory) if isinstance(memory, str) else memory)
    run = train(
        opened,
        data,
        lora=_lora(lora),
        adapter=adapter if isinstance(adapter, str | os.PathLike) else resolve(adapter, opened.gguf),
        full=whole,
        output=output,
        output_type=output_type,
        val_file=val_data,
        val_split=val_split,
        loss=loss,
        assistant_loss_only=assistant_loss_only,
        chat_template=chat_template,
        format=format,
        columns=columns,
        overflow=overflow,
        threads=threads,
        shard=shard,
        quiet=quiet,
        callbacks=callbacks,
        progress=progress,
        settings=settings,
        unset={name for name, value in zip(OPEN, (batch, epochs, learning_rate), strict=True) if value is None},
        force=force,
        words=python_words,
    )
    if run.stopped == "interrupted":
        stop = KeyboardInterrupt('training was interrupted; continue with resume_from="auto"')
        stop.run = run  # type: ignore[attr-defined]
        raise stop
    return run


def _text(path: FilePath | None) -> str | None:
    return None if path is None else os.fspath(path)


def _open(model: Any, device: str, threads: int | None, memory: int | None) -> Model:
    if isinstance(model, str | os.PathLike):
        from anytune.distributed.environment import local_device
        from anytune.hub.load import load

        return load(model, local_device(device), threads, memory)
    if not hasattr(model, "trainee"):
        raise UserError(f"model is a {type(model).__name__}: give what anytune.load returns, or takes.")
    return model


def _lora(given: Any) -> Lora | None:
    """A Lora, also of peft's LoraConfig."""
    from anytune.model import Lora

    if given is None or isinstance(given, Lora):
        return given
    if not (hasattr(given, "lora_alpha") and hasattr(given, "to_dict")):
        raise UserError(f"lora is a {type(given).__name__}: give anytune.Lora(rank=16), or peft's LoraConfig.")
    from anytune.adapter.settings import read_settings

    facts = {name: getattr(value, "value", value) for name, value in given.to_dict().items()}
    found = read_settings(facts, "The LoraConfig")
    for name in ("rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform"):
        if facts.get(name):
            raise UserError(f"The LoraConfig has {name}, which is not supported: omit it.")
    target = facts.get("target_modules") or "all"
    modules = target if isinstance(target, str) else ",".join(sorted(target))
    return Lora(found.rank, found.alpha, modules, found.rslora, dropout=float(facts.get("lora_dropout") or 0))
