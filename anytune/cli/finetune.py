"""anytune finetune: train --full by its older name."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import DEBUG
from anytune.cli.say import note
from anytune.cli.train import TrainCommand, train
from anytune.cli.train_options import LORA, SECTIONS
from anytune.train.settings import FLAGS, FULL_RATE


def _finetune(**options: Any) -> int:
    note("anytune finetune is now anytune train --full")
    return train.callback(
        full=True, lora=None, shard=False, **{f"lora_{name}": default for name, _, _, default, _ in LORA}, **options
    )


_OWN = {
    "output": click.Option(
        ["-o", "--output"], metavar="FILE", help="Where to save the model, besides the run's folder: NAME.gguf."
    ),
    "lr": click.Option([FLAGS["lr"], "--lr", "lr"], type=float, help=f"Peak learning rate.  [default: {FULL_RATE:g}]"),
}
_OF_ADAPTERS = ("full", "lora", "shard", *(f"lora_{name}" for name, *_ in LORA))
finetune = TrainCommand(
    "finetune",
    callback=_finetune,
    sections={**SECTIONS, "output": "The model itself"},
    params=[_OWN.get(p.name or "", p) for p in train.params if p.name not in _OF_ADAPTERS and p is not DEBUG],
    short_help="The same as train --full.",
    renamed={"--output-type": "--type"},
    hidden=True,  # anytune.finetune() trains an adapter: one word for two things
    example="""
    anytune train --full -m model.gguf -f chats.jsonl -o tuned.gguf --type Q8_0
""",
    help="""Train a GGUF model's own weights: the same as `anytune train --full`.

    The chosen tensors are dequantized once and trained in float32; all others stay in their quantized blocks. The
    result is a whole model, in any type that `anytune quantize` writes, with the metadata, tokenizer and template of
    the original. Everything else works as in `anytune train`: data options, checkpoints, resuming.
    """,
)
