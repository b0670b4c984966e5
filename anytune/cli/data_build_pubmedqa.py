"""anytune data build pubmedqa: training, validation and test data from PubMedQA's official files."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.say import print_json
from anytune.evaluation.pubmedqa import SETTINGS, WORDINGS
from anytune.evaluation.recipe import BALANCES, FORMATS


@click.command(
    cls=Command,
    renamed={"--format": "--form"},
    short_help="From PubMedQA: questions answered yes, no or maybe.",
    example="""
    anytune data build pubmedqa ori_pqal.json --test test_ground_truth.json --setting reasoning-free -o pubmedqa
    anytune train -m model.gguf -f pubmedqa/train.jsonl --val-file pubmedqa/validation.jsonl --output-adapter mine.gguf
    anytune evaluate biomed -m model.gguf --lora mine.gguf -f pubmedqa/test.jsonl
""",
)
@click.argument("source", metavar="ORI_PQAL")
@click.option("--test", required=True, metavar="FILE", help="test_ground_truth.json, the official split.")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    metavar="FOLDER",
    help="Write train.jsonl, validation.jsonl, test.jsonl and recipe.json into this folder.",
)
@click.option(
    "--setting",
    type=click.Choice(SETTINGS),
    default="reasoning-required",
    show_default=True,
    help="What comes before the question: nothing, the paper's conclusion, or its abstract without it.",
)
@click.option(
    "--wording",
    type=click.Choice(list(WORDINGS)),
    default="pubmedqa",
    show_default=True,
    help="Wording of the prompt: pubmedqa (Question: … Answer (yes, no or maybe):), or qa (Q: … A: Yes, No, "
    "Uncertain).",
)
@click.option(
    "--labels", metavar="LABELS", help="Only questions with these answers, such as yes,no.  [default: yes,no,maybe]"
)
@click.option(
    "--val-count",
    "validation",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Questions for validation, stratified by class.",
)
@click.option(
    "--balance",
    type=click.Choice(BALANCES),
    default="none",
    show_default=True,
    help="Balance the training classes: repeat rarer ones, or drop from more frequent ones.",
)
@click.option(
    "--form",
    "format",
    type=click.Choice(FORMATS),
    default="pairs",
    show_default=True,
    help="pairs: prompt and completion; messages: chats.",
)
@click.option("-s", "--seed", type=click.IntRange(0), default=42, show_default=True, help="Seed of the split.")
@force_option
@json_option
def pubmedqa(source: str, test: str, folder: str, labels: str | None, as_json: bool, **options: Any) -> None:
    """Split the questions outside the official test set into train and validation, and write all as prompts.

    The same files, options and seed give the same bytes; recipe.json records the recipe, the sources' hashes and the
    counts.
    """
    from anytune.evaluation.pubmedqa import chosen_labels
    from anytune.evaluation.recipe import build

    chosen = chosen_labels(labels)
    sources = existing_file(source, "question"), existing_file(test, "test")
    facts = build(*sources, folder, labels=chosen, force=forced(), **options)
    if as_json:
        print_json(facts)
        return
    for name, split in facts["splits"].items():
        counts = ", ".join(f"{split['labels'].get(label, 0)} {label}" for label in chosen)
        click.echo(f"{name:<10}  {split['questions']:>4} questions: {counts}")
    click.echo(folder)
