"""Known answers of products with weights in blocks: linears with their pairs, alone and fused, and the output head."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import reference as ref
from .answers import Answer, Checks, error, slope

ROWS = {"a": 45, "b": 18, "gate": 64, "up": 64}  # of the matrices that products are checked with


class ProductChecks(Checks):
    """Each yields Answers of one engine, for matrices a, b, gate and up of a file, and as float32 in `dense`."""

    def answers(self, gguf, dense: dict, block: str) -> Iterator[Answer]:
        yield from self.products(gguf, dense, block)
        yield from self.joined(gguf, dense, block)

    def products(self, gguf, dense: dict, block: str) -> Iterator[Answer]:
        e, scale = self.e, 0.5
        weights = [e.weight(gguf, name, "blocks") for name in ("a", "b")]
        pairs = [(self.draw(3, dense["a"].shape[1]), self.draw(len(dense["a"]), 3), scale), None]
        bias = self.draw(len(dense["b"]))
        grads = [e.zeros(pairs[0][i].size).reshape(pairs[0][i].shape) for i in (0, 1)]
        pair = e.lora_pair(e.vector(pairs[0][0]), e.vector(pairs[0][1]), scale, *grads)
        group = e.group(weights, (None, e.vector(bias)), (pair, None))
        x = self.draw(self.tokens, dense["a"].shape[1])
        dys = [self.draw(self.tokens, len(dense[n])) for n in ("a", "b")]
        parts = [(dense["a"], None, pairs[0]), (dense["b"], bias, None)]
        want = ref.linear(x, parts)
        xs = self.up(x)
        for name, got in (("linear", e.linear(xs, group)), ("linear_decode", e.linear_decode(self.up(x[:3]), group))):
            errors = [error(e.host(g), w[: len(e.host(g))]) for g, w in zip(got, want)]
            yield Answer(f"{name}, {block}", max(errors))
        dx = e.linear_backward(tuple(self.up(d) for d in dys), xs, group)
        through = dys[0].astype(np.float64) @ pairs[0][1]
        yield Answer(
            f"linear_backward, {block}",
            error(
                e.host(dx),
                dys[0] @ dense["a"].astype(np.float64)
                + dys[1] @ dense["b"].astype(np.float64)
                + scale * through @ pairs[0][0],
            ),
        )
        yield Answer(f"linear_backward dA, {block}", error(e.host(grads[0]), scale * through.T @ x))
        yield Answer(
            f"linear_backward dB, {block}",
            error(e.host(grads[1]), scale * dys[0].T.astype(np.float64) @ (x @ pairs[0][0].T)),
        )
        yield from self.head(gguf, dense, block)

    def joined(self, gguf, dense: dict, block: str) -> Iterator[Answer]:
        """An MLP as the model runs it: norm_linear, glu_linear, and their backwards in turn."""
        e, eps, kind = self.e, 1e-5, "silu"
        held = {n: self.pair(*dense[n].shape) for n in ("gate", "up", "a")}
        parts = {n: (dense[n], None, pair) for n, (pair, _, _) in held.items()}
        gate_up, down = (
            e.group([e.weight(gguf, n, "blocks") for n in names], None, [held[n][1] for n in names])
            for names in (("gate", "up"), ("a",))
        )
        x, gain, residual = self.draw(self.tokens, 64), self.draw(64), self.draw(self.tokens, 64)
        dy = self.draw(self.tokens, len(dense["a"]))
        xs, gains = self.up(x), e.vector(gain)

        def normed(z, changed=parts):
            return np.concatenate(ref.linear(ref.rms_norm(z, gain, eps), [changed["gate"], changed["up"]]), 1)

        gate, up = e.norm_linear(xs, gains, eps, gate_up)
        g, u = e.host(gate), e.host(up)
        yield Answer(f"norm_linear, {block}", error(np.concatenate((g, u), 1), normed(x)))
        (y,) = e.glu_linear(gate, up, kind, down)
        yield Answer(f"glu_linear, {block}", error(e.host(y), ref.linear(ref.glu(g, u, kind), [parts["a"]])[0]))
        both = e.glu_linear_backward(self.up(dy), gate, up, kind, down, gate_up)
        for i, letter in enumerate(("gate", "up")):

            def gated(z, i=i):
                return ref.linear(ref.glu(*((z, u) if i == 0 else (g, z)), kind), [parts["a"]])[0]

            yield self.backward(f"glu_linear_backward d{letter}, {block}", both[i], gated, (g, u)[i], dy)
        dboth = np.concatenate([e.host(d) for d in both], 1)
        dx = e.norm_linear_backward(both, xs, gains, eps, gate_up, self.up(residual))
        yield self.backward(
            f"norm_linear_backward, {block}",
            dx,
            lambda z: np.concatenate((normed(z), z), 1),
            x,
            np.concatenate((dboth, residual), 1),
        )
        for name, ((a, b, scale), _, grads) in held.items():
            for i in (0, 1):

                def changed(z, name=name, i=i, a=a, b=b, scale=scale):
                    part = (dense[name], None, (z, b, scale) if i == 0 else (a, z, scale))
                    return (
                        ref.linear(ref.glu(g, u, kind), [part])[0] if name == "a" else normed(x, {**parts, name: part})
                    )

                op = "glu_linear_backward" if name == "a" else "norm_linear_backward"
                yield self.backward(
                    f"{op} d{'AB'[i]}{'' if name == 'a' else f' of {name}'}, {block}",
                    grads[i],
                    changed,
                    (a, b)[i],
                    dy if name == "a" else dboth,
                )

    def pair(self, out: int, features: int, rank: int = 3, scale: float = 0.5):
        """((A, B, scale), the same as a pair, its gradients)."""
        e, (a, b) = self.e, (self.draw(rank, features), self.draw(out, rank))
        grads = tuple(e.zeros(z.size).reshape(z.shape) for z in (a, b))
        return (a, b, scale), e.lora_pair(e.vector(a), e.vector(b), scale, *grads), grads

    def head(self, gguf, dense: dict, block: str) -> Iterator[Answer]:
        e, rows = self.e, 9
        h, weight = self.draw(rows, dense["a"].shape[1]), dense["a"]
        targets = self.random.integers(0, len(weight), rows).astype(np.int32)
        group = e.group([e.weight(gguf, "a", "blocks")], number=-1)
        for cap, name in ((0.0, ""), (5.0, ", capped")):
            group.cap = cap
            loss, dh = e.cross_entropy(self.up(h), group, e.integers(targets), 0.5, True)
            want = ref.cross_entropy(h, weight, targets, cap)
            yield Answer(f"cross_entropy{name}, {block}", abs(loss - want) / want)
            dh = e.host(dh).astype(np.float64)
            v = self.direction(dh)
            along = 0.5 * slope(lambda z, cap=cap: ref.cross_entropy(z, weight, targets, cap), h.astype(np.float64), v)
            size = np.linalg.norm(dh) * np.linalg.norm(v) + 1e-30
            yield Answer(f"cross_entropy backward{name}, {block}", abs(np.sum(dh * v) - along) / size)
            logits = ref.capped(h @ weight.T.astype(np.float64), cap)
            yield Answer(f"logits{name}, {block}", error(e.host(e.logits(self.up(h), group)), logits))
        ids = self.random.integers(0, len(weight), 6).astype(np.int32)
        got = e.embed(e.integers(ids), e.weight(gguf, "a", "blocks"), 2.0)
        yield Answer(f"embed, {block}", error(e.host(got), 2.0 * weight[ids]))
