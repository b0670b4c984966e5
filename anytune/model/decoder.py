"""Generation's half of a model: a cache of keys and values for several sequences, fed a few tokens at a time."""

from __future__ import annotations

import copy

import numpy as np

from anytune.errors import UserError
from anytune.memory import available_bytes, process_bytes

from .stack import Stack

CHUNK = 512  # prompt tokens run at once


class Decoder:
    """Sequences ("slots") of one model, with or without an adapter; feed() extends them."""

    def __init__(self, model, adapter=None, batch: int = 1, context: int | None = None):
        self.model, self.engine, self.config = model, model.engine, model.config
        self.context = min(context or model.config.context, model.config.context)
        if model.weights.slow and dense_fits(model):
            model.hold("float32")
        self._tables = model.rope_tables(self.context)
        self._arrange(adapter)
        self.states = [layer.mixer.state(self.engine, batch, self.context) for layer in self.stack.layers]
        self.lengths = [0] * batch
        # where a state cannot forget its last tokens: those of each slot, and the slots that have to be run again
        self.rewinds = all(layer.mixer.REWINDS for layer in self.stack.layers)
        self._fed: list[list[int]] | None = None if self.rewinds else [[] for _ in range(batch)]
        self._again: set[int] = set()

    def _arrange(self, adapter) -> None:
        pairs = self.model.adapter_pairs(adapter)
        weights = self.model.weights
        self.stack = Stack(weights, weights.layers(self._tables, pairs), weights.head(pairs))

    def beside(self, adapter) -> Decoder:
        """A decoder of the same slots, caches and lengths, with this adapter instead."""
        made = copy.copy(self)
        made._arrange(adapter)
        return made

    def feed(self, tokens: list[list[int]]) -> np.ndarray:
        """Append tokens[i] to slot i (any number, also none).

        -> float32 [batch, vocab]: logits after each slot's last fed token, NaN for a slot that was fed nothing.
        Raises UserError if a sequence would outgrow the context.
        """
        result = np.full((len(tokens), self.config.vocabulary), np.nan, np.float32)
        for slots, logits in self._feed(tokens, self.engine.decode):
            result[slots] = logits
        return result

    def feed_best(self, tokens: list[list[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
        """As feed(), for those that choose among the `most` likeliest tokens.

        -> (ids int64, logits float32) [batch, most], the largest logit first (one that is no number before it); id -1
        and NaN for a slot that was fed nothing.
        """
        ids = np.full((len(tokens), most), -1, np.int64)
        values = np.full(ids.shape, np.nan, np.float32)

        def run(*args):
            return self.engine.decode_best(*args, most)

        for slots, (ids[slots], values[slots]) in self._feed(tokens, run):
            pass
        return ids, values

    def _feed(self, tokens: list[list[int]], run):
        """Yields (slots, what run() gives for the last tokens of each) until all tokens are fed."""
        for slot, new in enumerate(tokens):
            if self.lengths[slot] + len(new) > self.context:
                raise UserError(
                    f"the text is longer than the context of {self.context} tokens: give a larger -c "
                    f"(the model's limit is {self.config.context}) or a shorter prompt"
                )
        tokens = [self._behind(slot, new) for slot, new in enumerate(tokens)]
        done = [0] * len(tokens)
        while True:
            spans, left = [], CHUNK
            for slot, new in enumerate(tokens):
                count = min(len(new) - done[slot], left)
                if count > 0:
                    spans.append((slot, done[slot], done[slot] + count))
                    left -= count
            if not spans:
                return
            ready = [(number, slot) for number, (slot, _, b) in enumerate(spans) if b == len(tokens[slot])]
            made = self._run(
                [tokens[s][a:b] for s, a, b in spans], [s for s, _, _ in spans], [n for n, _ in ready], run
            )
            for slot, _, high in spans:
                done[slot] = high
            if ready:
                yield [slot for _, slot in ready], made

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from `length` on."""
        if length >= self.lengths[slot]:
            return
        self.lengths[slot] = length
        if self._fed is not None:
            self._fed[slot] = self._fed[slot][:length]
            self._again.add(slot)

    def _behind(self, slot: int, new: list[int]) -> list[int]:
        """New tokens of a slot with those before them that have to be run again."""
        if not new or slot not in self._again:
            return new
        self._again.discard(slot)
        kept, self._fed[slot], self.lengths[slot] = self._fed[slot], [], 0
        return [*kept, *new]

    def _run(self, pieces: list[list[int]], slots: list[int], wanted: list[int], run):
        """Run one chunk -> what run() gives after the last token of each wanted piece (None without any)."""
        sizes = np.cumsum([0] + [len(p) for p in pieces])
        spans = [(slot, int(a), int(b), self.lengths[slot]) for slot, a, b in zip(slots, sizes, sizes[1:])]
        ids = np.concatenate([np.asarray(p, np.int32) for p in pieces])
        self.engine.training = False
        # until it has run: an interruption, such as Ctrl-C, may leave some layers' states ahead of the others'
        if not self.rewinds:
            self._again.update(slots)
        made = run(self._body, ids, spans, [int(sizes[n + 1]) - 1 for n in wanted])
        for (slot, low, high, position), piece in zip(spans, pieces):
            self.lengths[slot] = position + high - low
            if self._fed is not None:
                self._fed[slot] += piece
        self._again.difference_update(slots)
        return made

    def _body(self, ids, positions, places, rows):
        """All layers over new tokens -> logits of `rows` on the engine."""
        h = self.stack.hidden(Continued(self.engine, places, self.states), ids, positions, rows)
        return None if rows is None else self.engine.logits(h, self.stack.head)


class Continued:
    """An engine for tokens that continue sequences: operations in which tokens see each other go by a layer's state."""

    def __init__(self, engine, places, states: list[tuple]):
        self._engine, self._places, self._states, self._state, self._turn = engine, places, states, (), ()

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    def enter(self, layer: int) -> None:
        """From now on this layer's state counts."""
        self._state = self._states[layer]

    def linear(self, x, group):
        e = self._engine
        return e.linear_decode(x, group) if x.shape[0] <= e.decode_rows else e.linear(x, group)

    def norm_linear(self, x, gain, eps: float, group):
        return self.linear(self._engine.rms_norm(x, gain, eps), group)

    def glu_linear(self, gate, up, activation: str, group):
        return self.linear(self._engine.glu(gate, up, activation), group)

    def qk_norm_rope(self, q, k, *turn):
        """Waits for attention(), which turns and stores in one operation."""
        self._turn = turn
        return q, k

    def attention(self, q, k, v, heads, sinks=None):
        q = self._engine.qk_norm_rope_store((q, k, v), *self._turn, self._state, self._places)
        return self._engine.attend_cache(q, *self._state, self._places, heads, sinks), None

    attention_with = attention

    def attend_latent(self, q, k, turn: tuple, heads):
        """Keys that are the values too, behind columns of no meaning there, in one cache."""
        q, k = self._engine.qk_norm_rope(q, k, *turn)
        (cache,) = self._state
        self._engine.store(cache, self._places, k)
        return self._engine.attend_cache(q, cache, cache, self._places, heads)

    def attend_again(self, q, k, turn: tuple, heads, source: int):
        """Queries of a layer that reads another's keys and values, which are stored already; k [T, …] as wide as its
        keys, of no other meaning."""
        q, _ = self._engine.qk_norm_rope(q, k, *turn)
        return self._engine.attend_cache(q, *self._states[source], self._places, heads), None

    def convolve(self, x, weight, silu: bool):
        return self._engine.convolve_cached(x, weight, silu, self._state[0], self._places)

    def delta(self, x, beta, alpha, weights, heads):
        return self._engine.delta_cached(x, beta, alpha, weights, heads, self._state[1], self._places), None


def dense_fits(model) -> bool:
    """Whether all matrices as float32 fit the memory that the model was given, or half of what is free."""
    size = sum(
        4 * m.in_features * m.out_features for n, m in model.weights.matrices.items() if not model.config.looked_up(n)
    )
    free = available_bytes() // 2 if model.memory is None else model.memory - process_bytes()
    return size < free
