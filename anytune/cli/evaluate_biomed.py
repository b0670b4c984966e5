"""anytune evaluate biomed: PubMedQA's questions to base and adapters."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.evaluate_compare import evaluate
from anytune.cli.evaluate_options import adapters_of, keeping, report_places
from anytune.cli.evaluate_said import put, warn_of_few
from anytune.cli.opening import existing_file, load_model, text_file
from anytune.cli.options import force_option, json_option, model_options
from anytune.cli.say import print_json
from anytune.evaluation.pubmedqa import SETTINGS, WORDINGS


@evaluate.command(
    cls=Command,
    short_help="Score base and adapters on PubMedQA's yes/no/maybe questions.",
    example="""
    anytune evaluate biomed -m model.gguf --lora mine.gguf -f ori_pqal.json --test test_ground_truth.json
    anytune evaluate biomed -m model.gguf --lora one.gguf --lora two.gguf -f pubmedqa/test.jsonl -o report.html
""",
)
@model_options
@click.option(
    "-f",
    "--file",
    "file",
    required=True,
    metavar="FILE",
    help="ori_pqal.json; or JSONL with question and label; or the output of `data build pubmedqa`.",
)
@click.option("--test", metavar="FILE", help="test_ground_truth.json: which questions of ori_pqal.json to use.")
@click.option(
    "--setting",
    type=click.Choice(SETTINGS),
    help="What comes before the question: nothing, the paper's conclusion, or its abstract without it.  "
    "[default: reasoning-required for ori_pqal.json, question-only for rows]",
)
@click.option(
    "--wording",
    type=click.Choice(list(WORDINGS)),
    help="Wording of the prompt: pubmedqa (Question: … Answer (yes, no or maybe):), or qa (Q: … A: Yes, No, "
    "Uncertain).  [default: pubmedqa for ori_pqal.json, qa for rows]",
)
@click.option(
    "--labels", metavar="LABELS", help="Only questions with these answers, such as yes,no.  [default: yes,no,maybe]"
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="[NAME=]ADAPTER",
    help="An adapter: a GGUF file or a peft folder. May be repeated.",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    metavar="REPORT",
    help="Write a report: .html for people, .json for programs. May be repeated.",
)
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "new_tokens",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Maximum tokens of a generated answer; 0: score by likelihood only.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N questions.")
@click.option(
    "-b",
    "--batch-size",
    "batch",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="Tokens of context kept at once.",
)
@click.option(
    "--raw/--chat",
    "raw",
    default=None,
    help="Ask questions as plain text, or as a user's message.  [default: as `anytune generate`]",
)
@force_option
@json_option
def biomed(
    model: str,
    engine: dict,
    file: str,
    test: str | None,
    setting: str | None,
    wording: str | None,
    labels: str | None,
    loras: tuple[str, ...],
    outputs: tuple[str, ...],
    new_tokens: int,
    limit: int | None,
    batch: int,
    raw: bool | None,
    as_json: bool,
) -> None:
    """Ask the base and its adapters questions answered with yes, no or maybe. Nothing is trained.

    Each is scored twice: by the answer that the model finds most likely, and by what it generates. Reports accuracy
    with Wilson's 95 % interval, precision, recall and F1 per class, macro F1 and the confusion matrix; McNemar's exact
    test compares each pair on the same questions.
    """
    from anytune.cli.progress import Progress
    from anytune.evaluation import biomed_report
    from anytune.evaluation.biomed import answer
    from anytune.evaluation.biomed import evaluate as facts_of
    from anytune.evaluation.kept import identity
    from anytune.evaluation.pubmedqa import chosen_labels, read_questions

    places = report_places(outputs, model, loras, questions=file, test=test)
    questions = read_questions(
        text_file(file, "question"),
        existing_file(test, "test") if test else None,
        setting=setting,
        wording=wording,
        labels=chosen_labels(labels),
    )
    questions = questions[:limit]
    warn_of_few(len(questions), "questions")
    loaded = load_model(model, engine)
    sides: dict[str, Any] = {"base": None, **adapters_of(loras, loaded)}
    runs = []
    with keeping(places) as kept:
        kept.begin(
            identity(
                loaded,
                sides,
                questions=[[q.prompt, list(q.answers)] for q in questions],
                raw=raw,
                new_tokens=new_tokens,
                batch=batch,
            )
        )
        with Progress("biomed", "questions", quiet=as_json) as progress:
            for number, (name, adapter) in enumerate(sides.items()):
                runs.append(
                    answer(
                        loaded,
                        questions,
                        adapter,
                        name=name,
                        raw=raw,
                        new_tokens=new_tokens,
                        batch=batch,
                        kept=kept,
                        progress=lambda done, total, before=number, name=name: progress.to(
                            before * total + done, len(sides) * total, name
                        ),
                    )
                )
        facts = {
            "model": loaded.name,
            "file": str(file),
            "setting": setting,
            "wording": wording,
            **facts_of(questions, runs),
        }
        put(biomed_report.report(facts, questions, runs), places)
    if as_json:
        print_json({**facts, "answers": biomed_report.items(questions, runs)})
    else:
        click.echo("\n".join([biomed_report.text(facts), *map(str, places)]))
