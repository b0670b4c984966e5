"""Control tokens in the texts of data that are to go through a chat template, which writes them itself."""

from __future__ import annotations

from collections import Counter

from anytune.text.vocabulary import CONTROL, UNUSED


class Control:
    """What is found in texts, and counted for notes."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.kinds = tokenizer, tokenizer.vocabulary.kinds
        self.rendered = self.ended = self.held = 0
        self.tokens: Counter[str] = Counter()

    def opens(self, prompt: str) -> bool:
        """Whether a prompt begins with a control token: then a template has rendered it already."""
        found = next(iter(self._found(prompt[:1000])), None)
        opens = found is not None and not prompt[: found[0]].strip()
        self.rendered += opens
        return opens

    def answer(self, text: str) -> str:
        """An answer without the end token that the template puts behind it."""
        found = self._found(text) if text else []
        at, token = found[-1] if found else (0, None)
        if token not in self.tokenizer.eog or text[at:].strip() != self._text(token):
            return text
        self.ended += 1
        return text[:at]

    def look(self, texts) -> None:
        """Count one example and its control tokens, if its texts hold any."""
        tokens = [self._text(token) for text in texts if isinstance(text, str) for _, token in self._found(text)]
        self.held += bool(tokens)
        self.tokens.update(tokens)

    def _found(self, text: str) -> list[tuple[int, int]]:
        """(index in the text, id) of each control token in it."""
        return [
            (at, piece)
            for at, piece in self.tokenizer.special_pieces(text)
            if isinstance(piece, int)
            and (piece in self.tokenizer.eog or self.kinds[piece] & CONTROL and not self.kinds[piece] & UNUSED)
        ]

    def _text(self, token: int) -> str:
        return self.tokenizer.vocabulary.tokens[token]

    def notes(self) -> list[str]:
        """Sentences for people."""
        notes = []
        if self.rendered:
            notes.append(
                f"Pairs whose prompt begins with a control token ({self.rendered:,}) are taken as already rendered: "
                "the template is not applied again."
            )
        if self.ended:
            notes.append(f"Answers that already end with an end token ({self.ended:,}) do not get a second one.")
        if self.held:
            often = ", ".join(token for token, _ in self.tokens.most_common(4))
            notes.append(
                f"Examples whose texts hold control tokens ({self.held:,}; {often}): they are parsed as control "
                "tokens. Give already rendered text as text or as pairs."
            )
        return notes
