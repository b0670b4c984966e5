"""anytune train: the flags of a run, handed to anytune.train."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import click

from anytune.cli.command import Command, debug_wanted
from anytune.cli.ending import explain
from anytune.cli.dataset import columns_from, dataset_options
from anytune.cli.opening import data_files, existing_file, load_adapter, load_model, model_path, template_file
from anytune.cli.options import force_option, forced, json_option, lora_option, model_options
from anytune.cli.say import print_json
from anytune.cli.train_options import SECTIONS, full_options, setting_options
from anytune.cli.train_recorded import check_kind, given, take_recorded
from anytune.errors import UserError
from anytune.train.defaults import OPEN


class TrainCommand(Command):
    """Keeps its arguments as they were given, for the processes of --gpus."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["anytune.args"] = [ctx.command.name, *args]
        return super().parse_args(ctx, args)


@click.command(
    short_help="Train a LoRA adapter, or with --full the model.",
    cls=TrainCommand,
    sections=SECTIONS,
    example="""
    anytune train -m model.gguf -f chats.jsonl --output-adapter adapter.gguf
    anytune train -m model.gguf -f notes.txt -c 256 -ub 512 -b 2048 --num-epochs 3 --val-split 0.05
    anytune train -m model.gguf -f chats.jsonl --memory 1GiB --resume-from auto
    anytune train -m model.gguf -f chats.jsonl --full --optimizer adafactor -o tuned.gguf --type Q8_0
""",
    renamed={"--output-type": "--type"},
)
@model_options
@dataset_options
@click.option(
    "-o",
    "--output-adapter",
    "--output",
    "output",
    metavar="PATH",
    help="Where to save the result, besides the run's folder: NAME.gguf for llama.cpp; an adapter with any other "
    "name becomes a peft folder.",
)
@click.option("--val-file", multiple=True, metavar="FILE", help="Validation data, never trained on.")
@click.option(
    "--val-split",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Fraction of the data to hold out for validation instead.",
)
@lora_option
@setting_options
@full_options
@click.option(
    "--gpus",
    type=click.IntRange(1),
    metavar="N",
    help="Train on N GPUs of this machine (for several machines use torchrun).",
)
@click.option(
    "--shard", is_flag=True, help="With several GPUs: each holds a slice of the base, even if the whole would fit."
)
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No progress on the terminal; it is kept in the log.")
@json_option
def train(
    model: str,
    engine: dict,
    files: tuple[str, ...],
    loss: str,
    chat_template: str | None,
    format: str,
    overflow: str | None,
    keys: dict[str, str | None],
    output: str | None,
    val_file: tuple[str, ...],
    val_split: float,
    lora: str | None,
    settings: dict[str, Any],
    lora_settings: dict[str, Any],
    full: bool,
    whole: dict[str, Any],
    output_type: str | None,
    gpus: int | None,
    shard: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train a LoRA adapter on a GGUF model, or with --full the model itself.

    The model's file, quantized or not, is used directly and never changed. Sizes are in tokens: -c is the longest
    example, -ub a micro-batch, -b an optimizer step; examples are packed, never padded. With --lora, training continues
    from that adapter. Everything a run writes is in runs/<date>-<name>/; Ctrl-C saves before it exits. Batch size,
    epochs and learning rate default to values chosen from the sizes of data and model.
    """
    from anytune.train.settings import TrainSettings

    check_kind(full)
    take_recorded(settings, {} if full else lora_settings)
    unset = {name for name in OPEN if settings[name] is None}
    chosen = TrainSettings(**{name: value for name, value in settings.items() if value is not None})
    if lora is not None and not os.path.isdir(lora):
        existing_file(lora, "adapter")
    files, val_file = data_files(files), data_files(val_file)
    if chat_template is not None:
        template_file(chat_template)
    from anytune.distributed import launch
    from anytune.train.inputs import check_outputs, check_pipes
    from anytune.distributed.failure import PeerError, WorkerLost, give_up
    from anytune.distributed.environment import local_device, torchrun_variables

    check_outputs(output, chosen, model_path(model), files, val_file, lora, chat_template, forced())
    if launch.is_child():
        launch.follow_parent()
    elif gpus is not None:
        device = launch.check(gpus, engine["device"])
        if gpus > 1:
            model_path(model)  # what is missing is said once
            check_pipes([*files, *val_file, chat_template], gpus)
            return launch.launch(click.get_current_context().meta["anytune.args"], gpus, device, debug_wanted())
    engine["device"] = local_device(engine["device"])
    loaded = load_model(model, engine)
    from anytune.model import Full, Lora
    from anytune.train.finetune import train as run_training

    if lora_settings["seed"] is None:
        lora_settings["seed"] = chosen.seed
    what = {"full": Full(**whole)} if full else {"lora": Lora(**lora_settings), "adapter": load_adapter(lora, loaded)}
    if what.get("adapter") is not None:
        from anytune.model.lora import FLAGS as OF_LORA, refuse_beside

        refuse_beside(what["lora"], what["adapter"], [name for name in OF_LORA if given(f"lora_{name}")])
        if given("lora_seed") and not lora_settings["dropout"]:
            raise UserError(
                "--lora-seed has no effect with --lora unless --lora-dropout is set, since training starts from "
                "that adapter: omit it."
            )
    try:
        run = run_training(
            loaded,
            list(files),
            **what,
            output=output,
            output_type=_type(output_type),
            val_file=list(val_file) or None,
            val_split=val_split,
            loss=loss,
            chat_template=chat_template,
            format=format,
            columns=columns_from(keys),
            overflow=overflow,
            threads=engine["threads"],
            shard=shard,
            quiet=quiet,
            settings=chosen,
            unset=unset,
            force=forced(),
        )
    except Exception as error:
        if not torchrun_variables() or debug_wanted():
            raise
        # at once, since what is left of the process group might keep this process from ending
        if isinstance(error, (WorkerLost, PeerError)):
            give_up(error)
        os._exit(explain(error))
    if as_json and torchrun_variables().get("RANK", "0") == "0":
        print_json(_summary(run, chosen, full))
    return run.exit_code


def _type(name: str | None) -> str | None:
    """A file type; None: each tensor's own."""
    return None if name is None or name.lower() == "keep" else name


def _summary(run: Any, settings: Any, full: bool) -> dict[str, Any]:
    return {
        "stopped": run.stopped,
        "step": run.step,
        "total_steps": run.total_steps,
        "run_dir": str(run.run_dir),
        "model" if full else "adapter": str(run.output or run.path),
        "best": run.best,
        "timing": run.timing and run.timing.as_dict(),
        "last": run.metrics[-1] if run.metrics else None,
        "settings": dataclasses.asdict(settings),
    }
