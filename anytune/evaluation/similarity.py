"""How alike two texts are: chrF, ROUGE-L, Jaccard over words. 1 (chrF: 100) for equal texts, 0 for nothing in common.

chrF: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation": n-grams of 1 to 6 characters, white
space left out, recall weighed twice (beta 2); the numbers are sacrebleu's. ROUGE-L: Lin 2004, "ROUGE: a package for
automatic evaluation of summaries": F1 over the longest common subsequence of words; the numbers are rouge-score's
without stemming (which knows ASCII alone: here letters of every script are words).
"""

from __future__ import annotations

import re
from collections import Counter

ORDER, BETA = 6, 2
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return _WORD.findall(text.lower())


def chrf(answer: str, reference: str) -> float:
    """chrF2 of one answer, 0 to 100. Orders that either text is too short for do not count."""
    answer, reference = "".join(answer.split()), "".join(reference.split())
    precision = recall = 0.0
    orders = min(ORDER, len(answer), len(reference))
    for n in range(1, orders + 1):
        ours, theirs = _grams(answer, n), _grams(reference, n)
        common = (ours & theirs).total()
        precision += common / ours.total()
        recall += common / theirs.total()
    if not precision:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 of one answer, 0 to 1."""
    ours, theirs = words(answer), words(reference)
    common = longest_common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    """Its length, a column of the table at a time as the bits of one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    column = full
    for word in b:
        matches = column & places.get(word, 0)
        column = (column + matches | column - matches) & full
    return len(a) - column.bit_count()


def jaccard(a: str, b: str) -> float:
    """Common words among all words of the two texts, 0 to 1; two texts without words are alike."""
    ours, theirs = set(words(a)), set(words(b))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
