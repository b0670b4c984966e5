"""How near answers come to one author's messages that were held out of training: before and after, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.evaluation.answers import losses
from anytune.evaluation.bootstrap import figure, interval, normal_interval, resampled
from anytune.evaluation.compare import BASE, Step, check_names, items_of, lengths, replies_of, similarities
from anytune.evaluation.kept import Kept
from anytune.evaluation.prompts import Form, Prompt
from anytune.evaluation.stylometry import Measure, measures
from anytune.generation.sampling import Sampling

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.text import ChatTemplate

LEAST = 4  # messages; of two halves each needs two
HALVES = 200  # ways to halve the author's messages


def style(
    model: Model,
    prompts: Sequence[Prompt],
    adapters: Mapping[str, Adapter],
    *,
    name: str = "messages",
    how: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    batch: int = 8,
    template: ChatTemplate | None = None,
    chat: bool | None = None,
    seed: int = 0,
    kept: Kept | None = None,
    progress: Step | None = None,
) -> dict[str, Any]:
    """Facts, JSON-able; style_report.report() makes a page of them. prompts: the references are the author's messages.

    Texts without prompts are continued from their first third, as raw text. Other arguments as in compare().
    distances: measure -> series -> (value, low, high), see stylometry.py; author: the same between two halves of
    the author's own messages, the least that can be asked for; change: adapter less base (negative: nearer). loss,
    perplexity: of the author's messages, a token. Raises UserError.
    """
    check_names(adapters)
    prompts, chat = _messages(prompts, chat, name)
    how = how or Sampling(temperature=0, seed=0)
    form = Form.of(model, adapters, template, chat)
    ids = form.encode_all(prompts, name)
    examples = [_fitted(form.encode_reference(prompt), model.config.context) for prompt in prompts]
    draws = resampled(len(prompts), seed)
    likelihoods = _losses(model, adapters, examples, draws, progress)
    items = items_of(prompts, replies_of(model, adapters, ids, how, max_tokens, stop, batch, progress, kept))
    series = [BASE, *adapters]
    author = [item["reference"] for item in items]
    texts = {side: [item["answers"][side] for item in items] for side in series}
    made = measures(author, texts[BASE])
    return {
        "model": model.name,
        "adapters": list(adapters),
        "messages": len(items),
        "generation": {
            **asdict(how),
            "max_tokens": max_tokens,
            "stop": list(stop),
            "form": "raw text" if form.template is None else f"chat template ({form.template.origin})",
        },
        **_distances(made, author, texts, draws, seed),
        "habits": _habits(made, author, texts),
        **likelihoods,
        "answers": {side: lengths(items, side, draws) for side in series},
        **similarities(model, items, series, draws, progress),
        "items": items,
    }


def _messages(prompts: Sequence[Prompt], chat: bool | None, name: str) -> tuple[list[Prompt], bool | None]:
    """Prompts with references: rows of text alone are cut after a third of their words."""
    if all(p.reference is None and p.text is not None for p in prompts):
        cut = [(p, *_cut(p.text or "")) for p in prompts]
        prompts = [
            replace(p, text=start, messages=({"role": "user", "content": start},), reference=rest)
            for p, start, rest in cut
            if rest
        ]
        chat = False if chat is None else chat
    bare = next((p for p in prompts if not (p.reference or "").strip()), None)
    if bare is not None:
        raise UserError(
            f"{name}, line {bare.line}: there is no message of the author; each row needs the prompt and "
            "the message, or the message alone as text."
        )
    if len(prompts) < LEAST:
        raise UserError(f"{name} has {len(prompts)} messages of the author, and style takes at least {LEAST}.")
    return list(prompts), chat


def _cut(text: str) -> tuple[str, str]:
    words = text.split(" ")
    at = -(-len(words) // 3)
    rest = " ".join(words[at:])
    return " ".join(words[:at]), " " + rest if rest.strip() else ""  # together they are the text again


def _fitted(example: tuple[list[int], list[bool]], context: int) -> tuple[list[int], list[bool]]:
    return example[0][:context], example[1][:context]


def _losses(
    model: Model,
    adapters: Mapping[str, Adapter],
    examples: list[tuple[list[int], list[bool]]],
    draws: np.ndarray,
    progress: Step | None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "loss": {},
        "perplexity": {},
        "loss_change": {},
        "tokens": sum(sum(on) for _, on in examples),
    }
    sides: dict[str, Adapter | None] = {BASE: None, **adapters}
    first = None
    for number, (side, adapter) in enumerate(sides.items()):

        def tell(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress("losses", number * total + done, len(sides) * total)

        tell(0, len(examples))
        sums, counts = losses(model, adapter, examples, tell)
        first = sums if first is None else first
        found = figure(lambda weights, sums=sums, counts=counts: weights @ sums / (weights @ counts), draws)
        facts["loss"][side], facts["perplexity"][side] = found, tuple(float(np.exp(min(v, 700.0))) for v in found)
        if adapter is not None:
            facts["loss_change"][side] = figure(
                lambda weights, less=sums - first, counts=counts: weights @ less / (weights @ counts), draws
            )
    return facts


def _distances(
    made: list[Measure], author: list[str], texts: Mapping[str, list[str]], draws: np.ndarray, seed: int
) -> dict[str, Any]:
    """Messages and answers are drawn in pairs; the author's halves are drawn at random."""
    facts: dict[str, Any] = {"distances": {}, "author": {}, "change": {}}
    rng = np.random.default_rng([seed, 2])
    half = np.zeros((HALVES, len(author)))
    for row in half:
        row[rng.permutation(len(author))[: len(author) // 2]] = 1
    once = np.ones((1, len(author)))
    for measure in made:
        own, own_once = measure.profiles(author, draws), measure.profiles(author, once)
        found, samples = {}, {}
        for side, answers in texts.items():
            samples[side] = measure.distance(measure.profiles(answers, draws), own)
            value = float(measure.distance(measure.profiles(answers, once), own_once)[0])
            found[side] = normal_interval(value, samples[side], 0.0)
        halves = measure.distance(measure.profiles(author, half), measure.profiles(author, 1 - half))
        facts["distances"][measure.name] = found
        facts["author"][measure.name] = interval(float(halves.mean()), halves)
        facts["change"][measure.name] = {
            side: normal_interval(found[side][0] - found[BASE][0], samples[side] - samples[BASE])
            for side in found
            if side != BASE
        }
    return facts


def _habits(made: list[Measure], author: list[str], texts: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The part of the messages that has each habit."""
    measure = next(m for m in made if m.name == "habits")
    once = np.ones((1, len(author)))
    sides = {"author": author, **texts}
    rates = {side: measure.profiles(found, once)[0] for side, found in sides.items()}
    return [
        {"habit": habit, **{side: float(rate[i]) for side, rate in rates.items()}}
        for i, habit in enumerate(measure.names)
    ]
