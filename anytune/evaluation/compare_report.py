"""compare()'s facts for people: a Report, and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anytune.evaluation.report import Example, Plot, Report, Section, Table

SCALE = {"chrF": 1, "ROUGE-L": 100, "Jaccard": 100, "cosine": 100}  # to one axis from 0 to 100
_WHAT = (
    "chrF2: character n-grams (Popović 2015); ROUGE-L: common word sequences, F1 (Lin 2004); Jaccard: common "
    "words; cosine: between the model's own embeddings (means of its last hidden states), which are all similar. "
    "All on a scale of 0 to 100."
)
Figures = Mapping[str, Mapping[str, Sequence[float]]]  # measure -> series -> (value, low, high)


def scaled(value: Sequence[float], factor: float) -> tuple[float, ...]:
    return tuple(factor * v for v in value)


def shown(value: Sequence[float] | None, form: str = ".1f") -> str:
    """A mean and its interval as text."""
    if value is None or value[0] != value[0]:
        return "–"
    return f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]"


def measure_table(measures: Figures, gain: Figures, series: Sequence[str], scale: Mapping[str, float]) -> Table:
    """A row a measure: each series, then what each adapter adds to the base."""
    adapters = [name for name in series if name != "base"]
    head = ["", *series, *(f"{name} − base" for name in adapters)]
    return Table(
        head,
        [
            [
                name,
                *(shown(scaled(sides[s], scale[name])) for s in series),
                *(shown(scaled(gain[name][a], scale[name]), "+.1f") for a in adapters),
            ]
            for name, sides in measures.items()
        ],
    )


def measure_plot(measures: Figures, series: Sequence[str], note: str) -> Plot:
    values = {s: [scaled(sides[s], SCALE[name]) for name, sides in measures.items()] for s in series}
    return Plot(list(measures), values, form=".1f", note=note, most=100, color=0 if series[0] == "base" else 1)


def report(facts: Mapping[str, Any]) -> Report:
    """The page: closeness to references, to the base, the judge, lengths, every answer."""
    series = ["base", *facts["adapters"]]
    sections = []
    over = f"Means over {facts['prompts']} prompts with 95 % bootstrap intervals."
    if "to_reference" in facts:
        chance = facts["cosine_of_unrelated"]
        note = _WHAT
        if chance is not None:
            note += f" Answers and references of different prompts have a cosine of {100 * chance:.1f}."
        sections.append(
            Section(
                "Closeness to the references",
                f"{over} Higher is closer.",
                measure_table(facts["to_reference"], facts["gain"], series, SCALE),
                measure_plot(facts["to_reference"], series, note),
            )
        )
    if "judge" in facts:
        sections.append(_judge(facts["judge"]))
    same = ", ".join(f"{name}: {100 * part:.0f} %" for name, part in facts["same_as_base"].items())
    sections.append(
        Section(
            "Change from the base's answers",
            f"{over} 100 means no change. Identical answers: {same}.",
            plot=measure_plot(facts["to_base"], series[1:], _WHAT),
        )
    )
    sections.append(
        Section(
            "Length and ending",
            "",
            Table(
                ["", "words", "times the reference's", "ended by itself, %"],
                [
                    [
                        s,
                        shown(found["words"]),
                        shown(found["length_ratio"], ".2f"),
                        shown(scaled(found["ended"], 100), ".0f"),
                    ]
                    for s, found in facts["answers"].items()
                ],
            ),
        )
    )
    sections.append(Section("Answers", "", rows=[example(item) for item in facts["items"]]))
    return Report(
        f"{facts['model']}: base against {', '.join(facts['adapters'])}",
        _facts(facts),
        sections,
        {**facts, "kind": "compare"},
    )


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model", "adapters", "prompts", "references")
    return {
        **{name: facts[name] for name in names},
        "generation": generation(facts["generation"]),
        **({"judge": facts["judge"]["judge"]} if "judge" in facts else {}),
    }


def generation(how: Mapping[str, Any]) -> str:
    """How answers were made, in words; what is off is left out."""
    parts = (
        ["greedy"]
        if how["temperature"] <= 0
        else [
            f"temperature {how['temperature']:g}",
            f"top-k {how['top_k']}",
            f"top-p {how['top_p']:g}",
            f"min-p {how['min_p']:g}",
            f"seed {how['seed']}",
        ]
    )
    if how["repeat_penalty"] != 1:
        parts.append(f"repeat penalty {how['repeat_penalty']:g}")
    parts += [f"at most {how['max_tokens']} tokens", how["form"], *(f"ended by {text!r}" for text in how["stop"])]
    return ", ".join(parts)


def _judge(facts: Mapping[str, Any]) -> Section:
    text = (
        f"{facts['judge']} saw each pair in both orders; a verdict that changes with the order counts as a tie. "
        f"{facts['criteria']}" + (f"\nIt stopped early: {facts['error']}" if facts["error"] else "")
    )
    found = facts["adapters"]
    return Section(
        "The judge",
        text,
        Table(
            ["", "wins", "ties", "losses", "no verdict", "wins, ties half, %"],
            [
                [name, f["wins"], f["ties"], f["losses"], f["no_verdict"], shown(scaled(f["win_rate"], 100), ".0f")]
                for name, f in found.items()
            ],
        ),
        Plot(
            [f"against {'the base' if facts['against'] == 'base' else facts['against']}"],
            {name: [scaled(f["win_rate"], 100)] for name, f in found.items()},
            form=".0f",
            unit=" %",
            note="50 %: no difference.",
            most=100,
            color=1,
        ),
    )


def example(item: Mapping[str, Any]) -> Example:
    """A prompt, its reference if it has one, and every answer."""
    texts = ({} if item["reference"] is None else {"reference": item["reference"]}) | item["answers"]
    scores = {
        f"{measure} {side}": round(SCALE[measure] * value, 1)
        for side, found in item["to_reference"].items()
        for measure, value in found.items()
        if measure in ("chrF", "ROUGE-L")
    }
    words = {1.0: "wins", 0.5: "tie", 0.0: "loses", None: "no verdict"}
    judged = {f"judge: {name}": words[value] for name, value in item.get("judge", {}).items()}
    return Example(item["prompt"], texts, {"line": item["line"], **scores, **judged})


def answers(facts: Mapping[str, Any]) -> str:
    """Every prompt with what each side answered."""
    lines = []
    for item in facts["items"]:
        lines.append(f"> {item['prompt']}")
        lines += [f"{side}: {said}" for side, said in item["answers"].items()]
        lines.append("")
    return "\n".join(lines)


def text(facts: Mapping[str, Any]) -> str:
    """A few lines for the terminal."""
    from anytune.evaluation.report import as_text

    series = ["base", *facts["adapters"]]
    lines = []
    if "to_reference" in facts:
        lines += [
            f"to the references ({facts['references']}; × 100, 95 % intervals)",
            as_text(measure_table(facts["to_reference"], facts["gain"], series, SCALE)),
            "",
        ]
    lines += [
        f"to the base's answers ({facts['prompts']} prompts)",
        as_text(
            Table(
                ["", *series[1:]],
                [
                    [name, *(shown(scaled(sides[s], SCALE[name])) for s in series[1:])]
                    for name, sides in facts["to_base"].items()
                ],
            )
        ),
        "",
    ]
    lines.append(
        as_text(
            Table(
                ["", "words", "ended by itself, %"],
                [[s, shown(f["words"]), shown(scaled(f["ended"], 100), ".0f")] for s, f in facts["answers"].items()],
            )
        )
    )
    if "judge" in facts:
        lines += ["", f"judge: {facts['judge']['judge']}"] + [
            f"{name} against {facts['judge']['against']}: {f['wins']} wins, {f['losses']} losses, {f['ties']} ties, "
            f"{f['no_verdict']} without a verdict; win rate {shown(f['win_rate'], '.2f')}"
            for name, f in facts["judge"]["adapters"].items()
        ]
    return "\n".join(lines)
