"""anytune adapt compress and repair: smaller adapters, and adapters for files in few bits."""

from __future__ import annotations

import click

from anytune.cli.adapt import Bars, Common, adapt, adapter_of, common_options, interruptible, need, teacher_of
from anytune.cli.command import Command
from anytune.cli.options import SIZE, lora_option, model_options


@adapt.command(
    cls=Command,
    short_help="An adapter, or a tuned file, as a smaller adapter.",
    example="""
    anytune adapt compress -m base.gguf --lora big.gguf --rank 4 -f data.jsonl -o small.gguf
    anytune adapt compress -m base.gguf --lora big.gguf --size 2MiB -f data.jsonl -o small.gguf
    anytune adapt compress -m base.gguf --tuned tuned.gguf --rank 32 -f data.jsonl -o tuned-lora.gguf
""",
)
@model_options
@lora_option
@click.option("--tuned", metavar="GGUF", help="A file that was tuned from the model, instead of an adapter.")
@click.option("--rank", type=click.IntRange(1, 4096), help="Rank on average: ranks go where they are worth most.")
@click.option("--size", type=SIZE, metavar="SIZE", help="The adapter's size at most, such as 2MiB, instead of --rank.")
@common_options("guard", "guard_text")
def compress(
    model: str, engine: dict, lora: str | None, tuned: str | None, rank: int | None, size: int | None, common: Common
) -> int:
    """Make an adapter of lower rank that says nearly the same.

    What each rank of each tensor is worth to the model's words is measured on the data (inputs, and one backward for
    outputs); ranks are given to the tensors that need them, and what early layers lose later ones make good. The result
    is never worse than the truncated SVD on the data that it is made of.
    """

    def work() -> int:
        from anytune.adapt.compression import compress as run

        need((lora is None) != (tuned is None), "Name what is to be compressed: --lora or --tuned, one of them.")
        need((rank is None) != (size is None), "Say how small: --rank or --size, one of them.")
        loaded = common.open(model, engine, [("the adapter", lora), ("the tuned file", tuned)])
        with Bars(common.as_json) as bars:
            result = run(
                loaded,
                common.files,
                adapter=adapter_of(lora, loaded),
                tuned=teacher_of(tuned, engine),
                rank=rank,
                size=size,
                ridge=common.ridge,
                reading=common.reading(loaded),
                settings=common.settings(bars),
                outputs=common.outputs(engine),
                **common.data(),
            )
        return common.end(result)

    return interruptible(common.output, work)


@adapt.command(
    cls=Command,
    short_help="What rounding took from a file, as an adapter.",
    example="""
    anytune adapt repair -m q2.gguf --reference f16.gguf -f texts.jsonl -o repair.gguf
    anytune adapt repair -m q2.gguf --reference f16.gguf --lora mine.gguf -f data.jsonl -o mine-on-q2.gguf
""",
)
@model_options
@click.option("--reference", required=True, metavar="GGUF", help="The better file of the same model.")
@click.option("--lora", metavar="ADAPTER", help="An adapter that the reference has, and the result takes up.")
@click.option(
    "--rank",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Rank of the adapter on average: what writes to the residual stream gets more.",
)
@common_options()
def repair(model: str, engine: dict, reference: str, lora: str | None, rank: int, common: Common) -> int:
    """Make an adapter with which a file in few bits says what a better one says.

    Each change starts from the weights' own error; layer by layer it is fitted so that the streams of both files meet
    on the data. The default of --ridge is 1.
    """

    def work() -> int:
        from anytune.adapt.repairing import repair as run

        loaded = common.open(model, engine, [("the reference", reference), ("the adapter", lora)])
        with Bars(common.as_json) as bars:
            better = teacher_of(reference, engine)
            result = run(
                loaded,
                common.files,
                better,
                adapter=adapter_of(lora, better),
                rank=rank,
                ridge=common.ridge,
                guard=common.guard,
                reading=common.reading(loaded),
                settings=common.settings(bars),
                outputs=common.outputs(engine),
                **common.data(),
            )
        return common.end(result)

    return interruptible(common.output, work)
