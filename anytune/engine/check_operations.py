"""Known answers of what goes row by row, of attention, of caches, and of an adapter's optimizer step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import reference as ref
from .answers import Answer, Checks, error
from .base import Heads


class OperationChecks(Checks):
    """Each yields Answers of one engine."""

    def answers(self) -> Iterator[Answer]:
        for part in (self.norms, self.rotations, self.activations, self.attentions, self.rest):
            yield from part()

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
        for heads in (Heads(4, 2, 8, 0, 0.35), Heads(3, 1, 16, 7, 0.25), Heads(4, 2, 8, 9, 0.7, 1.5)):
            q, k, v = (
                self.draw(self.tokens, n * heads.head_dim) for n in (heads.n_heads, heads.n_kv_heads, heads.n_kv_heads)
            )
            dout = self.draw(self.tokens, heads.n_heads * heads.head_dim)
            e.begin(self.starts, self.tokens, (0, 0, 0))
            qs, ks, vs = self.up(q), self.up(k), self.up(v)
            out, lse = e.attention(qs, ks, vs, heads)
            name = "capped" if heads.cap else "window" if heads.window else "grouped heads"
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

    def rest(self) -> Iterator[Answer]:
        e, rows = self.e, np.array([3, 0, 9], np.int32)
        x, y = self.draw(self.tokens, 8), self.draw(self.tokens, 8)
        yield Answer("add", error(e.host(e.add(self.up(x), self.up(y))), x + y))
        for first in (3, 64):
            wide = self.draw(self.tokens, 70)
            parts = e.split(self.up(wide), first, 70 - first)
            halves = [np.asarray(e.host(part)) for part in parts]
            yield Answer(f"split after {first}", error(np.concatenate(halves, 1), wide))
            yield Answer(f"join after {first}", error(e.host(e.join(parts)), wide))
            yield Answer(f"join apart, after {first}", error(e.host(e.join(tuple(map(self.up, halves)))), wide))
        each, by = self.draw(11, 1), self.random.integers(0, 11, self.tokens).astype(np.int32)
        for name, factor, numbers in (
            ("a number", 0.3, 0.3),
            ("rows", e.gather(e.vector(each), e.integers(by)), each[by]),
        ):
            yield Answer(f"scale, {name}", error(e.host(e.scale(self.up(x), factor)), x * numbers))
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
