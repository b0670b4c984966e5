"""anytune adapt distill: a prompt, an adapter or another file of the model becomes an adapter."""

from __future__ import annotations

import click

from anytune.cli.adapt import Bars, adapt, interruptible
from anytune.cli.adapt_options import Common, TeacherOptions, common_options, rank_option, teacher_options
from anytune.cli.command import Command
from anytune.cli.options import model_options


@adapt.command(
    cls=Command,
    short_help="Turn a prompt, an adapter or another model into an adapter.",
    renamed={"--system": "--system-file"},
    example="""
    anytune adapt distill -m base.gguf --system-file persona.txt --shots examples.jsonl -f prompts.jsonl -o persona.gguf
    anytune adapt distill -m base.gguf --teacher-lora big.gguf -f private.jsonl --rank 8 -o mine.gguf
    anytune adapt distill -m q4.gguf --teacher-model f16.gguf -f texts.jsonl -o nearer.gguf
""",
)
@model_options
@teacher_options
@rank_option("Rank of the adapter; an average for prompts: layers that write to the residual stream get more.", 16)
@click.option(
    "--steps",
    type=click.IntRange(0),
    metavar="N",
    help="Gradient steps on the teacher's distributions after the closed form.  [default: 15 for prompts]",
)
@common_options()
def distill(model: str, engine: dict, teacher: TeacherOptions, rank: int, steps: int | None, common: Common) -> int:
    """Make an adapter with which the model responds like the teacher.

    The teacher is the model itself behind a prompt (--system-file, --shots), with an adapter (--teacher-lora), or
    another file of the same shape (--teacher-model). Data without answers is answered by the teacher. The defaults of
    --ridge and --guard are 0.1 and 1.3 for prompts, 1e-3 and 0 for adapters and files.
    """

    def work() -> int:
        from anytune.adapt.distillation import distill as run

        loaded = common.open(model, engine, teacher.inputs())
        with Bars(common.as_json) as bars:
            result = run(
                loaded,
                common.files,
                **teacher.open(loaded, engine),
                rank=rank,
                ridge=common.ridge,
                guard=common.guard,
                steps=steps,
                reading=common.reading(loaded),
                settings=common.settings(bars),
                outputs=common.outputs(engine),
                **common.data(),
            )
        return common.end(result)

    return interruptible(common.output, work)
