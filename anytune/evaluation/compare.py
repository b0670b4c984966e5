"""Base against adapters on the same prompts: their answers side by side, how alike they are, and a judge's word.

Where the data has references, every answer is measured against its reference; every adapter's answer is measured
against the base's, which tells how much the adapter changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.evaluation.answers import answer
from anytune.evaluation.bootstrap import mean_interval, resampled
from anytune.evaluation.embeddings import cosines, embed, unrelated
from anytune.evaluation.judge import PairJudge
from anytune.evaluation.kept import Kept, identity
from anytune.evaluation.prompts import Form, Prompt
from anytune.evaluation.similarity import chrf, jaccard, rouge_l, words
from anytune.likelihood.choices import wilson
from anytune.generation.sampling import Sampling

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.generation.generate import Reply
    from anytune.model import Model
    from anytune.text import ChatTemplate

BASE = "base"
TEXT_MEASURES = {"chrF": chrf, "ROUGE-L": rouge_l, "Jaccard": jaccard}
MEASURES = (*TEXT_MEASURES, "cosine")
# Progress: (what is done: "answers", "embeddings", "judge", "losses"; how far; of how much).
Step = Callable[[str, int, int], None]


def compare(
    model: Model,
    prompts: Sequence[Prompt],
    adapters: Mapping[str, Adapter],
    *,
    name: str = "prompts",
    how: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    batch: int = 8,
    template: ChatTemplate | None = None,
    chat: bool | None = None,
    judge: PairJudge | None = None,
    pair: tuple[str, str] | None = None,
    others: Mapping[str, Model] | None = None,
    seed: int = 0,
    kept: Kept | None = None,
    progress: Step | None = None,
) -> dict[str, Any]:
    """Facts, JSON-able; report.py's form of them comes from compare_report.report().

    adapters: name -> Adapter. name: of the prompts' file, for complaints. how: greedy if None. batch: prompts decoded
    together; template, chat: as in generate. others: name -> another Model, which answers in its own form. pair: the
    judge compares these two instead of each with the base. seed: of the bootstrap. kept: where answers are kept until
    the end. A judge that fails half-way leaves what it has said so far, and the reason under facts["judge"]["error"].
    Raises UserError.
    """
    others = others or {}
    check_names({**adapters, **others})
    if twice := set(adapters) & set(others):
        raise UserError(f"An adapter and a model are called {min(twice)}: name one of them, as in --other NAME=FILE.")
    how = how or Sampling(temperature=0, seed=0)
    form = Form.of(model, adapters, template, chat)
    ids = form.encode_all(prompts, name)
    of_others = {
        series: (other, Form.of(other, {}, template, chat).encode_all(prompts, name))
        for series, other in others.items()
    }
    replies = replies_of(model, adapters, ids, how, max_tokens, stop, batch, progress, kept, of_others)
    names = [*adapters, *others]
    items = items_of(prompts, replies)
    draws = resampled(len(items), seed)
    facts = {
        "model": model.name,
        "adapters": names,
        "prompts": len(items),
        "references": sum(item["reference"] is not None for item in items),
        "generation": {
            **asdict(how),
            "max_tokens": max_tokens,
            "stop": list(stop),
            "form": "raw text" if form.template is None else f"chat template ({form.template.origin})",
        },
        "answers": {series: lengths(items, series, draws) for series in replies},
        **similarities(model, items, list(replies), draws, progress),
    }
    if judge is not None:
        facts["judge"] = judged(items, [pair] if pair else [(name, BASE) for name in names], judge, progress)
    return {**facts, "items": items}


def check_names(adapters: Mapping[str, Adapter]) -> None:
    if not adapters:
        raise UserError(
            "There is nothing to compare the base with: give an adapter with --lora, or a model with --other."
        )
    if {BASE, "reference"} & set(adapters):
        raise UserError("The names base and reference are reserved: rename the file, or name it with --lora NAME=FILE.")


def replies_of(
    model: Model,
    adapters: Mapping[str, Adapter],
    ids: list[list[int]],
    how: Sampling,
    max_tokens: int,
    stop: Sequence[str],
    batch: int,
    progress: Step | None,
    kept: Kept | None = None,
    others: Mapping[str, tuple[Model, list[list[int]]]] | None = None,
) -> dict[str, list[Reply]]:
    """base, each adapter and each other model (with its ids of the prompts) -> one Reply a prompt."""
    adapted: dict[str, Adapter | None] = {BASE: None, **adapters}
    sides = {series: (model, adapter, ids) for series, adapter in adapted.items()}
    sides |= {series: (other, None, theirs) for series, (other, theirs) in (others or {}).items()}
    if kept is not None:
        settings = {"how": asdict(how), "max_tokens": max_tokens, "stop": list(stop), "batch": batch}
        elsewhere = {series: [identity(other, {}), theirs] for series, (other, theirs) in (others or {}).items()}
        kept.begin(identity(model, adapted, prompts=ids, **settings, **({"others": elsewhere} if elsewhere else {})))
    found = {}
    for number, (series, (answering, adapter, asked)) in enumerate(sides.items()):

        def tell(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress("answers", number * total + done, len(sides) * total)

        tell(0, len(ids) * max_tokens)
        found[series] = answer(
            answering,
            adapter,
            asked,
            how,
            max_tokens=max_tokens,
            stop=stop,
            batch=batch,
            kept=kept,
            series=series,
            progress=tell,
        )
    return found


def items_of(prompts: Sequence[Prompt], replies: Mapping[str, list[Reply]]) -> list[dict[str, Any]]:
    """One dict a prompt: line, prompt, reference, answers, scores; ended: series -> whether it ended its turn."""
    return [
        {
            "line": prompt.line,
            "prompt": prompt.shown,
            "reference": None if prompt.reference is None else prompt.reference.strip(),
            "answers": {series: found[i].text.strip() for series, found in replies.items()},
            "ended": {series: found[i].finish == "stop" for series, found in replies.items()},
            "to_reference": {},
            "to_base": {},
        }
        for i, prompt in enumerate(prompts)
    ]


def lengths(items: list[dict[str, Any]], series: str, draws: np.ndarray) -> dict[str, Any]:
    """words: of an answer in the mean; ended: the part that the model ended itself, instead of being cut off;
    length_ratio: words of the answer over the reference's, geometric mean; each with its interval."""
    counts = np.array([max(1, len(words(item["answers"][series]))) for item in items], float)
    wanted = np.array(
        [max(1, len(words(item["reference"]))) if item["reference"] is not None else np.nan for item in items]
    )
    ratio = np.exp(mean_interval(np.log(counts / wanted), draws))
    return {
        "words": mean_interval([len(words(item["answers"][series])) for item in items], draws),
        "ended": share(sum(item["ended"][series] for item in items), len(items)),
        "length_ratio": tuple(map(float, ratio)),
    }


def share(part: float, count: int) -> tuple[float, float, float]:
    """A share with Wilson's interval, which is not empty where all or none are counted. NaN of nothing."""
    return (part / count, *wilson(part, count)) if count else (float("nan"),) * 3


def similarities(
    model: Model, items: list[dict[str, Any]], series: list[str], draws: np.ndarray, progress: Step | None
) -> dict[str, Any]:
    """to_reference, gain (adapter - base), to_base: measure -> series -> (mean, low, high). Fills the items' scores."""
    tell = None if progress is None else lambda done, total: progress("embeddings", done, total)
    columns = [*series, "reference"]
    texts = [
        item["reference"] or "" if column == "reference" else item["answers"][column]
        for column in columns
        for item in items
    ]
    distinct = list(dict.fromkeys(texts))
    if tell is not None:
        tell(0, len(distinct))
    rows = dict(zip(distinct, embed(model, distinct, tell), strict=True))
    vectors = {
        column: np.stack([rows[text] for text in texts[k * len(items) : (k + 1) * len(items)]])
        for k, column in enumerate(columns)
    }
    known = np.array([item["reference"] is not None for item in items])
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for against in ("to_reference", "to_base"):
        other = "reference" if against == "to_reference" else BASE
        for side in series[against == "to_base" :]:
            cosine = cosines(vectors[side], vectors[other])
            for item, value in zip(items, cosine.tolist(), strict=True):
                target = item["reference"] if other == "reference" else item["answers"][BASE]
                if target is not None:
                    found = {name: score(item["answers"][side], target) for name, score in TEXT_MEASURES.items()}
                    item[against][side] = {**found, "cosine": value}
            for name in MEASURES:
                values = [item[against].get(side, {}).get(name, np.nan) for item in items]
                scores.setdefault(against, {}).setdefault(name, {})[side] = values
    facts: dict[str, Any] = {
        against: {
            name: {side: mean_interval(values, draws) for side, values in sides.items()}
            for name, sides in measures.items()
        }
        for against, measures in scores.items()
    }
    facts["gain"] = {
        name: {
            side: mean_interval(np.subtract(values, sides[BASE]), draws)
            for side, values in sides.items()
            if side != BASE
        }
        for name, sides in scores["to_reference"].items()
    }
    facts["same_as_base"] = {
        side: float(np.mean([item["answers"][side] == item["answers"][BASE] for item in items])) for side in series[1:]
    }
    facts["cosine_of_unrelated"] = unrelated(vectors[BASE][known], vectors["reference"][known])
    if not known.any():
        del facts["to_reference"], facts["gain"]
    return facts


def judged(
    items: list[dict[str, Any]], pairs: list[tuple[str, str]], judge: PairJudge, progress: Step | None
) -> dict[str, Any]:
    """The judge's verdicts on (one, other) as 1 (one wins), 0.5 (tie), 0 or None in items["judge"][one]; their sums."""
    error, total = None, len(items) * len(pairs)
    if progress is not None:
        progress("judge", 0, total)
    for number, (item, (name, other)) in enumerate((item, pair) for item in items for pair in pairs):
        try:
            verdict = judge.compare(item["prompt"], item["answers"][name], item["answers"][other], item["reference"])
        except UserError as failure:
            error = str(failure)
            break
        item.setdefault("judge", {})[name] = verdict
        if progress is not None:
            progress("judge", number + 1, total)
    facts: dict[str, Any] = {
        "judge": judge.name,
        "criteria": judge.criteria,
        "requests": judge.asked,
        "unclear_replies": judge.unclear,
        "error": error,
        "against": pairs[0][1],
        "adapters": {},
    }
    for name, _ in pairs:
        found = [item.get("judge", {}).get(name) for item in items]
        values = np.array([np.nan if value is None else value for value in found])
        facts["adapters"][name] = {
            "wins": int((values == 1).sum()),
            "ties": int((values == 0.5).sum()),
            "losses": int((values == 0).sum()),
            "no_verdict": int(np.isnan(values).sum()),
            "win_rate": share(float(np.nansum(values)), int(np.isfinite(values).sum())),
        }
    return facts
