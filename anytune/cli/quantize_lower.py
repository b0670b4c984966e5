"""anytune quantize lower: types that fall while an adapter trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_reference, model_path
from anytune.cli.options import force_option, forced, json_option, model_options
from anytune.cli.quantize_search import Stages
from anytune.cli.say import print_json


@click.command(
    "lower",
    cls=Command,
    short_help="Lower tensor types while training an adapter.",
    example="""
    anytune quantize lower -m model-f16.gguf -f chats.jsonl --to 4.5 -o lowered.gguf --output-adapter adapter.gguf
    anytune quantize lower -m model-f16.gguf -f chats.jsonl --stages 4 --steps 20 --tolerance 0.5 --json
""",
    renamed={"--every": "--steps", "--ubatch": "--ubatch-size"},
)
@model_options
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="DATA",
    help="Data, as for `anytune train`. May be repeated.",
)
@click.option(
    "--to", type=click.FloatRange(1, 32), default=4.5, show_default=True, metavar="BITS", help="Final bits per weight."
)
@click.option(
    "--stages",
    type=click.IntRange(1, 1000),
    default=6,
    show_default=True,
    metavar="N",
    help="Number of lowering stages, after one on the original model.",
)
@click.option(
    "--steps",
    "every",
    type=click.IntRange(1, 100_000),
    default=10,
    show_default=True,
    metavar="N",
    help="Optimizer steps per stage.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="How far a stage's mean loss may deviate from the original model's.",
)
@click.option(
    "-ub",
    "--ubatch-size",
    "ubatch",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens per optimizer step, and of the longest example.",
)
@click.option(
    "--lora-rank",
    "rank",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="R",
    help="Rank of the adapter; its alpha is twice that.",
)
@click.option(
    "--learning-rate",
    "--lr",
    "lr",
    type=click.FloatRange(0, 1, min_open=True),
    default=2e-4,
    show_default=True,
    help="Constant learning rate of AdamW.",
)
@click.option(
    "-s",
    "--seed",
    type=int,
    default=42,
    show_default=True,
    help="Seeds the adapter's initial values and the order of the data.",
)
@click.option("-o", "--output", metavar="GGUF", help="Write the model with the last stage's types.")
@click.option("--output-adapter", "adapter", metavar="GGUF", help="Write the adapter trained on it.")
@force_option
@json_option
def lower(
    model: str,
    engine: dict,
    files: tuple[str, ...],
    to: float,
    stages: int,
    every: int,
    tolerance: float,
    ubatch: int,
    rank: int,
    lr: float,
    seed: int,
    output: str | None,
    adapter: str | None,
    as_json: bool,
) -> None:
    """Train an adapter twice on the same data: on the original model, and while its types are lowered stage by stage.

    Shows how low they can go, and when, with the loss within a tolerance of the original model's. A stage that exceeds
    it is rolled back. Runs with --device numpy.
    """
    import anytune
    from anytune.files import check_output
    from anytune.quantization.search.lowering import lower as run
    from anytune.text import build_dataset

    for path in (output, adapter):
        check_output(path, forced(), [("the model", model_path(model)), *(("the data", file) for file in files)])
    loaded = load_reference(model, engine)
    data = build_dataset(list(files), loaded.tokenizer, loaded.template, context=min(ubatch, loaded.config.context))
    found = run(
        loaded,
        data,
        anytune.Lora(rank=rank, alpha=2.0 * rank, seed=seed),
        to=to,
        stages=stages,
        every=every,
        tolerance=tolerance / 100,
        lr=lr,
        ubatch=ubatch,
        seed=seed,
        threads=engine["threads"],
        say=Stages(as_json),
    )
    if output is not None:
        write(loaded, found, Path(output), engine["threads"])
    if adapter is not None:
        found.adapter.save(adapter)
    facts = {**found.facts(), "path": output, "adapter": adapter}
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join([*lines(facts), *(path for path in (output, adapter) if path)]))


def write(model: Any, found: Any, target: Path, threads: int | None) -> None:
    """The file's model with the last stage's types, from the same blocks as it was trained on."""
    from anytune.quantization.tensor_types import TensorTypes
    from anytune.quantization.rewrite import available_threads, carry_out

    formats = {name: found.formats.get(name, t.type.name) for name, t in model.gguf.tensors.items()}
    carry_out(
        model.gguf, target, TensorTypes(None, formats), {}, {}, found.importance, threads or available_threads(), None
    )


def lines(facts: Mapping[str, Any]) -> list[str]:
    """For a person: a line a stage."""
    made = [
        f"steps {s['first_step']:>4} to {s['last_step']:<4} {s['bits_per_weight']:5.2f} bits a weight  loss "
        f"{s['loss']:.4f}, unrounded {s['reference']:.4f}, {s['apart']:.2%} apart"
        f"{'' if s['kept'] else '  taken back'}"
        for s in facts["stages"]
    ]
    types = ", ".join(f"{number} {kind}" for kind, number in facts["types"].items())
    return [
        *made,
        f"ended at {facts['bits_per_weight']:.2f} bits a weight ({types}); over all steps the loss is "
        f"{facts['mean_apart']:.2%} from the original model's",
    ]
