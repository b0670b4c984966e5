"""Known answers: every operation of an engine on small data against float64, forward and backward.

Run by `anytune doctor` on the user's own device, and before training (it also loads the compiled kernels): there
are drivers and compilers that report success and compute nonsense. Backwards are checked along one
direction by central differences of the float64 forward, so the check is exact without a second derivation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anytune.errors import UserError

from . import reference as ref
from .base import Heads


ROWS = {"a": 45, "b": 18, "gate": 64, "up": 64}  # of the matrices that products are checked with


@dataclass(frozen=True)
class Answer:
    """One operation's largest relative error, and the most that the engine's number format explains."""

    operation: str
    error: float
    tolerance: float = 1e-4  # of float32 on sums this short; a wrong kernel is off by far more

    @property
    def ok(self) -> bool:
        return bool(self.error <= self.tolerance)  # a NaN is not


def error(got, want) -> float:
    """Largest difference over the largest magnitude wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return float("inf")
    return float(np.max(np.abs(got - want), initial=0.0) / (np.max(np.abs(want), initial=0.0) + 1e-30))


def _slope(function, x, direction, delta=1e-5):
    """d/dt of function(x + t*direction) at 0, float64."""
    return (function(x + delta * direction) - function(x - delta * direction)) / (2 * delta)


class Checks:
    """Parts of known_answers(): each yields Answers of one engine."""

    def __init__(self, engine, seed: int = 0):
        self.e, self.random = engine, np.random.default_rng(seed)
        self.tokens, self.starts = 37, np.array([0, 5, 6, 37], np.int32)

    def draw(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def up(self, values: np.ndarray):
        """A host array on the engine, laid out as the engine lays out its own."""
        rows = self.e.integers(np.arange(len(values)))
        return self.e.gather(self.e.vector(values), rows) if values.ndim == 2 else self.e.vector(values)

    def backward(self, name: str, dx, function, x, dy) -> Answer:
        """Does dx·v equal the slope of sum(function(x)*dy) along v?"""
        dx = self.e.host(dx).astype(np.float64)
        v = self.direction(dx)
        want = _slope(lambda z: np.sum(function(z) * dy), x.astype(np.float64), v)
        return Answer(name, abs(np.sum(dx * v) - want) / (np.linalg.norm(dx) * np.linalg.norm(v) + 1e-30))

    def direction(self, dx: np.ndarray) -> np.ndarray:
        """Half random, and half dx itself, so that a wrong size shows as much as a wrong place."""
        v = self.random.standard_normal(dx.shape)
        return v + dx * (np.linalg.norm(v) / (np.linalg.norm(dx) + 1e-30))

    def norms(self) -> Iterator[Answer]:
        e = self.e
        x, dy, gain, residual = (
            self.draw(self.tokens, 24),
            self.draw(self.tokens, 24),
            self.draw(24),
            self.draw(self.tokens, 24),
        )
        xs, gains = self.up(x), e.vector(gain)
        yield Answer("rms_norm", error(e.host(e.rms_norm(xs, gains, 1e-5)), ref.rms_norm(x, gain, 1e-5)))
        dx = e.rms_norm_backward(self.up(dy), xs, gains, 1e-5)
        yield self.backward("rms_norm_backward", dx, lambda z: ref.rms_norm(z, gain, 1e-5), x, dy)
        both = e.rms_norm_backward(self.up(dy), xs, gains, 1e-5, self.up(residual))
        yield Answer("rms_norm_backward, residual", error(e.host(both), e.host(dx) + residual))

    def rotations(self) -> Iterator[Answer]:
        e, positions, heads = self.e, np.arange(self.tokens, dtype=np.int32)[::-1].copy(), Heads(3, 1, 10, 0, 1.0)
        angle = self.random.uniform(0, 6, (self.tokens, 4))  # heads of 10, of which 8 turn
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        table, places = (e.vector(cos), e.vector(sin)), e.integers(positions)
        for neox in (False, True):
            for gains in (None, (self.draw(10), self.draw(10))):
                held = gains and tuple(e.vector(g) for g in gains)
                how = (held, 1e-5, table, places, heads, neox)
                pair, dpair = ((self.draw(self.tokens, 30), self.draw(self.tokens, 10)) for _ in range(2))
                name = f"{'neox' if neox else 'interleaved'}{', head norms' if gains else ''}"

                def turn(z, at, gains=gains, neox=neox):
                    normed = z if gains is None else ref.rms_norm(z, gains[at], 1e-5, (3, 1)[at])
                    return ref.rope(normed, cos, sin, positions, (3, 1)[at], neox)

                got = e.qk_norm_rope(*map(self.up, pair), *how)
                yield Answer(
                    f"qk_norm_rope, {name}",
                    max(error(e.host(g), turn(z, i)) for i, (g, z) in enumerate(zip(got, pair))),
                )
                back = e.qk_norm_rope_backward(*map(self.up, dpair), *map(self.up, pair), *how)
                for i in (0, 1):
                    yield self.backward(
                        f"qk_norm_rope_backward d{'qk'[i]}, {name}",
                        back[i],
                        lambda z, i=i: turn(z, i),
                        pair[i],
                        dpair[i],
                    )

    def activations(self) -> Iterator[Answer]:
        e = self.e
        for kind in ("silu", "gelu"):
            gate, up, dy = (3 * self.draw(self.tokens, 19) for _ in range(3))
            a, b = self.up(gate), self.up(up)
            yield Answer(f"glu, {kind}", error(e.host(e.glu(a, b, kind)), ref.glu(gate, up, kind)))
            dgate, dup = e.glu_backward(self.up(dy), a, b, kind)
            yield self.backward(f"glu_backward, {kind}", dgate, lambda z: ref.glu(z, up, kind), gate, dy)
            yield Answer(f"glu_backward, {kind}, up", error(e.host(dup), ref.activation(gate, kind) * dy))

    def attentions(self) -> Iterator[Answer]:
        e = self.e
        for heads in (Heads(4, 2, 8, 0, 0.35), Heads(3, 1, 16, 7, 0.25)):
            q, k, v = (
                self.draw(self.tokens, n * heads.head_dim) for n in (heads.n_heads, heads.n_kv_heads, heads.n_kv_heads)
            )
            dout = self.draw(self.tokens, heads.n_heads * heads.head_dim)
            e.begin(self.starts, self.tokens, (0, 0, 0))
            qs, ks, vs = self.up(q), self.up(k), self.up(v)
            out, lse = e.attention(qs, ks, vs, heads)
            name = "window" if heads.window else "grouped heads"
            yield Answer(f"attention, {name}", error(e.host(out), ref.attention(q, k, v, self.starts, heads)))
            grads = e.attention_backward(self.up(dout), qs, ks, vs, out, lse, heads)
            for index, letter in enumerate("qkv"):

                def vary(z, index=index, parts=(q, k, v)):
                    return ref.attention(*(z if i == index else p for i, p in enumerate(parts)), self.starts, heads)

                yield self.backward(f"attention_backward d{letter}, {name}", grads[index], vary, (q, k, v)[index], dout)
            yield from self.cached(heads, q, k, v)

    def cached(self, heads: Heads, q, k, v) -> Iterator[Answer]:
        """The last example, its first tokens in the cache already, the others new."""
        e, low, high, old = self.e, int(self.starts[-2]), int(self.starts[-1]), 4
        keys, values = (e.cache(2, high - low, heads.n_kv_heads * heads.head_dim) for _ in range(2))
        whole = e.places([(1, 0, high - low, 0)])
        e.store(keys, whole, self.up(k[low:high]))
        e.store(values, whole, self.up(v[low:high]))
        want = ref.attention(q, k, v, self.starts, heads)[low:high]
        for rows in (slice(old, None), slice(high - low - 1, None)):  # several new tokens, and one
            new = q[low:high][rows]
            got = e.attend_cache(self.up(new), keys, values, e.places([(1, 0, len(new), rows.start)]), heads)
            yield Answer(f"attend_cache, {len(new)} new", error(e.host(got), want[rows]))

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
        group = e.group([e.weight(gguf, "a", "blocks")])
        loss, dh = e.cross_entropy(self.up(h), group, e.integers(targets), 0.5, True)
        want = ref.cross_entropy(h, weight, targets)
        yield Answer(f"cross_entropy, {block}", abs(loss - want) / want)
        dh = e.host(dh).astype(np.float64)
        v = self.direction(dh)
        slope = 0.5 * _slope(lambda z: ref.cross_entropy(z, weight, targets), h.astype(np.float64), v)
        size = np.linalg.norm(dh) * np.linalg.norm(v) + 1e-30
        yield Answer(f"cross_entropy backward, {block}", abs(np.sum(dh * v) - slope) / size)
        yield Answer(f"logits, {block}", error(e.host(e.logits(self.up(h), group)), h @ weight.T.astype(np.float64)))
        ids = self.random.integers(0, len(weight), 6).astype(np.int32)
        got = e.embed(e.integers(ids), e.weight(gguf, "a", "blocks"), 2.0)
        yield Answer(f"embed, {block}", error(e.host(got), 2.0 * weight[ids]))

    def rest(self) -> Iterator[Answer]:
        e, rows = self.e, np.array([3, 0, 9], np.int32)
        x, y = self.draw(self.tokens, 8), self.draw(self.tokens, 8)
        yield Answer("add", error(e.host(e.add(self.up(x), self.up(y))), x + y))
        taken = e.gather(self.up(x), e.integers(rows))
        yield Answer("gather", error(e.host(taken), x[rows]))
        want = np.zeros_like(x)
        want[rows] = x[rows]
        yield Answer("scatter", error(e.host(e.scatter(taken, e.integers(rows), self.tokens)), want))
        p, g, m, v = self.draw(301), self.draw(301), self.draw(301), np.abs(self.draw(301))
        held, length = [e.vector(z.copy()) for z in (p, g, m, v)], np.linalg.norm(g.astype(np.float64))
        norm = float(e.adamw(*held, 100, (1e-2, 3e-2), 3, 0.9, 0.99, 1e-8, 0.1, 0.5))
        yield Answer("adamw, norm", abs(norm / length - 1))
        rates = np.where(np.arange(301) < 100, 1e-2, 3e-2)
        after = ref.adamw(p, g, m, v, rates, 3, 0.9, 0.99, 1e-8, 0.1, 0.5 / length)
        yield Answer(
            "adamw",
            max(
                error(e.host(held[0]), after[0]),
                error(e.host(held[2]), after[1]),
                error(e.host(held[3]), after[2]),
                error(e.host(held[1]), 0 * g),
            ),
        )


def known_answers(engine, blocks: tuple[str, ...] = ("F32", "Q8_0", "Q4_0"), trained: bool = True) -> list[Answer]:
    """Check every operation; `blocks` are the weight types that the products are checked with. trained: also what
    training a model's own weights needs."""
    from anytune.gguf import GGUF, write_gguf

    from .check_trained import TrainedChecks

    checks = Checks(engine)
    row_padding, engine.row_padding = engine.row_padding, 8
    try:
        answers = [
            a
            for part in (checks.norms, checks.rotations, checks.activations, checks.attentions, checks.rest)
            for a in part()
        ]
        with tempfile.TemporaryDirectory(prefix="anytune-check-") as folder:
            for block in blocks:
                path = Path(folder) / f"{block}.gguf"
                write_gguf(
                    path,
                    {"general.architecture": "check"},
                    [(n, (rows, 64), block, checks.draw(rows, 64)) for n, rows in ROWS.items()],
                )
                with GGUF.open(path) as gguf:
                    dense = {n: gguf.float32(n) for n in ROWS}
                    answers += [*checks.products(gguf, dense, block), *checks.joined(gguf, dense, block)]
        engine.row_padding = 0
        answers += TrainedChecks(engine).answers() if trained and not getattr(engine, "adapters_only", False) else ()
    finally:
        engine.row_padding = row_padding
    answers += engine.own_answers() if hasattr(engine, "own_answers") else ()
    return [replace(answer, tolerance=engine.tolerance) for answer in answers]


def prove(engine, trained: bool = False) -> None:
    """Raise UserError if an operation gives a wrong answer. trained: as known_answers() has it.

    It also brings every compiled kernel into memory, so that the process's size is known before training is planned.
    Costs some 50 ms, once an engine.
    """
    if getattr(engine, "proved", None) in (True, trained):  # with `trained` it is all
        return
    wrong = [a for a in known_answers(engine, ("F32", "Q8_0"), trained) if not a.ok]
    if wrong:
        raise UserError(
            f"on this machine the {engine.name} engine computes {wrong[0].operation} wrongly (relative "
            f"error {wrong[0].error:.1e}): run anytune doctor, and train on another --device"
        )
    engine.proved = trained
