"""Known answers of what keeps a state: the gated delta net, the convolution before it, and both in generation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import reference as ref
from .answers import Answer, Checks, error
from .base import DeltaHeads


class StateChecks(Checks):
    """Each yields Answers of one engine, of what it offers."""

    def answers(self) -> Iterator[Answer]:
        self.e.begin(self.starts, self.tokens, (0, 0, 0))
        if "convolution" in self.e.offers:
            yield from self.convolutions()
        if "delta" in self.e.offers:
            yield from self.deltas()

    def convolutions(self) -> Iterator[Answer]:
        e, x, dy, weight = self.e, self.draw(self.tokens, 10), self.draw(self.tokens, 10), self.draw(10, 4)
        held = e.vector(weight)
        for silu in (False, True):
            name = "silu" if silu else "plain"
            y = e.host(e.convolve(self.up(x), held, silu))
            yield Answer(f"convolve, {name}", error(y, ref.convolve(x, weight, self.starts, silu)))
            dx = e.convolve_backward(self.up(dy), self.up(x), held, silu)
            yield self.backward(
                f"convolve_backward, {name}", dx, lambda z, s=silu: ref.convolve(z, weight, self.starts, s), x, dy
            )
        cache = e.state(2, 3 * 10)
        got = [
            e.host(e.convolve_cached(self.up(x[a:b]), held, True, cache, e.places([(1, 0, b - a, a)])))
            for a, b in self.parts
        ]
        yield Answer("convolve_cached", error(np.concatenate(got), ref.convolve(x, weight, [0, self.tokens], True)))

    parts = ((0, 30), (30, 31), (31, 37))  # a prompt, a token, several

    def deltas(self) -> Iterator[Answer]:
        e, heads = self.e, DeltaHeads(1, 2, 8, 6, 1e-2)
        inputs = [self.draw(self.tokens, n) for n in (heads.width, heads.values, heads.values)]
        weights = [-np.exp(self.draw(heads.values)), self.draw(heads.values), 1 + 0.3 * self.draw(heads.value_size)]
        held, dy = [e.vector(w) for w in weights], self.draw(self.tokens, heads.inner)
        y, kept = e.delta(*map(self.up, inputs), held, heads)
        yield Answer("delta", error(e.host(y), ref.delta(*inputs, *weights, self.starts, heads)))
        grads = e.delta_backward(self.up(dy), *map(self.up, inputs), held, heads, kept)
        for at, name in enumerate(("x", "beta", "alpha")):

            def vary(z, at=at):
                return ref.delta(*(z if i == at else p for i, p in enumerate(inputs)), *weights, self.starts, heads)

            yield self.backward(f"delta_backward, d{name}", grads[at], vary, inputs[at], dy)
        cache, got = e.state(2, heads.inner * heads.key_size), []
        for a, b in self.parts:
            new = [self.up(z[a:b]) for z in inputs]
            got.append(e.host(e.delta_cached(*new, held, heads, cache, e.places([(1, 0, b - a, a)]))))
        yield Answer("delta_cached", error(np.concatenate(got), ref.delta(*inputs, *weights, [0, self.tokens], heads)))
