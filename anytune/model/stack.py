"""Embedding, layers, last norm and head: the one way through a model, for training, logits, planning and decoding.

Each part's forward returns what its backward needs, so what is kept is in plain sight: norms, gated products and
rotations are cheap and made again; the products' inputs are kept, or the whole layer is run again (keep).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anytune.engine.base import Stream

from .own_embeddings import look_up, look_up_backward
from .part import Layer, Run

if TYPE_CHECKING:
    from .build import Weights


def layer_forward(e, x, layer: Layer, positions, rows=None, again: bool = False, attended=None):
    """x -> (next x, (saved by the mixer, saved by what follows)).

    rows: the only ones that are wanted, int32 [M], or None: all. again: as in Gated.forward(); attended: as in
    Attention.forward().
    """
    x, mixed = layer.mixer.forward(e, x, positions, attended)
    if rows is not None:  # nothing after the mixer looks at another row
        x = e.gather(x, rows)
    x, fed = layer.ffn.forward(e, x, again and layer.beside is None)
    more = None
    if layer.beside is not None:
        x, more = layer.beside.forward(e, x, rows)
    if layer.factor != 1.0 and x is not None:
        x = e.scale(x, layer.factor)
    return x, (mixed, (fed, more))


def layer_backward(e, dx, saved, layer: Layer, positions, below: Layer | None, rows=None, bottom: bool = False):
    """dx of the layer's output -> dx of its input (None without a trained layer `below`, unless it is wanted at the
    `bottom`)."""
    mixed, (fed, more) = saved
    need_dx = below is not None or bottom
    into_mixer = need_dx or layer.mixer.trains
    if layer.factor != 1.0:
        dx = e.scale(dx, layer.factor)
    if layer.beside is not None:
        into_ffn = into_mixer or layer.ffn.trains
        dx = layer.beside.backward(e, dx, more, layer.ffn.reader, into_ffn)
        if not into_ffn:
            return None
    dx = layer.ffn.backward(e, dx, fed, layer.mixer.reader, into_mixer)
    del fed
    if not into_mixer:
        return None
    if rows is not None:
        dx = e.scatter(dx, rows, len(positions))
    return layer.mixer.backward(e, dx, mixed, positions, below.reader if below else None, need_dx)


def forward(e, layers: list[Layer], x, positions, rows, lowest: int, keep: int):
    """Run all layers.

    -> (x [M, d] of the given rows, tape): per layer what its backward needs, its input alone, or None.

    Layers below `lowest` keep nothing (no backward goes there). Of the others the last `keep` keep all, the
    rest only their input, from which the backward runs them again, and if the engine says so what attention gave.
    """
    tape: list = []
    for number, layer in enumerate(layers):
        full = number >= max(lowest, len(layers) - keep)
        before = x
        x, saved = layer_forward(e, x, layer, positions, rows if number == len(layers) - 1 else None)
        attended = layer.mixer.attended(saved[0]) if e.keeps_attended and number >= lowest else None
        tape.append(saved if full else (e.offload(before), attended) if number >= lowest else None)
        del before, saved, attended
    return x, tape


def backward(e, layers: list[Layer], dx, positions, rows, lowest: int, keep: int, tape: list, bottom: bool = False):
    """Walk back from dx [M, d] of the last layer's rows to the lowest trained layer; consumes the tape.

    Gradients are added in place. -> dx [T, d] of the lowest layer's input with `bottom`, else None.
    """
    for number in range(len(layers) - 1, lowest - 1, -1):
        saved, wanted = tape.pop(), rows if number == len(layers) - 1 else None
        if number < len(layers) - keep:
            before, attended = saved
            del saved
            before = e.prefetch(before)
            saved = layer_forward(e, before, layers[number], positions, wanted, True, attended)[1]
            del before, attended
        below = layers[number - 1] if number > lowest else None
        dx = layer_backward(e, dx, saved, layers[number], positions, below, wanted, bottom)
        del saved
    for layer in layers[:1]:
        if not layer.run.owes:
            layer.run.clear()
    return dx


def embed(e, weights: Weights, layers: list[Layer], ids, positions):
    """The residual stream that the layers begin with, [T, d]; what goes along it is made ready."""
    x = e.embed(ids, weights.embedding, weights.embedding_scale)
    for layer in layers[:1]:
        layer.run.clear()
        layer.run.beside += look_up(weights, e, x, ids, positions, layer.run)
    return x


def finish(e, weights: Weights, x):
    """What the head reads of the last layer's rows x [M, d]."""
    c = weights.config
    h = e.rms_norm(x, weights.output_norm, c.eps)
    return h if c.logit_scale == 1.0 else e.scale(h, c.logit_scale)


def finish_backward(e, weights: Weights, dh, x, into=None, need_dx: bool = True):
    """dx [M, d], or None if it is not needed; the gain's gradient is added to `into`, where it is trained."""
    c = weights.config
    if c.logit_scale != 1.0:
        dh = e.scale(dh, c.logit_scale)
    if into is not None:
        e.gain_gradient(dh, x, c.eps, into)
    return e.rms_norm_backward(dh, x, weights.output_norm, c.eps) if need_dx else None


class Stack:
    """A model on an engine, gradients attached where something is trained.

    lowest, keep: the lowest layer with a gradient; how many layers (from the last) keep all activations.
    embedding_gradient, norm_gradient: what those of the embedding table and of the last norm's gain are added to.
    """

    embedding_gradient = norm_gradient = None

    def __init__(self, weights: Weights, layers: list[Layer], head, lowest: int | None = None, keep: int = 0):
        self.weights, self.layers, self.head, self.keep = weights, layers, head, keep
        self.lowest = len(layers) if lowest is None else lowest

    def _embed(self, e, s: Stream):
        return embed(e, self.weights, self.layers, s.ids, s.positions)

    def hidden(self, e, ids, positions, rows=None):
        """What the head reads of the given rows (None: all), [M, d]: no backward follows."""
        x = embed(e, self.weights, self.layers, ids, positions)
        for number, layer in enumerate(self.layers):
            e.enter(number)
            x = layer_forward(e, x, layer, positions, rows if number == len(self.layers) - 1 else None)[0]
        for layer in self.layers[:1]:
            layer.run.clear()
        return finish(e, self.weights, x)

    def measure(self, e, s: Stream):
        """The summed loss of a micro-batch (nats, a Number)."""
        return e.cross_entropy(self.hidden(e, s.ids, s.positions, s.rows), self.head, s.targets, s.scale, False)[0]

    def train(self, e, s: Stream):
        """The same, and scale * its gradient is added to those of what is trained."""
        # nothing here may hold what the first layer reads: an offloaded input is freed while the next layer runs
        top, tape = forward(e, self.layers, self._embed(e, s), s.positions, s.rows, self.lowest, self.keep)
        h = finish(e, self.weights, top)
        loss, dh = e.cross_entropy(h, self.head, s.targets, s.scale, True)
        del h  # here and below: its memory is wanted for what follows
        on = self.lowest < len(self.layers)
        dx = finish_backward(e, self.weights, dh, top, self.norm_gradient, on)
        del top, dh
        if on:
            bottom = self.embedding_gradient is not None
            dx = backward(e, self.layers, dx, s.positions, s.rows, self.lowest, self.keep, tape, bottom)
            if bottom:
                e.embed_backward(dx, s.ids, self.weights.embedding_scale, self.embedding_gradient)
            run = self.layers[0].run
            if run.owes:
                self._pay(e, s, run, bottom)
        return loss

    def _pay(self, e, s: Stream, run: Run, bottom: bool) -> None:
        """Gradients by what the layers mixed in, on to the tensors that it was made of."""
        w = self.weights
        x = e.embed(s.ids, w.embedding, w.embedding_scale)
        dx = look_up_backward(w, e, x, s.ids, s.positions, run, bottom)
        if bottom:
            e.embed_backward(dx, s.ids, w.embedding_scale, self.embedding_gradient)
        run.clear()
