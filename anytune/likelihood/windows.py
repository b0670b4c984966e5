"""Texts as windows of tokens, and a model's logits over several of them at once, packed end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.errors import UserError, check_numbers
from anytune.model.stack import Stack

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

PIECE = 64 << 20  # bytes of logits at a time
CONTEXT = 512  # tokens of a window, where the model can take so many


def windows(model: Model, text: str, context: int | None, chunks: int | None, least: int) -> list[list[int]]:
    """The text's tokens in windows, the rest left out; each begins with BOS if the model wants one.

    context: tokens of a window (None: CONTEXT); chunks: how many windows at most. Raises UserError for a text of
    fewer than `least` windows.
    """
    context = min(CONTEXT, model.config.context) if context is None else context
    if context < 2 or context > model.config.context:
        raise UserError(f"-c {context} is not between 2 and the model's context of {model.config.context}.")
    ids = model.tokenize(text)
    if len(ids) < least * context:
        raise UserError(
            f"The text has {len(ids)} tokens, but {least * context} are needed: give a longer text, or a smaller -c."
        )
    found = [ids[lo : lo + context] for lo in range(0, len(ids) - context + 1, context)][:chunks]
    return [starting(model, window) for window in found]


def starting(model: Model, ids: list[int]) -> list[int]:
    """The window with BOS in place of its first token, if the model wants one."""
    tokenizer = model.tokenizer
    return [tokenizer.bos, *ids[1:]] if tokenizer.add_bos and tokenizer.bos is not None else list(ids)


class Forward:
    """A model's layers ready to run on packed sequences. engine: in place of the model's own, to watch it."""

    def __init__(self, model: Model, context: int, adapter: Adapter | None = None):
        from anytune.model.decoder import dense_fits

        if model.weights.slow and dense_fits(model):
            model.hold("float32")
        slots = model.adapter_pairs(adapter)
        self.model, self.engine = model, model.engine
        self.layers, self.head = model.weights.layers(model.rope_tables(context), slots), model.weights.head(slots)

    def hidden(self, sequences: Sequence[Sequence[int]], engine=None):
        """What the last norm gives for every token, on the engine: [tokens of all sequences, width]."""
        ids = np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences])
        starts = np.cumsum([0, *map(len, sequences)]).astype(np.int32)
        places = np.concatenate([np.arange(len(sequence), dtype=np.int32) for sequence in sequences])
        self.engine.training = False
        self.engine.begin(starts, 0, (0, 0, 0))
        stack = Stack(self.model.weights, self.layers, self.head)
        return stack.hidden(engine or self.engine, self.engine.integers(ids), self.engine.integers(places))

    def logits(self, hidden, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(first of these rows, float32 [some rows, vocabulary]), piece by piece. Raises UserError for NaN."""
        step = max(1, PIECE // (4 * self.model.config.vocabulary))
        e = self.engine
        for lo in range(0, len(rows), step):
            part = e.gather(hidden, e.integers(np.asarray(rows[lo : lo + step], np.int32)))
            logits = e.host(e.logits(part, self.head))
            check_numbers(logits)
            yield lo, logits


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """float64 [rows]: the logarithm of the sum of exponentials of each row."""
    peak = logits.max(axis=1, keepdims=True)
    return peak[:, 0].astype(np.float64) + np.log(np.exp(logits - peak).sum(axis=1, dtype=np.float64))
