"""anytune adapt merge: one adapter for the tasks of several."""

from __future__ import annotations

import click

from anytune.cli.adapt import Bars, adapt, interruptible
from anytune.cli.adapt_options import Common, common_options, rank_option
from anytune.cli.command import Command
from anytune.cli.opening import load_adapter
from anytune.cli.options import model_options
from anytune.errors import UserError


@adapt.command(
    cls=Command,
    short_help="Merge several adapters into one.",
    example="""
    anytune adapt merge -m base.gguf --lora a.gguf -f a.jsonl --lora b.gguf -f b.jsonl --rank 16 -o both.gguf
""",
)
@model_options
@click.option(
    "--lora",
    "loras",
    multiple=True,
    required=True,
    metavar="ADAPTER",
    help="An adapter; its data is the -f at the same position.",
)
@rank_option("Rank of the adapter.", 16)
@common_options()
def merge(model: str, engine: dict, loras: tuple[str, ...], rank: int, common: Common) -> int:
    """Make one adapter that behaves on each task's data like that task's adapter.

    Give each --lora its -f (and --val-file), in the same order. For comparison the command also prints the linear
    merge, the sum truncated to the same rank, and the untruncated sum.
    """

    def work() -> int:
        from anytune.adapt.merging import merge as run

        if len(loras) != len(common.files):
            raise UserError(
                f"There are {len(loras)} adapters and {len(common.files)} files of data: give each --lora its -f."
            )
        loaded = common.open(model, engine, [("an adapter", path) for path in loras])
        with Bars(common.as_json) as bars:
            parts = [(load_adapter(path, loaded), data) for path, data in zip(loras, common.files)]
            result = run(
                loaded,
                parts,
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
