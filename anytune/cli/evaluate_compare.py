"""anytune evaluate compare: base, adapters and other models on the same prompts, and a judge if wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from anytune.cli.command import Command
from anytune.cli.evaluate import evaluate
from anytune.cli.evaluate_options import adapters_of, answering_options, columns_of, keeping, named, report_places
from anytune.cli.evaluate_said import Phases, outlook, tell
from anytune.cli.opening import load_model, model_path, text_file
from anytune.cli.options import force_option, json_option, model_options
from anytune.cli.sampling import read_template
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.evaluation.judge import PairJudge
    from anytune.evaluation.prompts import Prompt


@evaluate.command(
    cls=Command,
    short_help="Compare the answers of base and adapters.",
    example="""
    anytune evaluate compare -m model.gguf --lora mine.gguf -f heldout.jsonl -o report.html
    anytune evaluate compare -m model.gguf --lora one.gguf --lora two.gguf -f prompts.txt -o report.html -o report.json
    anytune evaluate compare -m model.gguf --other larger.gguf -p "Does vitamin D prevent fractures?"
    anytune evaluate compare -m model.gguf --lora mine.gguf -f heldout.jsonl -o report.html \\
        --judge http://localhost:11434/v1 --judge-model qwen3:8b
    anytune evaluate compare -m model.gguf -f heldout.jsonl --judge larger.gguf --judge-pair ours=a.gguf peft=folder
""",
    renamed={"-b": "--parallel", "--batch-size": "--parallel"},
    sections=dict.fromkeys(("judge", "judge_model", "judge_pair", "criteria", "judge_timeout"), "The judge"),
)
@model_options
@click.option(
    "-f",
    "--file",
    "file",
    metavar="FILE",
    help="Prompts: one per line, or JSONL with prompt, prompt and completion, or messages.",
)
@click.option(
    "-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt instead of a file. May be repeated."
)
@click.option(
    "--other",
    "others",
    multiple=True,
    metavar="[NAME=]GGUF",
    help="Another model to compare, with its own template. May be repeated.",
)
@answering_options
@click.option(
    "--judge",
    metavar="URL|GGUF",
    help="Who judges which answer is better: an OpenAI-compatible endpoint such as http://localhost:11434/v1 (a "
    "key is read from ANYTUNE_JUDGE_API_KEY), or a model file on this machine.",
)
@click.option("--judge-model", metavar="NAME", help="The judge's model name at that endpoint.")
@click.option(
    "--judge-pair",
    nargs=2,
    metavar="[NAME=]ADAPTER [NAME=]ADAPTER",
    help="The judge compares these two adapters with each other, instead of each with the base.",
)
@click.option("--judge-criteria", "criteria", metavar="TEXT", help="What the judge should prefer, in a sentence.")
@click.option(
    "--judge-timeout",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for each answer of the judge.",
)
@force_option
@json_option
def compare(
    model: str,
    engine: dict,
    file: str | None,
    texts: tuple[str, ...],
    others: tuple[str, ...],
    loras: tuple[str, ...],
    outputs: tuple[str, ...],
    raw: bool | None,
    chat_template: str | None,
    sampling: dict[str, Any],
    limit: int | None,
    judge: str | None,
    judge_model: str | None,
    judge_pair: tuple[str, str] | None,
    criteria: str | None,
    judge_timeout: float,
    as_json: bool,
    **rest: Any,
) -> None:
    """Have the base, its adapters and other models answer the same prompts, and compare the answers.

    Answers in the file are the references: each answer is measured against its own with chrF, ROUGE-L, Jaccard and the
    cosine of the model's own embeddings. The others' answers are also measured against the base's.
    """
    from anytune.evaluation.compare import compare as run
    from anytune.evaluation.compare_report import answers, report, text
    from anytune.generation.sampling import Sampling

    how, pair = Sampling(**sampling), tuple(judge_pair or ())
    paths = _others(others)
    loras = (*loras, *pair)
    if not loras and not paths:
        raise UserError(
            "There is nothing to compare the base with: give an adapter with --lora, or a model with --other."
        )
    if pair and judge is None:
        raise UserError("--judge-pair needs a judge: give --judge URL with --judge-model, or --judge GGUF.")
    beside = {f"other model {name}": str(path) for name, path in paths.items()}
    local = judge is not None and "://" not in judge
    places = report_places(
        outputs,
        model,
        loras,
        prompts=file,
        template=chat_template,
        judge=str(model_path(judge)) if local else None,
        **beside,
    )
    if not local and (judge is None) != (judge_model is None):
        raise UserError("--judge and --judge-model belong together: the endpoint, and the model's name there.")
    if local and judge_model is not None:
        raise UserError(f"--judge-model is the name at an endpoint, and --judge {judge} is a file: omit --judge-model.")
    prompts = _prompts(file, texts, columns_of(rest), limit)
    jury = None if judge is None else _jury(judge, judge_model, criteria, judge_timeout, engine)
    loaded = load_model(model, engine)
    sides = adapters_of(loras, loaded)
    sizes = len(prompts), len(sides) + len(paths) + 1, rest["max_tokens"], rest["batch"]
    with keeping(places) as kept:
        with Phases(as_json, lambda: outlook(loaded, *sizes)) as phases:
            facts = run(
                loaded,
                prompts,
                sides,
                name=file or "-p",
                how=how,
                judge=jury,
                pair=(named(pair[0])[0], named(pair[1])[0]) if pair else None,
                others={name: load_model(str(path), engine) for name, path in paths.items()},
                kept=kept,
                progress=phases.to,
                chat=None if raw is None else not raw,
                template=read_template(chat_template, loaded),
                **rest,
            )
        # of a few prompts on the command line one wants to read the answers
        tell(facts, report(facts), lambda f: answers(f) + "\n" + text(f) if texts else text(f), places, as_json)
    if jury is not None and facts["judge"]["error"]:
        raise UserError(facts["judge"]["error"])


def _others(given: tuple[str, ...]) -> dict[str, Any]:
    """name -> path, for GGUF (named after the file) or NAME=GGUF."""
    found: dict[str, Any] = {}
    for one in given:
        name, path = named(one)
        if name in found:
            raise UserError(f"Two models are called {name}: name them with --other NAME=FILE.")
        found[name] = model_path(path)
    return found


def _prompts(file: str | None, texts: tuple[str, ...], columns: dict[str, str], limit: int | None) -> list[Prompt]:
    from anytune.evaluation.prompts import Prompt, read_prompts

    if (file is None) == (not texts):
        raise UserError("Name the prompts: -f FILE, or -p TEXT, and not both.")
    if file is not None:
        return read_prompts(text_file(file, "prompt"), columns, limit)
    if not all(text.strip() for text in texts):
        raise UserError("-p is empty: give a prompt.")
    return [Prompt(n, ({"role": "user", "content": text},), text) for n, text in enumerate(texts, 1)][:limit]


def _jury(judge: str, model: str | None, criteria: str | None, timeout: float, engine: dict) -> PairJudge:
    """Asked once, so that what fails fails before the long work."""
    from anytune.evaluation.judge import CRITERIA, Judge
    from anytune.evaluation.local_judge import LocalJudge

    if "://" in judge:
        jury: Any = Judge(judge, model or "", criteria or CRITERIA, timeout)
    else:
        jury = LocalJudge(load_model(judge, engine), criteria or CRITERIA)
    jury.check()
    return jury
