"""A model on this machine as the judge of two answers: which of A, B and tie it finds likeliest as its verdict.

The verdict's JSON is begun for it, so that a small model judges too, at the price of one pass over the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from anytune.errors import UserError
from anytune.evaluation.judge import CRITERIA, PairJudge, messages

if TYPE_CHECKING:
    from anytune.model import Model

BEGUN = '{"winner": "'
VERDICTS = ("A", "B", "tie")


@dataclass
class LocalJudge(PairJudge):
    """model: any that this program loads, through its own chat template. asked: verdicts given; unclear: always 0."""

    model: Model
    criteria: str = CRITERIA
    asked: int = field(default=0, init=False)
    unclear: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return f"{self.model.gguf.path.name} on this machine"

    def check(self) -> None:
        """One short verdict, so that a model that cannot judge is known before the long work. Raises UserError."""
        self.ask("Say hello.", "Hello!", "No.")

    def ask(self, prompt: str, a: str, b: str, reference: str | None = None) -> str:
        """ "A", "B" or "tie". Raises UserError where the texts are longer than the judge's context."""
        ids, verdicts = self._encode(prompt, a, b, reference)
        longest = len(ids) + max(map(len, verdicts))
        if longest > self.model.config.context:
            raise UserError(
                f"The judge's context holds {self.model.config.context} tokens but a pair of answers takes "
                f"{longest}: use a judge with a longer context, or lower -n."
            )
        decoder = self.model.decoder(context=longest)
        after = _log_softmax(decoder.feed([ids])[0])
        sums = []
        for verdict in verdicts:
            total = float(after[verdict[0]])
            for before, token in zip(verdict, verdict[1:], strict=False):
                total += float(_log_softmax(decoder.feed([[before]])[0])[token])
            decoder.truncate(0, len(ids))
            sums.append(total)
        self.asked += 1
        return VERDICTS[int(np.argmax(sums))]

    def _encode(self, prompt: str, a: str, b: str, reference: str | None) -> tuple[list[int], list[list[int]]]:
        """(ids up to the verdict, ids of each verdict with the quotation mark that ends it)."""
        from anytune.generation.prompts import encode_rendered

        asked = messages(self.criteria, prompt, a, b, reference)
        # some templates have no system message: its content then precedes the request's
        asked = [{"role": "user", "content": "\n\n".join(message["content"] for message in asked)}]
        rendered = self.model.template.render(asked, None, add_generation_prompt=True)
        tokenizer = self.model.tokenizer
        ids = [*encode_rendered(tokenizer, rendered), *tokenizer.encode(BEGUN, special=False, bos=False)]
        return ids, [tokenizer.encode(f'{word}"', special=False, bos=False) for word in VERDICTS]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [vocabulary]"""
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())
