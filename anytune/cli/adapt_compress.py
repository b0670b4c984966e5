"""anytune adapt compress and repair: smaller adapters, and adapters for files in few bits."""

from __future__ import annotations

import click

from anytune.cli.adapt import Bars, adapt, interruptible
from anytune.cli.adapt_options import Common, common_options, rank_option
from anytune.cli.command import Command
from anytune.cli.opening import load_adapter, load_model
from anytune.cli.options import SIZE, lora_option, model_options
from anytune.errors import UserError


@adapt.command(
    cls=Command,
    short_help="Turn an adapter, or a tuned model, into a smaller adapter.",
    example="""
    anytune adapt compress -m base.gguf --lora big.gguf --rank 4 -f data.jsonl -o small.gguf
    anytune adapt compress -m base.gguf --lora big.gguf --size 2MiB -f data.jsonl -o small.gguf
    anytune adapt compress -m base.gguf --tuned tuned.gguf --rank 32 -f data.jsonl -o tuned-lora.gguf
""",
)
@model_options
@lora_option
@click.option("--tuned", metavar="GGUF", help="A fully fine-tuned version of the model, instead of an adapter.")
@rank_option("Average rank: ranks go where they matter most.")
@click.option("--size", type=SIZE, metavar="SIZE", help="Maximum size of the adapter, such as 2MiB, instead of --rank.")
@common_options("guard", "guard_text")
def compress(
    model: str, engine: dict, lora: str | None, tuned: str | None, rank: int | None, size: int | None, common: Common
) -> int:
    """Make an adapter of lower rank with nearly the same behaviour.

    The value of each rank of each tensor is measured on the data (inputs, and one backward pass for outputs); ranks go
    to the tensors that need them, and later layers compensate for what earlier ones lose. On its own data the result is
    never worse than truncated SVD.
    """

    def work() -> int:
        from anytune.adapt.compression import compress as run

        if (lora is None) == (tuned is None):
            raise UserError("Name what to compress: either --lora or --tuned.")
        if (rank is None) == (size is None):
            raise UserError("Say how small: either --rank or --size.")
        loaded = common.open(model, engine, [("the adapter", lora), ("the tuned file", tuned)])
        with Bars(common.as_json) as bars:
            result = run(
                loaded,
                common.files,
                adapter=load_adapter(lora, loaded),
                tuned=None if tuned is None else load_model(tuned, engine),
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
    short_help="Repair a quantized model with an adapter.",
    example="""
    anytune adapt repair -m q2.gguf --reference f16.gguf -f texts.jsonl -o repair.gguf
    anytune adapt repair -m q2.gguf --reference f16.gguf --lora mine.gguf -f data.jsonl -o mine-on-q2.gguf
""",
)
@model_options
@click.option("--reference", required=True, metavar="GGUF", help="A higher-precision file of the same model.")
@click.option("--lora", metavar="ADAPTER", help="An adapter of the reference, included in the result.")
@rank_option("Average rank of the adapter: layers that write to the residual stream get more.", 32)
@common_options()
def repair(model: str, engine: dict, reference: str, lora: str | None, rank: int, common: Common) -> int:
    """Make an adapter with which a low-bit file behaves like a higher-precision one.

    Each change starts from the weights' rounding error and is fitted layer by layer so that the residual streams of
    both files agree on the data. --ridge defaults to 1.
    """

    def work() -> int:
        from anytune.adapt.repairing import repair as run

        loaded = common.open(model, engine, [("the reference", reference), ("the adapter", lora)])
        with Bars(common.as_json) as bars:
            better = load_model(reference, engine)
            result = run(
                loaded,
                common.files,
                better,
                adapter=load_adapter(lora, better),
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
