"""The gated delta net's operations: what is around the recurrence of chunk.py, which makes it a layer's middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.engine.base import DeltaHeads

from .chunk import CHUNK, Chunk, normed, normed_backward


@dataclass(frozen=True)
class _Part:
    """Key heads low…high with the value heads that read them, of arrays with one row a token."""

    heads: DeltaHeads
    low: int
    high: int

    def keyed(self, x: np.ndarray, at: int) -> np.ndarray:
        """Columns of the key heads from column `at` on, [C, …] -> a view [keys, C, key_size]."""
        size = self.heads.key_size
        part = x[:, at + self.low * size : at + self.high * size]
        return part.reshape(len(x), self.high - self.low, size).transpose(1, 0, 2)

    def valued(self, x: np.ndarray, at: int, size: int) -> np.ndarray:
        """Columns of the value heads, each of `size`, [C, …] -> a view [repeats, keys, C, size]."""
        h = self.heads
        part = x[:, at : at + h.values * size].reshape(len(x), h.repeats, h.keys, size)
        return part[:, :, self.low : self.high].transpose(1, 2, 0, 3)

    def each(self, vector: np.ndarray) -> np.ndarray:
        """One number a value head, [values] -> a view [repeats, keys, 1]."""
        h = self.heads
        return vector.reshape(h.repeats, h.keys)[:, self.low : self.high, None]

    def states(self, x: np.ndarray) -> np.ndarray:
        """[values, …] -> a view [repeats, keys, …]."""
        h = self.heads
        return x.reshape(h.repeats, h.keys, *x.shape[1:])[:, self.low : self.high]


class _Inputs:
    """One chunk's rows of x, beta and alpha, on their way to a Chunk and back."""

    def __init__(self, part: _Part, x, beta, alpha, weights, first: np.ndarray, at: int):
        h = part.heads
        self.part, (self.a, bias, _) = part, weights
        self.columns = (0, h.keys * h.key_size, 2 * h.keys * h.key_size)
        q, self.q_inverse = normed(part.keyed(x, self.columns[0]), h.eps)
        k, self.k_inverse = normed(part.keyed(x, self.columns[1]), h.eps)
        self.shifted = part.valued(alpha, 0, 1)[..., 0] + part.each(bias)
        with np.errstate(invalid="ignore"):  # of weights that are not numbers
            self.soft = np.logaddexp(np.float32(0), self.shifted)
        strength = 1 / (1 + np.exp(-part.valued(beta, 0, 1)[..., 0]))
        v = part.valued(x, self.columns[2], h.value_size).copy()
        self.scale = np.float32(h.key_size**-0.5)
        self.chunk = Chunk.of(q * self.scale, k, v, part.each(self.a) * self.soft, strength, first, at)

    def backward(self, grads: tuple, dx, dbeta, dalpha, into) -> None:
        """Write the gradients of the rows, and add those of a and its bias to into, where they are wanted."""
        part, h, c = self.part, self.part.heads, self.chunk
        dq, dk, dv, dg, dstrength = grads
        part.keyed(dx, self.columns[0])[...] = normed_backward(dq * self.scale, c.q / self.scale, self.q_inverse, h.eps)
        part.keyed(dx, self.columns[1])[...] = normed_backward(dk, c.k, self.k_inverse, h.eps)
        part.valued(dx, self.columns[2], h.value_size)[...] = dv
        part.valued(dbeta, 0, 1)[..., 0] = dstrength * c.beta * (1 - c.beta)
        dsoft = dg * part.each(self.a)
        dshifted = dsoft / (1 + np.exp(-self.shifted))
        part.valued(dalpha, 0, 1)[..., 0] = dshifted
        for target, gradient in zip(into, (dg * self.soft, dshifted)):
            if target is not None:
                part.each(target)[...] += gradient.sum(-1, keepdims=True)


def delta(e, x, beta, alpha, weights, heads: DeltaHeads):
    """As base.py has it. What it keeps: the results before their norm, and the states before each chunk."""
    tokens, first = x.shape[0], e.first
    out, raw = e.array(tokens, heads.inner), e.array(tokens, heads.inner)
    states = _states(e, tokens, heads)

    def work(low: int, high: int) -> None:
        _forward(e, _Part(heads, low, high), x, beta, alpha, weights, first, out, raw, states)

    with np.errstate(over="ignore"):
        e.workers.rows(heads.keys, work)
    return out, (raw, states)


def _forward(e, part: _Part, x, beta, alpha, weights, first, out, raw, states) -> None:
    state, heads = np.zeros_like(part.states(states[0])), part.heads
    for at in e.each(range(0, len(x), CHUNK)):
        rows = slice(at, min(at + CHUNK, len(x)))
        part.states(states[at // CHUNK])[...] = state
        inputs = _Inputs(part, x[rows], beta[rows], alpha[rows], weights, first[rows], at)
        o, state = inputs.chunk.forward(state)
        part.valued(raw[rows], 0, heads.value_size)[...] = o
        part.valued(out[rows], 0, heads.value_size)[...] = o * _inverse(o, heads.eps) * weights[2]


def _states(e, tokens: int, heads: DeltaHeads) -> np.ndarray:
    """[chunks, values, key_size, value_size], in a buffer that serves every stream up to the capacity."""
    chunks, each = -(-tokens // CHUNK), heads.values * heads.key_size * heads.value_size
    flat = e.flat(-(-max(tokens, e.capacity) // CHUNK) * each)
    return flat[: chunks * each].reshape(chunks, heads.values, heads.key_size, heads.value_size)


def _inverse(o: np.ndarray, eps: float) -> np.ndarray:
    return 1 / np.sqrt(np.mean(o * o, -1, keepdims=True) + np.float32(eps))


def delta_backward(e, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
    """As base.py has it."""
    dx, dbeta, dalpha = e.array(*x.shape), e.array(*beta.shape), e.array(*alpha.shape)
    gains = np.zeros((heads.keys, heads.value_size), np.float32)  # of a piece in the row of its first head
    how = (dy, (x, beta, alpha), weights, e.first, kept, (dx, dbeta, dalpha), into[:2])

    def work(low: int, high: int) -> None:
        _backward(e, _Part(heads, low, high), *how, gains[low])

    with np.errstate(over="ignore"):
        e.workers.rows(heads.keys, work)
    if into[2] is not None:
        np.add(into[2], gains.sum(0), out=into[2])
    return dx, dbeta, dalpha


def _backward(e, part: _Part, dy, inputs, weights, first, kept, results, into, gain) -> None:
    (raw, states), size = kept, part.heads.value_size
    dstate = np.zeros_like(part.states(states[0]))
    for at in e.each(reversed(range(0, len(dy), CHUNK))):
        rows = slice(at, min(at + CHUNK, len(dy)))
        made = _Inputs(part, *(z[rows] for z in inputs), weights, first[rows], at)
        o, du = part.valued(raw[rows], 0, size), part.valued(dy[rows], 0, size)
        inverse = _inverse(o, part.heads.eps)
        gain += np.sum(du * o * inverse, (0, 1, 2))
        du = du * weights[2]
        do = inverse * du - o * (inverse**3 * np.mean(du * o, -1, keepdims=True))
        *grads, dstate = made.chunk.backward(do, dstate, part.states(states[at // CHUNK]))
        made.backward(tuple(grads), *(z[rows] for z in results), into)


def delta_cached(e, x, beta, alpha, weights, heads: DeltaHeads, cache: np.ndarray, places) -> np.ndarray:
    """As base.py has it; cache [slots, values * key_size * value_size]."""
    out = e.array(x.shape[0], heads.inner)
    part, before = _Part(heads, 0, heads.keys), np.full(CHUNK, -1)
    for slot, low, high, position in places:
        held = part.states(cache[slot].reshape(heads.values, heads.key_size, heads.value_size))
        state = held if position else np.zeros_like(held)
        for at in range(low, high, CHUNK):
            rows = slice(at, min(at + CHUNK, high))
            some = before[: rows.stop - at]  # all go on from the state
            chunk = _Inputs(part, x[rows], beta[rows], alpha[rows], weights, some, 0).chunk
            o, state = chunk.forward(state)
            part.valued(out[rows], 0, heads.value_size)[...] = o * _inverse(o, heads.eps) * weights[2]
        held[...] = state
    return out
