"""One micro-batch through a model that is trained: forward, loss and backward, whatever the parameters are."""

from __future__ import annotations

import numpy as np

from anytune.engine.base import Stream

from .transformer import backward, forward

OUTPUT_NORM = "output_norm.weight"


class Passes:
    """What a trainee is made of besides its parameters; a subclass sets these before the first micro-batch.

    weights, layers, head   the model's parts on the engine, gradients attached
    lowest, keep            the lowest layer with a gradient; how many layers (from the last) keep all activations
    embedding_gradient, norm_gradient   what those of the embedding table and of the last norm's gain are added to
    """

    embedding_gradient = norm_gradient = None

    def __init__(self, model, ubatch: int, seed: int):
        self.model, self.engine, self.config = model, model.engine, model.config
        self.ubatch, self.seed = ubatch, seed

    def accumulate(self, batch, scale: float, step: int, micro: int):
        """Run one micro-batch; add scale * gradient of its summed loss. -> that sum (nats, a Number)."""
        self.engine.training = True
        return self._replay("train", self._train, batch, scale, (self.seed, step, micro))

    def evaluate(self, batch):
        """Summed loss (nats, a Number) of a micro-batch, no gradients, no dropout."""
        self.engine.training = False
        return self._replay("evaluate", self._measure, batch, 1.0, (0, 0, 0))

    def _replay(self, kind: str, body, batch, scale: float, key: tuple[int, int, int]):
        rows = np.flatnonzero(batch.targets >= 0).astype(np.int32)
        if rows.size == 0:
            return 0.0
        return self.engine.replay(
            kind,
            body,
            Stream(batch.ids, batch.positions, batch.starts, rows, batch.targets[rows], scale, self.ubatch, key),
        )

    def _train(self, s: Stream):
        e, eps = self.engine, self.config.eps
        tape, h, top = self._forward(s, self.lowest)
        loss, dh = e.cross_entropy(h, self.head, s.targets, s.scale, True)
        del h  # here and below: its memory is wanted for what follows
        if self.norm_gradient is not None:
            e.gain_gradient(dh, top, eps, self.norm_gradient)
        if self.lowest < len(self.layers):
            dx = e.rms_norm_backward(dh, top, self.weights.output_norm, eps)
            del top, dh
            bottom = self.embedding_gradient is not None
            dx = backward(e, self.layers, dx, self.config, s.positions, s.rows, self.lowest, self.keep, tape, bottom)
            if bottom:
                e.embed_backward(dx, s.ids, self.weights.embedding_scale, self.embedding_gradient)
        return loss

    def _measure(self, s: Stream):
        h = self._forward(s, len(self.layers))[1]
        return self.engine.cross_entropy(h, self.head, s.targets, s.scale, False)[0]

    def _forward(self, s: Stream, lowest: int):
        e, weights = self.engine, self.weights
        x = e.embed(s.ids, weights.embedding, weights.embedding_scale)
        top, tape = forward(e, self.layers, x, self.config, s.positions, s.rows, lowest, self.keep)
        return tape, e.rms_norm(top, weights.output_norm, self.config.eps), top
