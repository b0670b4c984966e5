"""anytune evaluate score: a file of predictions against a file of truths, without a model."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file
from anytune.cli.options import json_option
from anytune.cli.say import print_json
from anytune.errors import UserError


@click.command(
    cls=Command,
    short_help="Score a file of predictions against the truth, without a model.",
    example="""
    anytune generate -m model.gguf --lora mine.gguf --prompts questions.txt -o predictions.jsonl --temp 0
    anytune evaluate score predictions.jsonl ground_truth.txt
    anytune evaluate score predictions.txt truth.jsonl --labels yes,no,maybe --json
""",
)
@click.argument("predictions")
@click.argument("truth", metavar="GROUND_TRUTH")
@click.option(
    "--labels",
    metavar="A,B,…",
    help="The classes: the first one that a prediction names counts.  [default: the truths themselves, if they are "
    "a few single words]",
)
@json_option
def score(predictions: str, truth: str, labels: str | None, as_json: bool) -> None:
    """Print accuracy, and the mean cosine and Jaccard similarity over words.

    Both files hold one answer per line (.txt), per record (.jsonl, .json: a string, or an object with prediction,
    answer, label, completion, text or messages), or an object of id: answer. With classes, also prints the 95 %
    interval, precision, recall and F1 per class, and how many predictions name no class.
    """
    from anytune.evaluation.score import pair, read_answers, score as run

    asked = [label.strip() for label in labels.split(",")] if labels else None
    if asked is not None and (len(set(asked)) < 2 or not all(asked)):
        raise UserError(f"--labels takes at least two different classes with commas between them, not {labels!r}.")
    said, true = (
        read_answers(existing_file(path, what)) for path, what in ((predictions, "prediction"), (truth, "ground truth"))
    )
    facts = run(pair(said, true), asked)
    if as_json:
        print_json(facts)
        return
    low, high = facts["interval"]
    click.echo(
        f"accuracy  {100 * facts['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]  "
        f"({facts['right']} of {facts['count']})"
    )
    click.echo(f"cosine    {facts['cosine']:.3f}\njaccard   {facts['jaccard']:.3f}")
    if facts["labels"]:
        click.echo(f"macro F1  {facts['macro_f1']:.3f}")
        for label, figures in facts["classes"].items():
            click.echo(
                f"  {label:<12}  precision {figures['precision']:.3f}  recall {figures['recall']:.3f}  "
                f"F1 {figures['f1']:.3f}  of {figures['support']}"
            )
        if facts["unanswered"]:
            click.echo(
                f"{facts['unanswered']} predictions name none of {', '.join(facts['labels'])}: they count as wrong"
            )
