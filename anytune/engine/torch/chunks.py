"""The gated delta rule over packed examples in torch: all chunks of a stream at once, but for the state between them.

numpy/chunk.py has the recurrence and its form within a chunk. What depends on the data is never read back to the host,
so that all of it can be recorded in a CUDA graph. Everything here is float32.
"""

from __future__ import annotations

import functools

import torch

Tensor = torch.Tensor
CHUNK = 64  # tokens
NARROW, WIDEST = 64, 128  # heads wider than the one and up to the other have Triton kernels


class Chunks:
    """A stream in N chunks of C tokens, heads as [repeats, keys].

    q, k [N, 1, keys, C, key_size], v [N, repeats, keys, C, value_size]; g (the decays' logarithms) and beta
    [N, repeats, keys, C]; first: int [N, C], where each token's example begins, as a number of the stream's tokens.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, first: Tensor):
        self.q, self.k, self.v, self.beta = q, k, v, beta
        count, size = first.shape
        at = torch.arange(count, device=first.device)[:, None] * size
        sees = (first[:, :, None] == first[:, None, :]).tril()
        self.sees = sees[:, None, None].to(g.dtype)
        total = (self.sees @ g[..., None])[..., 0]
        between = (total[..., :, None] - total[..., None, :]).masked_fill(~sees[:, None, None], float("-inf"))
        self.decay = torch.exp(between)
        self.carried = torch.exp(total) * (first < at)[:, None, None]
        self.inner, self.read = k @ k.mT, self.carried[..., None] * q
        self.scores = (q @ k.mT) * self.decay
        self.inverse = unit_inverse((self.beta[..., None] * self.decay * self.inner).tril(-1))
        self.erases = self.inverse @ ((beta * self.carried)[..., None] * k)  # of the writes, for a state before
        self.kept = self.carried[..., -1, None, None]
        self.last = self.decay[..., -1, :, None]
        self.written = self.last * k

    @functools.cached_property
    def fresh(self) -> Tensor:
        """The writes with nothing before the chunk."""
        return self.inverse @ (self.beta[..., None] * self.v)

    def forward(self, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(o, the states before each chunk, the state behind all); state [repeats, keys, key_size, value_size]."""
        states = self.states(state)
        return self.read @ states[:-1] + self.scores @ self.writes(states[:-1]), states[:-1], states[-1]

    def writes(self, states: Tensor) -> Tensor:
        return self.fresh - self.erases @ states

    def states(self, state: Tensor | None = None) -> Tensor:
        """[N + 1, repeats, keys, key_size, value_size]: before each chunk, and behind the last."""
        count, repeats, keys, _, size = self.v.shape
        states = self.v.new_zeros((count + 1, repeats, keys, self.k.shape[-1], size))
        if state is not None:
            states[0] = state
        for n in range(count):
            writes = self.fresh[n] - self.erases[n] @ states[n]
            torch.add(self.kept[n] * states[n], self.written[n].mT @ writes, out=states[n + 1])
        return states

    def backward(self, do: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        """(dq, dk summed over the repeats, dv, dg, dbeta) of the results o; states: those before each chunk."""
        carried, beta, decay = self.carried[..., None], self.beta[..., None], self.decay
        u, du, after = self.writes(states), self.scores.mT @ do, torch.zeros_like(states)
        through = self.read.mT @ do
        for n in range(len(do) - 1, 0, -1):  # after[n]: the gradient of the state behind chunk n
            self._back(n, du, after, through)
        du[0] += self.written[0] @ after[0]
        dright = self.inverse.mT @ du
        dscores, dinner = do @ u.mT, -(dright @ u.mT).tril(-1)
        dlog = (dscores * (self.q @ self.k.mT) + dinner * beta * self.inner) * decay
        dread = -beta * carried * dright
        dsystem = dinner * beta * decay
        dscores = dscores * decay
        read = self.k @ states
        dq = dscores @ self.k + carried * (do @ states.mT)
        dk = dscores.mT @ self.q + (dsystem + dsystem.mT) @ self.k + dread @ states.mT + self.last * (u @ after.mT)
        dbeta = (dright * (self.v - carried * read)).sum(-1) + (dinner * decay * self.inner).sum(-1)
        dcarried = (do * (self.q @ states)).sum(-1) - self.beta * (dright * read).sum(-1)
        dlast = ((self.k @ after) * u).sum(-1) * self.last[..., 0]
        dtotal = dlog.sum(-1) - dlog.sum(-2) + dcarried * self.carried - dlast
        dtotal[..., -1] += dlast.sum(-1) + (after * states).sum((-1, -2)) * self.carried[..., -1]
        dg = (self.sees.mT @ dtotal[..., None])[..., 0]
        return dq.sum(1), dk.sum(1), beta * dright, dg, dbeta

    def _back(self, n: int, du: Tensor, after: Tensor, through: Tensor) -> None:
        """From the gradient of the state behind chunk n to that behind chunk n - 1."""
        du[n] += self.written[n] @ after[n]
        torch.sub(self.kept[n] * after[n] + through[n], self.erases[n].mT @ du[n], out=after[n - 1])


def unit_inverse(lower: Tensor) -> Tensor:
    """The inverse of I + lower [..., n, n], strictly lower, n a power of two: block by block from the diagonal on.

    That is substitution in another order (Neumann's series would not be: its powers grow before they vanish)."""
    n = lower.shape[-1]
    made = lower.new_ones((*lower.shape[:-2], n, 1, 1))
    size = 1
    while size < n:
        blocks = lower.unflatten(-1, (-1, 2 * size)).unflatten(-3, (-1, 2 * size))
        below = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., size:, :size]
        upper, under = made.unflatten(-3, (-1, 2)).unbind(-3)
        corner = -(under @ below @ upper)
        made = torch.cat([torch.cat([upper, torch.zeros_like(upper)], -1), torch.cat([corner, under], -1)], -2)
        size *= 2
    return made[..., 0, :, :]
