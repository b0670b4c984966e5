"""Generation's half of a model: a cache of keys and values for several sequences, fed a few tokens at a time."""

from __future__ import annotations

import copy

import numpy as np

from anytune.errors import UserError
from anytune.memory import available_bytes, process_bytes

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
        width = self.config.n_kv_heads * self.config.head_size
        self._caches = [
            (self.engine.cache(batch, self.context, width), self.engine.cache(batch, self.context, width))
            for _ in self.layers
        ]
        self.lengths = [0] * batch

    def _arrange(self, adapter) -> None:
        pairs = self.model.adapter_pairs(adapter)
        self.layers, self.head = self.model.weights.layers(self._tables, pairs), self.model.weights.head(pairs)

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
        self.lengths[slot] = min(self.lengths[slot], length)

    def _run(self, pieces: list[list[int]], slots: list[int], wanted: list[int], run):
        """Run one chunk -> what run() gives after the last token of each wanted piece (None without any)."""
        sizes = np.cumsum([0] + [len(p) for p in pieces])
        spans = [(slot, int(a), int(b), self.lengths[slot]) for slot, a, b in zip(slots, sizes, sizes[1:])]
        ids = np.concatenate([np.asarray(p, np.int32) for p in pieces])
        self.engine.training = False
        made = run(self._body, ids, spans, [int(sizes[n + 1]) - 1 for n in wanted])
        for slot, low, high, position in spans:
            self.lengths[slot] = position + high - low
        return made

    def _body(self, ids, positions, places, rows):
        """All layers over new tokens -> logits of `rows` on the engine."""
        e, c = self.engine, self.config
        linear = e.linear_decode if ids.shape[0] <= e.decode_rows else e.linear
        x = e.embed(ids, self.model.weights.embedding, self.model.weights.embedding_scale)
        for layer, caches in zip(self.layers, self._caches):
            qkv = linear(e.rms_norm(x, layer.attn_norm, c.eps), layer.qkv)
            q = e.qk_norm_rope_store(
                qkv, layer.head_norms, c.eps, layer.rope, positions, layer.heads, c.arch.neox, caches, places
            )
            (y,) = linear(e.attend_cache(q, *caches, places, layer.heads), layer.out)
            if layer.post_attn_norm is not None:
                y = e.rms_norm(y, layer.post_attn_norm, c.eps)
            x = e.add(x, y)
            gate, up = linear(e.rms_norm(x, layer.ffn_norm, c.eps), layer.gate_up)
            (y,) = linear(e.glu(gate, up, c.arch.activation), layer.down)
            if layer.post_ffn_norm is not None:
                y = e.rms_norm(y, layer.post_ffn_norm, c.eps)
            x = e.add(x, y)
        if rows is None:
            return None
        return e.logits(e.rms_norm(e.gather(x, rows), self.model.weights.output_norm, c.eps), self.head)


def dense_fits(model) -> bool:
    """Whether all matrices as float32 fit the memory that the model was given, or half of what is free."""
    size = sum(4 * m.in_features * m.out_features for m in model.weights.matrices.values())
    free = available_bytes() // 2 if model.memory is None else model.memory - process_bytes()
    return size < free
