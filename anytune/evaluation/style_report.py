"""style()'s facts for people: a Report, and lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anytune.evaluation.compare_report import SCALE, example, generation, measure_plot, measure_table, shown
from anytune.evaluation.report import Plot, Report, Section, Table, as_text

UNITS = {
    "function words": "Burrows's Delta",
    "punctuation": "Delta over marks",
    "sentence length": "words",
    "habits": "difference in share",
}
_HALVES = "The author's own row compares random halves of the held-out messages: smaller distances mean nothing."


def distance_table(facts: Mapping[str, Any]) -> Table:
    """A row a measure: the author against themself, base, adapters, and what each adapter changed."""
    adapters = facts["adapters"]
    return Table(
        ["distance to the author", "author", "base", *adapters, *(f"{a} − base" for a in adapters)],
        [
            [
                f"{name} ({UNITS[name]})",
                shown(facts["author"][name], ".2f"),
                *(shown(sides[s], ".2f") for s in ("base", *adapters)),
                *(shown(facts["change"][name][a], "+.2f") for a in adapters),
            ]
            for name, sides in facts["distances"].items()
        ],
    )


def loss_table(facts: Mapping[str, Any]) -> Table:
    series = ["base", *facts["adapters"]]
    return Table(
        ["", "loss per token, nats", "perplexity", "change of the loss"],
        [
            [
                s,
                shown(facts["loss"][s], ".3f"),
                shown(facts["perplexity"][s], ".2f"),
                shown(facts["loss_change"].get(s), "+.3f"),
            ]
            for s in series
        ],
    )


def habit_table(facts: Mapping[str, Any]) -> Table:
    series = ["author", "base", *facts["adapters"]]
    return Table(
        ["messages with", *series], [[h["habit"], *(f"{100 * h[s]:.0f} %" for s in series)] for h in facts["habits"]]
    )


def report(facts: Mapping[str, Any]) -> Report:
    """The page: distances, habits, likelihood, closeness message by message, lengths, every answer."""
    series = ["base", *facts["adapters"]]
    count = f"{facts['messages']} held-out messages, 95 % bootstrap intervals."
    distances = [
        Section(
            name[0].upper() + name[1:],
            "",
            plot=Plot(
                [UNITS[name]], {**{s: [sides[s]] for s in series}, "author": [facts["author"][name]]}, form=".2f"
            ),
        )
        for name, sides in facts["distances"].items()
    ]
    about = f"How far the answers are from the author; {count} Lower is closer. {_HALVES}"
    distances[0] = Section(distances[0].title, about, plot=distances[0].plot)
    sections = [
        *distances,
        Section("The distances in figures", "", distance_table(facts)),
        *(
            [
                Section(
                    "Standing lines",
                    "Lines, or beginnings of lines (…), in at least 30 % of the author's messages.",
                    habit_table(facts),
                )
            ]
            if facts["habits"]
            else []
        ),
        Section(
            "How likely the author's messages are",
            f"{facts['tokens']:,} tokens. Lower is better.",
            loss_table(facts),
            Plot(["loss per token, nats"], {s: [facts["loss"][s]] for s in series}, form=".3f"),
        ),
        Section(
            "Closeness to the very messages",
            f"{count} Higher is closer. Different wording in the same style scores low here: style is measured by "
            "the distances above.",
            measure_table(facts["to_reference"], facts["gain"], series, SCALE),
            measure_plot(facts["to_reference"], series, _note(facts)),
        ),
        Section("Length and ending", "", _lengths(facts)),
        Section("Messages", "", rows=[example(item) for item in facts["items"]]),
    ]
    top = {
        **{name: facts[name] for name in ("model", "adapters", "messages")},
        "generation": generation(facts["generation"]),
        "result": verdict(facts),
    }
    return Report(f"{facts['model']}: style before and after", top, sections, {**facts, "kind": "style"})


def verdict(facts: Mapping[str, Any]) -> str:
    """In how many distances each adapter is nearer to the author than the base is, beyond chance."""
    known = {
        name: change
        for name, change in facts["change"].items()
        if all(math.isfinite(change[adapter][0]) for adapter in facts["adapters"])
    }
    sentences = []
    for adapter in facts["adapters"]:
        nearer, farther = (
            sum(sign * change[adapter][side] < 0 for change in known.values()) for sign, side in ((1, 2), (-1, 1))
        )
        sentences.append(
            f"{adapter} is closer to the author than the base in {nearer} of {len(known)} distances"
            + (f", farther in {farther}" if farther else "")
        )
    return "; ".join(sentences) + " (95 % intervals without 0)"


def _note(facts: Mapping[str, Any]) -> str:
    chance = facts["cosine_of_unrelated"]
    return "chrF2; ROUGE-L, F1; Jaccard over words; cosine of the model's own embeddings. All times 100." + (
        "" if chance is None else f" Answers and messages of different prompts have a cosine of {100 * chance:.1f}."
    )


def _lengths(facts: Mapping[str, Any]) -> Table:
    return Table(
        ["", "words", "times the author's", "ended by itself, %"],
        [
            [s, shown(f["words"]), shown(f["length_ratio"], ".2f"), shown([100 * v for v in f["ended"]], ".0f")]
            for s, f in facts["answers"].items()
        ],
    )


def text(facts: Mapping[str, Any]) -> str:
    """The tables for the terminal."""
    series = ["base", *facts["adapters"]]
    parts = [
        distance_table(facts),
        *([habit_table(facts)] if facts["habits"] else []),
        loss_table(facts),
        measure_table(facts["to_reference"], facts["gain"], series, SCALE),
        _lengths(facts),
    ]
    return (
        f"{facts['messages']} held-out messages, 95 % intervals\n"
        + "\n\n".join(as_text(part) for part in parts)
        + f"\n\n{verdict(facts)}"
    )
