"""Special tokens are cut out of a text before anything else looks at it."""

from __future__ import annotations

import re

from anytune.text.vocabulary import CONTROL, UNKNOWN, Vocabulary


class Partition:
    """Cuts special tokens out of text: the longest ones first, over the whole text, as llama.cpp does.

    With thousands of special tokens only those that occur are tried: a scan over their first characters
    finds them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._texts = {vocabulary.tokens[i]: i for i in reversed(vocabulary.special)}
        self._order = {text: k for k, text in enumerate(self._texts)}  # the longest has the highest
        self._user = {text for text, i in self._texts.items() if not vocabulary.kinds[i] & (CONTROL | UNKNOWN)}
        self._strip = vocabulary.strip_after
        self._tables = {}
        for special, texts in ((True, self._texts), (False, self._user)):
            lengths: dict[str, set[int]] = {}
            for text in texts:
                lengths.setdefault(text[0], set()).add(len(text))
            first = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None
            self._tables[special] = (texts, {char: sorted(found) for char, found in lengths.items()}, first)

    def __call__(self, text: str, special: bool) -> list[tuple[int, str | int]]:
        """[(index in text, plain text or token id)]"""
        if not text:
            return []
        fragments: list[tuple[int, str | int]] = [(0, text)]
        for token in sorted(self._present(text, special), key=self._order.__getitem__, reverse=True):
            cut: list[tuple[int, str | int]] = []
            for at, piece in fragments:
                if isinstance(piece, int) or token not in piece:
                    cut.append((at, piece))
                    continue
                self._cut(at, piece, token, cut)
            fragments = cut
        return fragments

    def _cut(self, at: int, piece: str, token: str, out: list) -> None:
        token_id = self._texts[token]
        start = 0
        while (found := piece.find(token, start)) >= 0:
            if found > start:
                out.append((at + start, piece[start:found]))
            out.append((at + found, token_id))
            start = found + len(token)
            if token_id in self._strip:
                while start < len(piece) and piece[start] in " \t\n\v\f\r":
                    start += 1
        if start < len(piece):
            out.append((at + start, piece[start:]))

    def _present(self, text: str, special: bool) -> set[str]:
        texts, lengths, first = self._tables[special]
        found: set[str] = set()
        if first is None:
            return found
        for match in first.finditer(text):
            at = match.start()
            for length in lengths[text[at]]:
                candidate = text[at : at + length]
                if candidate in texts:
                    found.add(candidate)
        return found
