"""anytune train and anytune finetune: the flags of a run as tables, handed to anytune.train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import click

from anytune.cli.common import (
    DEBUG,
    Command,
    data_files,
    debug_wanted,
    existing_file,
    force_option,
    forced,
    json_option,
    load_adapter,
    load_model,
    lora_option,
    model_options,
    model_path,
    note,
    print_json,
    template_file,
)
from anytune.cli.dataset import KEYS, columns_from, dataset_options
from anytune.errors import UserError
from anytune.train.defaults import OPEN
from anytune.train.settings import DEFAULTS, FLAGS, FULL_RATE

SETTINGS = (  # (field of TrainSettings, further names, type, help)
    ("context", ("--ctx-size", "--context"), int, "Tokens of the longest example."),
    ("ubatch", ("--ubatch-size",), int, "Tokens of a micro-batch: what is computed, and held in memory, at once."),
    (
        "batch",
        ("--batch-size",),
        int,
        "Tokens per optimizer step: micro-batches are accumulated up to it.  [default: 2048; less for small data]",
    ),
    ("epochs", ("--epochs",), int, "Passes over the data.  [default: 2; more for small data]"),
    ("max_steps", (), int, "Stop after this many optimizer steps."),
    (
        "lr",
        ("--lr",),
        float,
        "Peak learning rate.  [default: 2e-4; 5e-4 below 800 M parameters, 1e-3 below 300 M; 2e-5 with --full]",
    ),
    ("lr_min", (), float, "Final learning rate."),
    ("scheduler", (), str, "Learning-rate schedule after warm-up: constant, linear or cosine."),
    ("warmup_ratio", (), float, "Fraction of steps used for warm-up."),
    ("warmup_steps", (), int, "Number of steps used for warm-up, instead of a fraction."),
    ("weight_decay", ("-wd",), float, "AdamW weight decay."),
    ("beta1", (), float, "AdamW beta1."),
    ("beta2", (), float, "AdamW beta2."),
    ("eps", (), float, "AdamW epsilon."),
    ("max_grad_norm", (), float, "Clip gradients to this norm; 0 disables clipping."),
    ("seed", ("-s",), int, "Seeds shuffling, the adapter's initial values and dropout."),
    ("val_every", (), int, "Evaluate every N steps; 0: after each epoch."),
    ("early_stop", (), int, "Stop after N evaluations without a better validation loss; 0 disables."),
    ("checkpoint_save_steps", (), int, "Save a checkpoint every N steps; 0: only at the end and on Ctrl-C."),
    ("checkpoint_save_dir", (), str, "Folder for checkpoints.  [default: the run's folder]"),
    (
        "keep_checkpoints",
        (),
        int,
        "Keep this many of the latest checkpoints.  [default: 2; all with --checkpoint-save-dir]",
    ),
    (
        "resume_from",
        ("--resume",),
        str,
        "Continue from a checkpoint, a run's folder, or auto: the newest good checkpoint, else start anew.",
    ),
    ("report_to", (), str, "Also log to tensorboard, wandb, or both (comma-separated)."),
    ("run_name", (), str, "Name of the run's folder under runs/.  [default: the model's]"),
    ("run_dir", (), str, "The run's folder itself.  [default: runs/<date>-<name>]"),
)
LORA = (  # (field of Lora, flags, type, default, help)
    ("rank", ("--lora-rank",), int, 16, "Rank of the adapter's matrices."),
    ("alpha", ("--lora-alpha",), float, 32.0, "The adapter is scaled by alpha / rank."),
    (
        "modules",
        ("--lora-modules",),
        str,
        "all",
        "Linears to adapt, by exact name, with commas: attn_q, attn_k, attn_v, "
        "attn_o, ffn_gate, ffn_up, ffn_down, output; all is every one but output.",
    ),
    ("rslora", ("--rslora",), bool, False, "Scale by alpha / sqrt(rank) (rsLoRA)."),
    ("plus_ratio", ("--lora-plus-ratio", "--loraplus"), float, 1.0, "Learning rate of B over that of A (LoRA+)."),
    ("dropout", ("--lora-dropout",), float, 0.0, "Dropout on the adapter's input."),
    ("seed", ("--lora-seed",), int, None, "Seeds the adapter's initial values and dropout.  [default: --seed]"),
)


def _tables(command: Callable) -> Callable:
    import functools

    @functools.wraps(command)
    def gathered(*args: Any, auto_resume: bool, **kwargs: Any) -> Any:
        settings = {name: kwargs.pop(name) for name, *_ in SETTINGS}
        lora = {name: kwargs.pop(f"lora_{name}") for name, *_ in LORA}
        if auto_resume:
            settings["resume_from"] = settings["resume_from"] or "auto"
        return command(*args, settings=settings, lora_settings=lora, **kwargs)

    gathered = click.option("--auto-resume", is_flag=True, help="The same as --resume-from auto.")(gathered)
    for name, flags, kind, text in reversed(SETTINGS):
        default = None if name in OPEN else DEFAULTS[name]
        gathered = click.option(
            FLAGS[name], *flags, name, type=kind, default=default, help=text, show_default=default not in (None, "")
        )(gathered)
    for name, flags, kind, default, text in reversed(LORA):
        option: dict[str, Any] = {"type": kind, "show_default": default is not None}
        if kind is bool:
            option = {"is_flag": True}
        gathered = click.option(*flags, f"lora_{name}", default=default, help=text, **option)(gathered)
    return gathered


MODEL = (  # (parameter, flag, options, help)
    (
        "train_modules",
        "--train-modules",
        {"default": "all", "show_default": True},
        "What is trained, with commas: linears as --lora-modules names them, norm, embed, bias; all is everything.",
    ),
    (
        "train_layers",
        "--train-layers",
        {"type": click.IntRange(1), "metavar": "N"},
        "Of the layers only the last N; the embedding table then only if --train-modules names it.",
    ),
    (
        "optimizer",
        "--optimizer",
        {"type": click.Choice(["adamw", "adamw8bit", "adafactor"]), "default": "adamw", "show_default": True},
        "What it keeps a weight: adamw 8 bytes, adamw8bit 2, adafactor next to nothing.",
    ),
    (
        "output_type",
        "--type",
        {"default": "F16", "show_default": True, "metavar": "TYPE"},
        "Type of the model that is written, as `anytune quantize` has them, or keep: each tensor's own.",
    ),
)


def _model_options(command: Callable) -> Callable:
    """--full and what belongs to it; the command gets `whole` as the fields of Full."""
    import functools

    @functools.wraps(command)
    def gathered(*args: Any, train_modules: str, train_layers: int | None, optimizer: str, **kwargs: Any) -> Any:
        whole = {"modules": train_modules, "layers": train_layers, "optimizer": optimizer}
        return command(*args, whole=whole, **kwargs)

    for name, flag, options, text in reversed(MODEL):
        gathered = click.option(flag, name, help=text, **options)(gathered)
    return click.option(
        "--full",
        is_flag=True,
        help=f"Train the model's own weights, and write a model.  [default learning rate: {FULL_RATE:g}]",
    )(gathered)


_RUN = (
    "checkpoint_save_steps",
    "checkpoint_save_dir",
    "keep_checkpoints",
    "resume_from",
    "report_to",
    "run_name",
    "run_dir",
)
_SECTIONS = {
    **{name: "Model and device" for name in ("model", "device", "dtype", "threads", "memory", "gpus", "shard")},
    **{
        name: "Data"
        for name in (
            "files",
            "loss",
            "assistant_loss_only",
            "chat_template",
            "format",
            "overflow",
            "val_file",
            "val_split",
            *(f"{key}_key" for key in KEYS),
        )
    },
    **{name: "Adapter" for name in ("output", "lora", *(f"lora_{name}" for name, *_ in LORA))},
    **{name: "The model itself" for name in ("full", "output_type", "train_modules", "train_layers", "optimizer")},
    **{name: "Training" for name, *_ in SETTINGS if name not in _RUN},
    **{name: "Checkpoints and the run's folder" for name in (*_RUN, "auto_resume")},
}


class _Train(Command):
    """Keeps its arguments as they were given, for the processes of --gpus."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["anytune.args"] = [ctx.command.name, *args]
        return super().parse_args(ctx, args)


@click.command(
    cls=_Train,
    sections=_SECTIONS,
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
    help="Where the result goes besides the run's folder: NAME.gguf for llama.cpp; an adapter by another "
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
@_tables
@_model_options
@click.option(
    "--gpus",
    type=click.IntRange(1),
    metavar="N",
    help="Train on so many GPUs of this machine at once (several machines: torchrun).",
)
@click.option("--shard", is_flag=True, help="With several GPUs: each holds a slice of the base, whatever would fit.")
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No progress on the terminal; the log keeps it.")
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

    The model's file is used as it is, quantized or not, and is not changed. Sizes are counted in tokens: -c
    the longest example, -ub a micro-batch, -b an optimizer step; examples are packed, never padded. With
    --lora, training goes on from that adapter. Everything a run writes is in runs/<date>-<name>/; Ctrl-C
    saves before it exits. Batch, epochs and learning rate default from the sizes of data and model.
    """
    from anytune.train.settings import TrainSettings

    _check_kind(full)
    _take_recorded(settings, {} if full else lora_settings)
    unset = {name for name in OPEN if settings[name] is None}
    chosen = TrainSettings(**{name: value for name, value in settings.items() if value is not None})
    if lora is not None and not os.path.isdir(lora):
        existing_file(lora, "adapter")
    files, val_file = data_files(files), data_files(val_file)
    if chat_template is not None:
        template_file(chat_template)
    from anytune.distributed import launch
    from anytune.train.inputs import check_outputs, check_pipes
    from anytune.distributed.process_group import PeerError, WorkerLost, give_up, local_device, places

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

        refuse_beside(what["lora"], what["adapter"], [name for name in OF_LORA if _given(f"lora_{name}")])
        if _given("lora_seed") and not lora_settings["dropout"]:
            raise UserError(
                "--lora-seed cannot act beside --lora without --lora-dropout: the adapter's start is the "
                "other adapter. Leave it out."
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
        if not places() or debug_wanted():
            raise
        # at once, since what is left of the process group might keep this process from ending
        if isinstance(error, (WorkerLost, PeerError)):
            give_up(error)
        from anytune.cli.main import _explain

        os._exit(_explain(error))
    if as_json and places().get("RANK", "0") == "0":
        print_json(_summary(run, chosen, full))
    return run.exit_code


def _check_kind(full: bool) -> None:
    """Options of one kind of training are no use to the other: say so instead of ignoring them."""
    ctx = click.get_current_context()
    other = (
        [("lora", "--lora"), *((f"lora_{name}", flags[0]) for name, flags, *_ in LORA)]
        if full
        else [(name, flag) for name, flag, *_ in MODEL]
    )
    for name, flag in other:
        if _given(name):
            raise click.UsageError(
                f"{flag} is of "
                f"{'adapters, and --full trains the model itself' if full else '--full'}"
                f": leave it out{'' if full else ', or add --full'}",
                ctx,
            )


def _take_recorded(settings: dict[str, Any], lora_settings: dict[str, Any]) -> None:
    """A checkpoint that --resume-from names says what is not on the command line."""
    from anytune.train.resume import recorded_settings

    recorded, trained = recorded_settings(settings["resume_from"])
    if isinstance(trained.get("modules"), str):
        trained = trained | {"modules": _module_names(trained["modules"])}
    of_lora = {name: flags[0] for name, flags, *_ in LORA} if trained.get("kind") == "lora" else {}
    taken = []
    for into, found, flags, prefix in ((settings, recorded, FLAGS, ""), (lora_settings, trained, of_lora, "lora_")):
        for name, value in found.items():
            if name in into and name in flags and not _given(prefix + name) and into[name] != value:
                said = name != "seed" or into[name] is not None  # an adapter's seed is --seed where nothing is said
                into[name] = value
                taken += [f"{flags[name]} {value}"] if said else []
    if taken:
        note(f"from the checkpoint: {', '.join(taken)}")


def _module_names(tensors: str) -> str:
    """--lora-modules for the tensors that a checkpoint names; all where that is meant."""
    from anytune.model.lora import MODULES

    of = {tensor: module for module, tensor in MODULES.items()}
    ends = (name.removesuffix(".weight").rpartition(".")[2] for name in tensors.split(","))
    found = set(filter(None, map(of.get, ends)))
    everything = set(MODULES) - {"output"}
    return "all" if found == everything else ",".join(module for module in MODULES if module in found)


def _given(name: str) -> bool:
    """Whether an option is on the command line."""
    return click.get_current_context().get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


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


def _finetune(**options: Any) -> int:
    note("anytune finetune is now anytune train --full")
    return train.callback(
        full=True, lora=None, shard=False, **{f"lora_{name}": default for name, _, _, default, _ in LORA}, **options
    )


_OWN = {
    "output": click.Option(
        ["-o", "--output"], metavar="FILE", help="Where the model goes besides the run's folder: NAME.gguf."
    ),
    "lr": click.Option([FLAGS["lr"], "--lr", "lr"], type=float, help=f"Peak learning rate.  [default: {FULL_RATE:g}]"),
}
_OF_ADAPTERS = ("full", "lora", "shard", *(f"lora_{name}" for name, *_ in LORA))
finetune = _Train(
    "finetune",
    callback=_finetune,
    sections={**_SECTIONS, "output": "The model itself"},
    params=[_OWN.get(p.name or "", p) for p in train.params if p.name not in _OF_ADAPTERS and p is not DEBUG],
    short_help="The same as train --full.",
    renamed={"--output-type": "--type"},
    hidden=True,  # anytune.finetune() trains an adapter: one word for two things
    example="""
    anytune train --full -m model.gguf -f chats.jsonl -o tuned.gguf --type Q8_0
""",
    help="""Train a GGUF model's own weights: the same as `anytune train --full`.

    The chosen tensors are dequantized once to float32 and trained there; all others stay in their quantized blocks. The
    result is a whole model, in any type that `anytune quantize` writes, with the metadata, tokenizer and template of
    the model that it comes from. Everything else is as with `anytune train`: the data's options, checkpoints, resuming.
    """,
)
