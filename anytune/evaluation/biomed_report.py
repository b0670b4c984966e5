"""biomed.evaluate()'s facts for people: a Report, and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytune.evaluation.biomed import Answers
from anytune.evaluation.pubmedqa import Question
from anytune.evaluation.report import Plot, Report, Section, Table, as_text

_METHODS = {
    "likelihood": "By likelihood: the answer that the model finds most probable after the prompt.",
    "generation": "By generation: the first answer that its reply names; a reply without one is wrong.",
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _accuracy(figures: Mapping[str, Any]) -> str:
    low, high = figures["interval"]
    return f"{_percent(figures['accuracy'])} [{_percent(low)}, {_percent(high)}]"


def methods_of(facts: Mapping[str, Any]) -> list[str]:
    return list(next(iter(facts["runs"].values())))


def scores(facts: Mapping[str, Any], method: str) -> Table:
    """A row a run: accuracy with its interval, macro F1, each class's F1, replies without an answer."""
    head = ["%", "accuracy [95 %]", "macro F1", *(f"F1 {label}" for label in facts["labels"]), "no answer"]
    return Table(
        head,
        [
            [
                name,
                _accuracy(r := run[method]),
                _percent(r["macro_f1"]),
                *(_percent(r["classes"][label]["f1"]) for label in facts["labels"]),
                r["unanswered"],
            ]
            for name, run in facts["runs"].items()
        ],
    )


def compared(facts: Mapping[str, Any], method: str) -> Table:
    return Table(
        ["", "difference, points", "only the first right", "only the second right", "p (McNemar, exact)"],
        [
            [
                f"{c['first']} → {c['second']}",
                f"{100 * c['difference']:+.1f}",
                c["only_first"],
                c["only_second"],
                f"{c['p_value']:.3g}",
            ]
            for c in facts["comparisons"]
            if c["method"] == method
        ],
    )


def classes(figures: Mapping[str, Any]) -> Table:
    """A row a class: precision, recall, F1, and how often each answer was given to its questions."""
    said = [f"said {label}" for label in figures["classes"]]
    head = ["%", "precision", "recall", "F1", "questions", *said, "no answer"]
    return Table(
        head,
        [
            [label, *(_percent(c[name]) for name in ("precision", "recall", "f1")), c["support"], *row]
            for (label, c), row in zip(figures["classes"].items(), figures["confusion"], strict=True)
        ],
    )


def _heading(facts: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {label}" for label, number in facts["labels"].items())
    return (
        f"{facts['questions']} questions ({counts}); always saying {facts['majority']['label']} would be right in "
        f"{_percent(facts['majority']['accuracy'])} %."
    )


def text(facts: Mapping[str, Any]) -> str:
    """Lines for the terminal."""
    lines = [_heading(facts)]
    for method in methods_of(facts):
        lines += ["", _METHODS[method], as_text(scores(facts, method))]
        if facts["comparisons"]:
            lines += ["", as_text(compared(facts, method))]
        for name, run in facts["runs"].items():
            lines += ["", f"{name}, {method}", as_text(classes(run[method]))]
    return "\n".join(lines)


def report(facts: Mapping[str, Any], questions: Sequence[Question], runs: Sequence[Answers]) -> Report:
    sections = []
    for method in methods_of(facts):
        bars = {
            name: [
                tuple(100 * x for x in (run[method]["accuracy"], *run[method]["interval"])),
                100 * run[method]["macro_f1"],
                *(100 * c["f1"] for c in run[method]["classes"].values()),
            ]
            for name, run in facts["runs"].items()
        }
        sections.append(
            Section(
                method.capitalize(),
                _METHODS[method],
                scores(facts, method),
                Plot(
                    ["accuracy", "macro F1", *(f"F1 {label}" for label in facts["labels"])], bars, form=".1f", unit=" %"
                ),
            )
        )
        if facts["comparisons"]:
            sections.append(
                Section(
                    f"{method.capitalize()}: the same questions",
                    "Two-sided exact McNemar test.",
                    compared(facts, method),
                )
            )
        sections += [
            Section(f"{name}, by {method}", "Rows are the correct answers.", classes(run[method]))
            for name, run in facts["runs"].items()
        ]
    top = {name: facts[name] for name in ("model", "file", "setting", "wording") if facts.get(name)}
    return Report(
        "PubMedQA", {**top, "questions": _heading(facts)}, sections, {**facts, "answers": items(questions, runs)}
    )


def items(questions: Sequence[Question], runs: Sequence[Answers]) -> list[dict[str, Any]]:
    """Every question with what each run made of it."""
    return [
        {
            "id": question.id,
            "prompt": question.prompt,
            "right": question.labels[question.right],
            "runs": {run.name: _said(run, number) for run in runs},
        }
        for number, question in enumerate(questions)
    ]


def _said(run: Answers, number: int) -> dict[str, Any]:
    scores = dict(zip(run.labels, run.log_likelihoods[number].tolist(), strict=True))
    return {"log_likelihoods": scores} | ({} if run.replies is None else {"reply": run.replies[number]})
