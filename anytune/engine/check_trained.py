"""Known answers of what training a model's own weights needs: gradients of matrices, biases, gains and tables,
optimizers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import optimizers as rules
from . import reference as ref
from .answers import Answer, Checks, error
from .base import Heads

SHAPES = ((40, 103), (57,))  # of tensors that are updated: blocks of codes of which the last is not full, and a vector


class TrainedChecks(Checks):
    """Each yields Answers; gradients begin at 1, so that one that is written instead of added shows."""

    def answers(self) -> Iterator[Answer]:
        for part in (self.products, self.gains, self.tables, self.head, self.norm, self.optimizers):
            yield from part()

    def matrix(self, rows: int, columns: int):
        """(values, the same as the engine's trained matrix, its gradient)."""
        values = self.draw(rows, columns)
        gradient = self.e.vector(np.ones(values.size, np.float32))
        return (
            values,
            self.e.trained(self.e.vector(values.reshape(-1)).reshape(values.shape), gradient.reshape(values.shape)),
            gradient,
        )

    def grown(self, gradient, shape) -> np.ndarray:
        return self.e.host(gradient).reshape(shape) - 1.0

    def products(self) -> Iterator[Answer]:
        e, parts = self.e, [self.matrix(rows, 64) for rows in (45, 18)]
        bias, more = self.draw(18), e.vector(np.ones(18, np.float32))
        group = e.group([m for _, m, _ in parts], (None, e.vector(bias)), None, bias_gradients=(None, more))
        x, dys = self.draw(self.tokens, 64), [self.draw(self.tokens, rows) for rows in (45, 18)]
        xs, want = self.up(x), ref.linear(x, [(parts[0][0], None, None), (parts[1][0], bias, None)])
        yield Answer("linear, trained", max(error(e.host(g), w) for g, w in zip(e.linear(xs, group), want)))
        dx = e.host(e.linear_backward(tuple(map(self.up, dys)), xs, group))
        yield Answer(
            "linear_backward, trained", error(dx, sum(d.astype(np.float64) @ w for d, (w, _, _) in zip(dys, parts)))
        )
        yield Answer(
            "linear_backward dW",
            max(error(self.grown(g, w.shape), d.T.astype(np.float64) @ x) for d, (w, _, g) in zip(dys, parts)),
        )
        yield Answer("linear_backward db", error(self.grown(more, 18), dys[1].sum(0, dtype=np.float64)))

    def gains(self) -> Iterator[Answer]:
        e, heads = self.e, Heads(3, 1, 10, 0, 1.0)
        for count in (1, 3):
            x, dy = (self.draw(self.tokens, 12 * count) for _ in range(2))
            into = e.vector(np.ones(12, np.float32))
            e.gain_gradient(self.up(dy), self.up(x), 1e-5, into)
            want = (ref.rms_norm(x, np.ones(12), 1e-5, count) * dy).reshape(-1, 12).sum(0)
            yield Answer(f"gain_gradient, {count} of a row", error(self.grown(into, 12), want))
        positions = self.random.permutation(self.tokens).astype(np.int32)
        angle = self.random.uniform(0, 6, (self.tokens, 4))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        pair, dpair = ([self.draw(self.tokens, 30), self.draw(self.tokens, 10)] for _ in range(2))
        gains, into = [self.draw(10) for _ in range(2)], [e.vector(np.ones(10, np.float32)) for _ in range(2)]
        back = e.qk_norm_rope_backward(
            *map(self.up, dpair),
            *map(self.up, pair),
            tuple(map(e.vector, gains)),
            1e-5,
            (e.vector(cos), e.vector(sin)),
            e.integers(positions),
            heads,
            True,
            tuple(into),
        )
        for i, letter in enumerate("qk"):

            def turn(z, gain, i=i):
                return ref.rope(ref.rms_norm(z, gain, 1e-5, (3, 1)[i]), cos, sin, positions, (3, 1)[i], True)

            yield self.backward(
                f"qk_norm_rope_backward d{letter}, trained",
                back[i],
                lambda z, i=i: turn(z, gains[i]),
                pair[i],
                dpair[i],
            )
            grown = e.vector(self.grown(into[i], 10).astype(np.float32))
            yield self.backward(
                f"qk_norm_rope_backward dgain of {letter}", grown, lambda z, i=i: turn(pair[i], z), gains[i], dpair[i]
            )

    def tables(self) -> Iterator[Answer]:
        e, (values, table, gradient) = self.e, self.matrix(23, 24)
        ids = self.random.integers(0, 9, self.tokens).astype(np.int32)  # tokens that come again and again
        yield Answer("embed, trained", error(e.host(e.embed(e.integers(ids), table, 2.0)), 2.0 * values[ids]))
        dx, want = self.draw(self.tokens, 24), np.zeros(values.shape)
        e.begin(self.starts, self.tokens, (0, 0, 0))
        e.embed_backward(self.up(dx), e.integers(ids), 2.0, gradient.reshape(values.shape))
        np.add.at(want, ids, 2.0 * dx)
        yield Answer("embed_backward", error(self.grown(gradient, values.shape), want))

    def head(self) -> Iterator[Answer]:
        e, (values, head, gradient) = self.e, self.matrix(45, 64)
        h, targets = self.draw(9, 64), self.random.integers(0, 45, 9).astype(np.int32)
        e.cross_entropy(self.up(h), e.group([head]), e.integers(targets), 0.5, True)
        logits = h @ values.T.astype(np.float64)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share[np.arange(9), targets] -= 1
        yield Answer("cross_entropy dW", error(self.grown(gradient, values.shape), 0.5 * share.T @ h))

    def norm(self) -> Iterator[Answer]:
        parts = [self.draw(n) for n in (9000, 5)]
        length = np.sqrt(sum(np.sum(p.astype(np.float64) ** 2) for p in parts))
        yield Answer("norm", abs(float(self.e.norm([self.e.vector(p) for p in parts])) / length - 1))

    def optimizers(self) -> Iterator[Answer]:
        """A step from a state that is not the first."""
        e = self.e
        for kind in rules.KINDS:
            worst = 0.0
            for shape in SHAPES:
                p, g, before = (self.draw(int(np.prod(shape))) for _ in range(3))
                p, state = 0.01 * p, rules.start(kind, shape)
                rule = [rules.Rule(0.5, 1e-2, step, 0.9, 0.99, 1e-8, 0.1) for step in (1, 2)]
                rules.reference(kind, p.copy(), before, state, shape, rule[0])
                held, slope, kept = e.vector(p.copy()), e.vector(g.copy()), e.optimizer_state(kind, shape)
                for name, array in state.items():
                    e.load(kept[name], array)
                e.optimize(kind, held, slope, kept, shape, rule[1])
                rules.reference(kind, p, g.copy(), state, shape, rule[1])
                worst = max(
                    worst,
                    error(e.host(held), p),
                    error(e.host(slope), 0 * g),
                    *(_apart(e.host(kept[name]), array) for name, array in state.items()),
                )
            yield Answer(f"optimize, {kind}", worst)


def _apart(got: np.ndarray, want: np.ndarray) -> float:
    """As error(); codes may be neighbours where a value is between two."""
    if want.dtype != np.uint8:
        return error(got, want)
    steps = np.abs(got.astype(int) - want)
    return 0.0 if steps.max() <= 1 and np.mean(steps) < 0.01 else 1.0
