"""anytune adapt collect and solve: sums over tokens on one machine, the adapter on another."""

from __future__ import annotations

from pathlib import Path

import click

from anytune.cli.adapt import Bars, adapt, interruptible
from anytune.cli.adapt_options import Common, TeacherOptions, common_options, rank_option, teacher_options
from anytune.cli.command import Command
from anytune.cli.opening import existing_file
from anytune.cli.options import force_option, forced, json_option, model_options
from anytune.cli.say import print_json


@adapt.command(
    cls=Command,
    short_help="Collect statistics, to be solved elsewhere.",
    renamed={"--system": "--system-file"},
    example="""
    anytune adapt collect -m base.gguf --teacher-lora big.gguf -f private.jsonl --rank 8 -o statistics.npz
    anytune adapt solve statistics.npz -o mine.gguf
""",
)
@model_options
@teacher_options
@rank_option("Rank assumed by the statistics of later layers.", 16)
@common_options("no_verify", "peft", "intermediate")
def collect(model: str, engine: dict, teacher: TeacherOptions, rank: int, common: Common) -> int:
    """Run teacher and model over the data, and write the sums that `anytune adapt solve` needs.

    The first half of `anytune adapt distill`. The file contains Gram matrices, no text and no weights. Prints
    how close an adapter solved from it comes to the teacher on held-out examples.
    """

    def work() -> int:
        from anytune.adapt.distillation import collect as run

        loaded = common.open(model, engine, teacher.inputs())
        with Bars(common.as_json) as bars:
            result = run(
                loaded,
                common.files,
                common.output,
                **teacher.open(loaded, engine),
                rank=rank,
                ridge=common.ridge,
                guard=common.guard,
                reading=common.reading(loaded),
                settings=common.settings(bars),
                force=forced(),
                **common.data(),
            )
        return common.end(result)

    return interruptible(common.output, work)


@adapt.command(
    cls=Command,
    short_help="Solve for an adapter from collected statistics.",
    example="""
    anytune adapt solve statistics.npz -o a.gguf
    anytune adapt solve statistics.npz --rank 8 -o a.gguf
""",
)
@click.argument("statistics", metavar="STATISTICS")
@rank_option("Instead of the rank it was collected for.")
@click.option("--ridge", type=click.FloatRange(0), metavar="SHARE", help="Instead of the ridge it was collected with.")
@click.option(
    "--lora-alpha",
    "alpha",
    type=click.FloatRange(0, min_open=True),
    metavar="ALPHA",
    help="The adapter is scaled by alpha / rank.  [default: the rank]",
)
@click.option("-o", "--output", required=True, metavar="GGUF", help="The adapter.")
@force_option
@json_option
def solve(
    statistics: str, rank: int | None, ridge: float | None, alpha: float | None, output: str, as_json: bool
) -> int:
    """Solve for the adapter from a file written by `anytune adapt collect`. Needs neither model nor data.

    Its quality was measured by collect, for its own --rank and --ridge; check others with `anytune verify` and
    `anytune evaluate`.
    """
    from anytune.adapt.collection import solve as run
    from anytune.files import check_output

    path = existing_file(statistics, "statistics")
    if Path(output).suffix != ".gguf":
        raise click.UsageError("-o must end in .gguf: other formats need the model, see `anytune export`.")
    check_output(output, forced(), [("the statistics", str(path))])
    with Bars(as_json) as bars:
        adapter, found = run(path, rank=rank, ridge_share=ridge, alpha=alpha, tell=bars.tell)
    adapter.save(output)
    same = rank in (None, found["collected_rank"]) and ridge in (None, found["collected_ridge"])
    measured = found.get("measured") if same else None
    facts = {
        "path": output,
        "rank": found["rank"],
        "ridge": found["ridge"],
        "tensors": len(adapter.tensors),
        "measured": measured,
    }
    if as_json:
        print_json(facts)
        return 0
    if measured:
        click.echo(
            f"on {measured['after']['tokens']} held-out tokens, when collected: KL to the teacher "
            f"{measured['before']['kl']:.4g} → {measured['after']['kl']:.4g} ({measured['recovered']:.1%} "
            "recovered)"
        )
    else:
        click.echo("Not measured: the statistics were collected for another rank or ridge.")
    click.echo(output)
    return 0
