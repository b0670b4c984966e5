"""The optimizers of engine/optimizers.py over all workers, in pieces that a worker's cache holds."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from anytune.engine import optimizers as rules

from .workers import piece, pieces

PIECE = 1 << 16  # weights at a time; a multiple of rules.BLOCK


def norm(e, gradients: list[np.ndarray]) -> float:
    """Summed in float64 in pieces of fixed size (not by thread)."""
    size = 1 << 20
    if e.process_group is not None:
        for g in gradients:
            e.process_group.all_reduce_(g)
    parts = [g[at : at + size] for g in gradients for at in range(0, g.size, size)]
    sums = np.zeros(len(parts))

    def work(index: int, number: int) -> None:
        sums[index] = e.kernels.sum_squares(parts[index])

    e.workers.run([partial(work, index) for index in range(len(parts))])
    return float(np.sqrt(sums.sum()))


def adamw(
    e, p, g, m, v, cut: int, rates, step: int, beta1: float, beta2: float, eps: float, decay: float, max_norm: float
) -> float:
    norm = e.norm([g])
    if not math.isfinite(norm):
        return norm
    clip = max_norm / norm if max_norm and norm > max_norm else 1.0
    one, two = 1.0 - beta1**step, 1.0 - beta2**step
    for part, lr in ((slice(0, cut), rates[0]), (slice(cut, p.size), rates[1])):
        own = [z[part] for z in (p, g, m, v)]
        e.workers.rows(
            own[0].size,
            lambda a, b: e.kernels.adamw(*(z[a:b] for z in own), lr, beta1, beta2, eps, decay, clip, one, two),
            1 << 16,
        )
    return norm


def optimizer_state(e, kind: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return rules.start(kind, shape)


def optimize(e, kind: str, p, g, state: dict[str, np.ndarray], shape: tuple[int, ...], rule) -> None:
    if kind == "adafactor":
        _adafactor(e, p, g, state, shape, rule)
        return
    one, two = 1.0 - rule.beta1**rule.step, 1.0 - rule.beta2**rule.step
    how = (rule.lr, rule.beta1, rule.beta2, rule.eps, rule.decay, rule.factor, one, two)
    if "second" in state:
        e.workers.rows(
            p.size, lambda a, b: e.kernels.adamw(p[a:b], g[a:b], state["first"][a:b], state["second"][a:b], *how), PIECE
        )
        return

    def blocks(low: int, high: int) -> None:
        for at in e.each(range(low * rules.BLOCK, min(high * rules.BLOCK, p.size), PIECE)):
            a, b = at, min(at + PIECE, high * rules.BLOCK, p.size)
            scales = slice(a // rules.BLOCK, -(-b // rules.BLOCK))
            parts = {name: array[scales if name.endswith("_scale") else slice(a, b)] for name, array in state.items()}
            first, second = rules.moments(parts)
            e.kernels.adamw(p[a:b], g[a:b], first, second, *how)
            e.kernels.encode_moments(first, True, parts["first"], parts["first_scale"])
            e.kernels.encode_moments(np.sqrt(second, out=second), False, parts["root"], parts["root_scale"])

    e.workers.rows(-(-p.size // rules.BLOCK), blocks, PIECE // rules.BLOCK)


def _adafactor(e, p, g, state, shape, rule) -> None:
    """Rows at a time: squares' means first, then the updates' size, then the updates themselves."""
    if "square" in state:
        rules.reference("adafactor", p, g, state, shape, rule)
        g[...] = 0
        return
    keep, factor = np.float32(1 - rule.step**rules.DECAY), np.float32(rule.factor)
    row, column, g2, p2 = state["row"], state["column"], g.reshape(shape), p.reshape(shape)
    step = max(1, PIECE // shape[1])
    cuts = list(pieces(0, shape[0], piece(shape[0], step)))
    columns = np.zeros((len(cuts), shape[1]), np.float32)
    squares = np.zeros(len(cuts))

    def over(work) -> None:
        def mine(index: int, number: int) -> None:
            low, high = cuts[index]
            for at in e.each(range(low, high, step)):
                work(index, slice(at, min(at + step, high)))

        e.workers.run([partial(mine, index) for index in range(len(cuts))])

    def means(index: int, part: slice) -> None:
        square = g2[part] * factor
        square *= square
        square += np.float32(rules.TINY)
        row[part] = keep * row[part] + (1 - keep) * square.mean(1)
        columns[index] += square.sum(0)

    over(means)
    column *= keep
    column += (1 - keep) / np.float32(shape[0]) * columns.sum(0)
    rows, across = factor / np.sqrt(row / row.mean()), 1 / np.sqrt(column)

    def sizes(index: int, part: slice) -> None:
        update = np.multiply(g2[part], rows[part, None], out=g2[part])
        update *= across
        squares[index] += np.einsum("ij,ij->", update, update, dtype=np.float64)

    over(sizes)
    shrink, rate = (
        np.float32(1 - rule.lr * rule.decay),
        rule.lr / max(1.0, (squares.sum() / p.size) ** 0.5 / rules.THRESHOLD),
    )

    def apply(index: int, part: slice) -> None:
        g2[part] *= np.float32(rate)
        p2[part] *= shrink
        p2[part] -= g2[part]
        g2[part] = 0

    over(apply)
