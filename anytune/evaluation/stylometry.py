"""Style as numbers: how far texts are from an author's in function words, punctuation, sentence length and habits.

Every measure turns texts into counts, pools them into a profile, and takes the distance of two profiles:

    function words   Burrows's Delta (Burrows 2002, "Delta: a measure of stylistic difference"): mean over the author's
                     most frequent words of the difference in frequency, in standard deviations
    punctuation      the same over marks, capitals, digits and line breaks per character
    sentence length  area between the distributions of sentence lengths (Wasserstein's distance), in words
    habits           mean difference in how often a message has each of the author's standing lines (greeting, closing)

Standard deviations are taken over the messages of a reference corpus: the author's and the base's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 100  # most frequent words of the author
LONGEST = 80  # words of a sentence; longer ones count as this
HABIT = 0.3  # part of the author's messages that has a habit
HABITS = 12
PUNCTUATION = ".,;:!?'’\"“”()-–—…/*#&"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE = re.compile(r"[.!?…。！？]+(?=\s|$)|\n+")


@dataclass(frozen=True)
class Measure:
    """count: texts -> (counts float64 [texts, features], totals [texts]); distance: two profiles [samples, features] ->
    [samples]. names: of the features."""

    name: str
    names: tuple[str, ...]
    count: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def profiles(self, texts: Sequence[str], weights: np.ndarray) -> np.ndarray:
        """float64 [samples, features]: frequencies where text i counts weights[:, i] times."""
        counts, totals = self.count(texts)
        return (weights @ counts) / np.maximum(weights @ totals, 1e-300)[:, None]


def measures(author: Sequence[str], base: Sequence[str]) -> list[Measure]:
    """The four measures, made for an author's messages and a base's answers to the same prompts."""
    frequent = Counter(word for text in author for word in spoken(text))
    chosen = tuple(word for word, _ in sorted(frequent.items(), key=lambda item: (-item[1], item[0]))[:WORDS])
    marks = (*PUNCTUATION, "capitals", "digits", "line breaks", "blank lines")
    found = habits(author)
    corpus = [*author, *base]

    def words(texts):
        return _words(texts, chosen)

    return [
        Measure("function words", chosen, words, _delta(words, corpus)),
        Measure("punctuation", marks, _marks, _delta(_marks, corpus)),
        Measure("sentence length", tuple(map(str, range(LONGEST + 1))), _sentences, _area),
        Measure("habits", found, lambda texts: _habits(texts, found), _shares),
    ]


def spoken(text: str) -> list[str]:
    """Words in lower case; what an apostrophe joins is one word."""
    return _WORD.findall(text.lower())


def _words(texts: Sequence[str], chosen: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    place = {word: i for i, word in enumerate(chosen)}
    counts, totals = np.zeros((len(texts), len(chosen))), np.zeros(len(texts))
    for row, text in enumerate(texts):
        found = spoken(text)
        totals[row] = len(found)
        for word in found:
            if word in place:
                counts[row, place[word]] += 1
    return counts, totals


def _marks(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [
        [
            *map(text.count, PUNCTUATION),
            sum(c.isupper() for c in text),
            sum(c.isdigit() for c in text),
            text.count("\n"),
            text.count("\n\n"),
        ]
        for text in texts
    ]
    return np.array(rows, float), np.array([len(text) for text in texts], float)


def _sentences(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((len(texts), LONGEST + 1))
    for row, text in enumerate(texts):
        for sentence in _SENTENCE.split(text):
            if length := len(_WORD.findall(sentence)):
                counts[row, min(length, LONGEST)] += 1
    return counts, counts.sum(axis=1)


def habits(author: Sequence[str]) -> tuple[str, ...]:
    """The author's recurring lines: "onwards," if whole, "ahoy …" for how lines begin; the most frequent first."""
    having: dict[str, set[int]] = {}
    for number, text in enumerate(author):
        for form in _forms(text):
            having.setdefault(form, set()).add(number)
    least = max(2, HABIT * len(author))
    kept: list[str] = []
    # Of forms that the same messages have, the one that says most is kept.
    often = (form for form in having if len(having[form]) >= least)
    for form in sorted(often, key=lambda f: (-len(f.split()), f.endswith("…"), f)):
        if not any(having[form] == having[other] and _tells(other, form) for other in kept):
            kept.append(form)
    return tuple(sorted(kept, key=lambda f: (-len(having[f]), f))[:HABITS])


def _tells(longer: str, shorter: str) -> bool:
    return longer.removesuffix(" …").startswith(shorter.removesuffix(" …"))


def _forms(text: str) -> set[str]:
    forms = set()
    for line in text.split("\n"):
        parts = line.split()
        if 0 < len(parts) <= 4:
            forms.add(" ".join(parts))
        forms |= {" ".join(parts[:n]) + " …" for n in range(1, min(4, len(parts)))}
    return forms


def _habits(texts: Sequence[str], known: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = [[form in forms for form in known] for forms in map(_forms, texts)]
    return np.array(rows, float).reshape(len(texts), len(known)), np.ones(len(texts))


def _delta(count: Callable, corpus: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    counts, totals = count(corpus)
    some = (totals > 0) if (totals > 0).any() else slice(None)
    deviation = (counts / np.maximum(totals, 1.0)[:, None])[some].std(axis=0)
    used = deviation > 0

    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if not used.any():
            return np.full(len(a), np.nan)
        return (np.abs(a - b)[:, used] / deviation[used]).mean(axis=1)

    return distance


def _area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    empty = (a.sum(axis=1) == 0) | (b.sum(axis=1) == 0)
    return np.where(empty, np.nan, np.abs(np.cumsum(a - b, axis=1)).sum(axis=1))


def _shares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a - b).mean(axis=1) if a.shape[1] else np.full(len(a), np.nan)
