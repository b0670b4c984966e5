"""anytune perplexity: how likely a model finds a text, or the right answers among others."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file, load_adapter, load_model, model_path, read_text
from anytune.cli.options import force_option, forced, json_option, lora_option, model_options
from anytune.cli.say import print_json
from anytune.errors import UserError
from anytune.files import check_output


@click.command(
    cls=Command,
    short_help="Measure perplexity, KL divergence or multiple-choice accuracy.",
    example="""
    anytune perplexity -m model.gguf -f text.txt
    anytune perplexity -m model-f16.gguf -f text.txt --kl-divergence-base base.bin
    anytune perplexity -m model-q4_k_m.gguf --kl-divergence --kl-divergence-base base.bin
    anytune perplexity -m model.gguf -f tasks.jsonl --multiple-choice --json
""",
)
@model_options
@lora_option
@click.option("-f", "--file", metavar="FILE", help="The text, or the tasks.")
@click.option(
    "-c",
    "--ctx-size",
    "--context",
    "context",
    type=click.IntRange(2),
    metavar="N",
    help="Tokens of a window; its second half is scored. Default: 512, or the model's context if less.",
)
@click.option(
    "--chunks", type=click.IntRange(1), metavar="N", help="Maximum number of windows. Default: all of the text."
)
@click.option(
    "-b", "--batch-size", "batch", type=click.IntRange(1), default=2048, show_default=True, help="Tokens run at once."
)
@click.option(
    "--kl-divergence-base",
    "base",
    metavar="FILE",
    help="Save all scored distributions to this file; with --kl-divergence, read them.",
)
@click.option(
    "--kl-divergence",
    "compare",
    is_flag=True,
    help="Compare with the distributions in --kl-divergence-base, on the text stored there.",
)
@click.option(
    "--hellaswag", is_flag=True, help="-f has six lines per task: context, index of the right ending, four endings."
)
@click.option(
    "--multiple-choice",
    is_flag=True,
    help='-f has one JSON object per line: {"context": text, "choices": [texts], "answer": number from 0}.',
)
@force_option
@json_option
def perplexity(
    model: str,
    engine: dict,
    lora: str | None,
    file: str | None,
    context: int | None,
    chunks: int | None,
    batch: int,
    base: str | None,
    compare: bool,
    hellaswag: bool,
    multiple_choice: bool,
    as_json: bool,
) -> None:
    """Measure the perplexity of a text by llama.cpp's method: windows of -c tokens, the second half of each scored.

    A base run's distributions, in llama.cpp's file format, show what quantization changes: KL divergence, how often the
    most likely token is the same. With --hellaswag or --multiple-choice the most likely ending is the answer.
    """
    if hellaswag + multiple_choice + compare > 1:
        raise UserError("--hellaswag, --multiple-choice and --kl-divergence cannot be combined: choose one.")
    if compare and base is None:
        raise UserError("--kl-divergence needs the base run's file: --kl-divergence-base FILE.")
    if (hellaswag or multiple_choice) and base is not None:
        raise UserError("--kl-divergence-base needs a text, not tasks.")
    if file is None and not compare:
        raise UserError("There is nothing to score: give a text with -f FILE.")
    if hellaswag or multiple_choice:
        facts = _choices(model, engine, lora, file or "", hellaswag, batch, as_json)
    else:
        facts = _perplexity(model, engine, lora, file, context, chunks, batch, base, compare, as_json)
    if as_json:
        print_json(facts)
    else:
        click.echo(report(facts))


def _perplexity(
    model: str,
    engine: dict,
    lora: str | None,
    file: str | None,
    context: int | None,
    chunks: int | None,
    batch: int,
    base: str | None,
    compare: bool,
    as_json: bool,
) -> dict[str, Any]:
    from anytune.cli.progress import Progress
    from anytune.likelihood import perplexity as run

    if compare:
        existing_file(base or "", "distributions")
    else:
        check_output(base, forced(), [("the model", model_path(model)), ("the adapter", lora), ("the text", file)])
    text = None if compare else read_text(file or "")
    loaded = load_model(model, engine)
    adapter = load_adapter(lora, loaded)
    with Progress("perplexity", "tokens", quiet=as_json) as progress:
        return run(
            loaded,
            text,
            adapter,
            context=context,
            chunks=chunks,
            batch=batch,
            save=None if compare else base,
            base=base if compare else None,
            progress=lambda done, total, value: progress.to(done, total, f"perplexity {value:.4f}"),
        )


def _choices(
    model: str, engine: dict, lora: str | None, file: str, hellaswag: bool, batch: int, as_json: bool
) -> dict[str, Any]:
    from anytune.cli.progress import Progress
    from anytune.likelihood import choices

    tasks = (choices.read_hellaswag if hellaswag else choices.read_choices)(read_text(file), file)
    loaded = load_model(model, engine)
    adapter = load_adapter(lora, loaded)
    with Progress("perplexity", "tasks", quiet=as_json) as progress:
        return choices.score_choices(
            loaded,
            tasks,
            adapter,
            batch=batch,
            progress=lambda done, total, value: progress.to(done, total, f"{value:.1f} % right"),
        )


def report(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    if "tasks" in facts:
        low, high = facts["interval"]
        return (
            f"{facts['right']} of {facts['tasks']} right: {100 * facts['accuracy']:.2f} %  (95 % interval "
            f"{100 * low:.2f} to {100 * high:.2f} %; by whole endings {100 * facts['accuracy_sum']:.2f} %)"
        )
    lines = [
        f"perplexity {facts['perplexity']:.4f} ± {facts['uncertainty']:.4f}  ({facts['tokens']} tokens scored, "
        f"{facts['windows']} windows of {facts['context']})"
    ]
    if "kl_mean" in facts:
        percentiles = "  ".join(f"{p} %: {value:.5f}" for p, value in facts["kl_percentiles"].items())
        lines += [
            f"base       {facts['perplexity_base']:.4f}, ratio {facts['ratio']:.5f} ± {facts['ratio_uncertainty']:.5f}",
            f"KL divergence {facts['kl_mean']:.6f} ± {facts['kl_uncertainty']:.6f} nats, at most "
            f"{facts['kl_max']:.4f}  ({percentiles})",
            f"same most likely token: {100 * facts['same_top']:.3f} ± {100 * facts['same_top_uncertainty']:.3f} %",
            f"probability of the text's tokens: {100 * facts['change_mean']:+.3f} % in the mean, "
            f"{100 * facts['change_rms']:.3f} % root mean square",
        ]
    return "\n".join(lines)
