"""The flags of a training run as tables: settings, the adapter, the model itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from anytune.cli.dataset import KEYS
from anytune.train.defaults import OPEN
from anytune.train.settings import DEFAULTS, FLAGS, FULL_RATE

SETTINGS = (  # (field of TrainSettings, further names, type, help)
    ("context", ("--ctx-size", "--context"), int, "Tokens of the longest example."),
    ("ubatch", ("--ubatch-size",), int, "Tokens of a micro-batch, computed and held in memory at once."),
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
        "Continue from a checkpoint, a run folder, or auto: the newest valid checkpoint, else start over "
        "(also if no value is given).",
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
        "Linears to adapt, by exact name, comma-separated: attn_q, attn_k, attn_v, attn_o, ffn_gate, ffn_up, "
        "ffn_down, output; all is every one but output and a mixture's experts, experts is those.",
    ),
    ("rslora", ("--rslora",), bool, False, "Scale by alpha / sqrt(rank) (rsLoRA)."),
    ("plus_ratio", ("--lora-plus-ratio", "--loraplus"), float, 1.0, "Learning rate of B over that of A (LoRA+)."),
    ("dropout", ("--lora-dropout",), float, 0.0, "Dropout on the adapter's input."),
    ("seed", ("--lora-seed",), int, None, "Seeds the adapter's initial values and dropout.  [default: --seed]"),
)


def setting_options(command: Callable) -> Callable:
    """The flags of SETTINGS and LORA; the command gets `settings` and `lora_settings`, by the fields' names."""

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
        more = {"is_flag": False, "flag_value": "auto"} if name == "resume_from" else {}
        shown = default not in (None, "")
        gathered = click.option(
            FLAGS[name], *flags, name, type=kind, default=default, help=text, show_default=shown, **more
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
        "Modules, comma-separated: those of --lora-modules, norm, embed, bias, router, ssm, sinks, conv, layer_embed; "
        "all: everything.",
    ),
    (
        "train_layers",
        "--train-layers",
        {"type": click.IntRange(1), "metavar": "N"},
        "Only the last N layers; the embedding table then only if --train-modules names it.",
    ),
    (
        "optimizer",
        "--optimizer",
        {"type": click.Choice(["adamw", "adamw8bit", "adafactor"]), "default": "adamw", "show_default": True},
        "Optimizer state per weight: adamw 8 bytes, adamw8bit 2, adafactor almost none.",
    ),
    (
        "output_type",
        "--type",
        {"default": "F16", "show_default": True, "metavar": "TYPE"},
        "Type of the written model, as in `anytune quantize`, or keep: each tensor's own.",
    ),
)


def full_options(command: Callable) -> Callable:
    """--full and what belongs to it; the command gets `whole` as the fields of Full."""

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
SECTIONS = {
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
