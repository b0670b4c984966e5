"""The gated delta net (Yang et al. 2024) over packed examples, forward and backward, a chunk of tokens at a time.

A value head keeps a state S [key_size, value_size]. A token with decay exp(g), write strength b, key k, value v makes

    S ← exp(g) S + k uᵀ  with  u = b (v − exp(g) Sᵀ k),    and gives  o = Sᵀ q.

Within a chunk all u come from one triangular system (the WY form of Yang et al. 2024, "Parallelizing linear
transformers with the delta rule"), so that products of matrices do the work. Chunks lie on a fixed grid over the
stream: where an example begins, nothing that came before it passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 64  # tokens


@dataclass
class Chunk:
    """What forward and backward both need of one chunk of C tokens; heads are [repeats, keys].

    q, k [keys, C, key_size]; v [repeats, keys, C, value_size]; beta [repeats, keys, C]. decay [..., C, C]: of what
    token j wrote when token i reads it, 0 where i does not see j; carried [..., C]: of the state before the chunk.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    beta: np.ndarray
    decay: np.ndarray
    carried: np.ndarray
    sees: np.ndarray  # bool [C, C]: whether token i comes at or behind token j of the same example

    @classmethod
    def of(cls, q, k, v, g, beta, first: np.ndarray, at: int) -> Chunk:
        """g: logarithms of the decays; first int [C]: where each token's example begins; at: of the chunk's first."""
        sees = np.tril(first[:, None] == first[None, :])
        total = g.astype(np.float64) @ sees.T  # since the example began, or the chunk; no other example's are in it
        between = np.where(sees, total[..., :, None] - total[..., None, :], -np.inf)
        carried = np.where(first < at, np.exp(total), 0.0)
        return cls(q, k, v, beta, np.exp(between).astype(v.dtype), carried.astype(v.dtype), sees)

    @property
    def system(self) -> np.ndarray:
        """I + strictly lower [..., C, C], whose solution are the writes u."""
        inner = np.tril(self.k @ self.k.swapaxes(-1, -2), -1)
        return self.beta[..., None] * self.decay * inner + np.eye(inner.shape[-1], dtype=inner.dtype)

    def writes(self, state: np.ndarray, system: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u [..., C, value_size], k · state) with the state before the chunk."""
        read = self.k @ state
        return np.linalg.solve(system, self.beta[..., None] * (self.v - self.carried[..., None] * read)), read

    def scores(self) -> np.ndarray:
        return (self.q @ self.k.swapaxes(-1, -2)) * self.decay

    def forward(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(o [..., C, value_size], the state behind the chunk)."""
        u, _ = self.writes(state, self.system)
        o = self.carried[..., None] * (self.q @ state) + self.scores() @ u
        return o, self.after(state, u)

    def after(self, state: np.ndarray, u: np.ndarray) -> np.ndarray:
        kept = (self.decay[..., -1, :, None] * self.k).swapaxes(-1, -2)
        return self.carried[..., -1, None, None] * state + kept @ u

    def backward(self, do: np.ndarray, dafter: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, ...]:
        """(dq, dk summed over the repeats, dv, dg, dbeta, dstate) of forward()'s two results."""
        q, k, beta, carried, last = self.q, self.k, self.beta, self.carried[..., None], self.decay[..., -1, :, None]
        turned, system, scores = state.swapaxes(-1, -2), self.system, self.scores()
        u, read = self.writes(state, system)
        du = scores.swapaxes(-1, -2) @ do + last * (k @ dafter)
        dright = np.linalg.solve(system.swapaxes(-1, -2), du)  # of beta (v - carried read)
        dscores = do @ u.swapaxes(-1, -2)
        dinner = -np.tril(dright @ u.swapaxes(-1, -2), -1)
        inner, dsystem = k @ k.swapaxes(-1, -2), dinner * beta[..., None]
        # as the gradient of decay's logarithm, and of the products below it
        dlog = (dscores * (q @ k.swapaxes(-1, -2)) + dsystem * inner) * self.decay
        dscores, dsystem = dscores * self.decay, dsystem * self.decay
        dread, through = -beta[..., None] * carried * dright, k @ dafter
        dq = dscores @ k + carried * (do @ turned)
        dk = (
            dscores.swapaxes(-1, -2) @ q
            + (dsystem + dsystem.swapaxes(-1, -2)) @ k
            + dread @ turned
            + last * (u @ dafter.swapaxes(-1, -2))
        )
        dbeta = np.sum(dright * (self.v - carried * read), -1) + np.sum(dinner * self.decay * inner, -1)
        dcarried = np.sum(do * (q @ state), -1) - beta * np.sum(dright * read, -1)
        dcarried[..., -1] += np.sum(dafter * state, (-1, -2))
        dlast = np.sum(through * u, -1) * self.decay[..., -1, :]
        dtotal = dlog.sum(-1) - dlog.sum(-2) + dcarried * self.carried - dlast
        dtotal[..., -1] += dlast.sum(-1)
        dstate = (
            self.carried[..., -1, None, None] * dafter
            + q.swapaxes(-1, -2) @ (carried * do)
            + k.swapaxes(-1, -2) @ dread
        )
        return dq.sum(0), dk.sum(0), beta[..., None] * dright, dtotal @ self.sees.astype(q.dtype), dbeta, dstate


def normed(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(x over its length along the last axis, 1 / that length), which counts as eps at least, as in llama.cpp."""
    inverse = 1.0 / np.maximum(np.sqrt(np.sum(x * x, -1, keepdims=True)), eps)
    return x * inverse, inverse


def normed_backward(dy: np.ndarray, y: np.ndarray, inverse: np.ndarray, eps: float) -> np.ndarray:
    inner = np.where(inverse < 1 / eps, np.sum(dy * y, -1, keepdims=True), 0)
    return inverse * (dy - y * inner)
