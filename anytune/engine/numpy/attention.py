"""Causal attention over packed examples, forward and backward, a tile of queries at a time.

A task is a run of queries of one example with the query heads of one key head: their rows are stacked, so
grouped heads share each product. Scores exist only for one tile (of limited size), only for keys
that the window lets it see, and are made again in the backward from the saved log-sum-exp (Dao et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from anytune.engine.base import Heads

from .workers import balance

ROWS = 384  # stacked rows of a tile: enough for BLAS to run at full rate


@dataclass(frozen=True)
class Task:
    """Queries low…high of a stream whose example spans start…end, with key head `head`."""

    low: int
    high: int
    start: int
    end: int
    head: int

    def first_key(self, window: int) -> int:
        return max(self.start, self.low + 1 - window) if window else self.start

    def cost(self, window: int) -> float:
        """Score elements, plus what a task costs at all."""
        return (self.high - self.low) * (self.high - self.first_key(window)) + 500


def tasks_of(starts, heads: Heads, scores: int, lanes: int) -> list[tuple[int, list[Task]]]:
    """The tasks of a packed stream in chains, dearest first: (lane, tasks), the same for forward and backward.

    In the backward the tasks of one example and key head add to the same rows of dk and dv, so they run one after the
    other. Where that would be too much for one worker they are dealt to several lanes, which sum each for itself;
    no more than so many, and by shape alone.
    """
    made, total = [], 0.0
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
        longest = min(end - start, heads.window or end - start)
        step = max(1, min(ROWS, scores // max(longest, 1)) // heads.group)
        for head in range(heads.n_kv_heads):
            tasks = [Task(low, min(low + step, end), start, end, head) for low in range(start, end, step)]
            made.append((tasks, [t.cost(heads.window) for t in tasks]))
            total += sum(made[-1][1])
    chains = []
    for tasks, costs in made:
        count = max(1, min(len(tasks), -int(-sum(costs) * lanes // total)))
        for lane, numbers in enumerate(balance(costs, count)):
            chains.append((sum(costs[i] for i in numbers), lane, [tasks[i] for i in numbers]))
    chains.sort(key=lambda chain: -chain[0])
    return [(lane, tasks) for _, lane, tasks in chains]


def attention(e, q, k, v, heads: Heads):
    """q: [T, n_heads*head_dim], k, v: [T, n_kv_heads*head_dim] -> (o [T, n_heads*head_dim], lse [keys, T*group])."""
    tokens, group, size = q.shape[0], heads.group, heads.head_dim
    out, lse = e.array(tokens, heads.n_heads * size), _per_token(e, tokens, heads.n_heads)
    lse = lse.reshape(heads.n_kv_heads, tokens * group)

    def work(task: Task, number: int) -> None:
        first, slab = task.first_key(heads.window), slice(task.head * group * size, (task.head + 1) * group * size)
        cut = slice(task.head * size, (task.head + 1) * size)
        rows = (task.high - task.low) * group
        queries = _stack(e, number, "q", q[task.low : task.high, slab], group)
        scores = e.scratch(number, "s", rows * (task.high - first)).reshape(rows, -1)
        np.matmul(queries, k[first : task.high, cut].T, out=scores)
        e.kernels.softmax(
            scores,
            group,
            task.low,
            first,
            heads.window,
            capped(e, scores, heads),
            lse[task.head, task.low * group : task.high * group],
        )
        result = e.scratch(number, "o", rows * size).reshape(rows, size)
        np.matmul(scores, v[first : task.high, cut], out=result)
        out[task.low : task.high, slab] = result.reshape(task.high - task.low, group * size)

    e.workers.run([partial(work, task) for _, tasks in e.attention_tasks(heads) for task in tasks])
    return out, lse


def capped(e, scores: np.ndarray, heads: Heads, slope: np.ndarray | None = None) -> float:
    """Cap raw scores in place, where heads are capped -> what they are to be scaled with still. slope: gets the
    derivative of the capped by the scaled ones."""
    if not heads.cap:
        return heads.scale
    e.kernels.cap(scores, heads.scale, heads.cap, scores if slope is None else slope, slope is not None)
    return 1.0


def _per_token(e, tokens: int, width: int) -> np.ndarray:
    """A flat array of tokens * width floats, in a buffer that serves every stream up to the capacity."""
    return e.flat(max(tokens, e.capacity) * width)[: tokens * width]


def _stack(e, number, name, view, group):
    """A copy of [n, group*size] as contiguous rows [n*group, size], query-major."""
    rows = e.scratch(number, name, view.shape[0] * view.shape[1]).reshape(view.shape)
    rows[...] = view
    return rows.reshape(view.shape[0] * group, -1)


def attention_backward(e, dout, q, k, v, out, lse, heads: Heads):
    """-> (dq, dk, dv), columns of one buffer; out and lse are what attention gave."""
    tokens, size = q.shape[0], heads.head_dim
    wide, narrow = heads.n_heads * size, heads.n_kv_heads * size
    both = e.array(tokens, wide + 2 * narrow)
    dq, dk, dv = both[:, :wide], both[:, wide : wide + narrow], both[:, wide + narrow :]
    inner = _per_token(e, tokens, heads.n_heads).reshape(tokens, heads.n_heads)
    e.workers.rows(
        tokens, lambda low, high: e.kernels.row_dots(dout[low:high], out[low:high], heads.n_heads, inner[low:high]), 128
    )
    chains = e.attention_tasks(heads)
    sums_of = lanes_of(e, chains, dk, dv)

    def work(task: Task, sums: tuple, number: int) -> None:
        _task_backward(e, number, task, heads, dout, q, k, v, lse, inner, dq, *sums)

    e.workers.chains([[partial(work, task, sums_of[lane]) for task in tasks] for lane, tasks in chains])
    add_up(e, sums_of)
    return dq, dk, dv


def lanes_of(e, chains: list[tuple[int, list[Task]]], dk: np.ndarray, dv: np.ndarray) -> list[tuple]:
    """What each lane sums dk and dv in, zeroed: the first in the result."""
    more = max((lane for lane, _ in chains), default=0)
    sums_of = [(dk, dv), *(tuple(e.array(*dk.shape) for _ in range(2)) for _ in range(more))]

    def clear(low: int, high: int) -> None:
        for pair in sums_of:
            for buffer in pair:
                buffer[low:high] = 0

    e.workers.rows(dk.shape[0], clear, 128)
    return sums_of


def add_up(e, sums_of: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Add every lane's sums of dk and dv to the first one's, in the lanes' order."""

    def merge(low: int, high: int) -> None:
        for own in sums_of[1:]:
            for mine, total in zip(own, sums_of[0]):
                e.kernels.add(total[low:high], mine[low:high], total[low:high])

    if len(sums_of) > 1:
        e.workers.rows(sums_of[0][0].shape[0], merge, 128)


def _task_backward(e, number, task, heads, dout, q, k, v, lse, inner, dq, dk, dv) -> None:
    group, size = heads.group, heads.head_dim
    first = task.first_key(heads.window)
    slab = slice(task.head * group * size, (task.head + 1) * group * size)
    cut = slice(task.head * size, (task.head + 1) * size)
    rows, keys = (task.high - task.low) * group, task.high - first
    queries = _stack(e, number, "q", q[task.low : task.high, slab], group)
    douts = _stack(e, number, "do", dout[task.low : task.high, slab], group)
    kept = _stack(
        e, number, "in", inner[task.low : task.high, task.head * group : (task.head + 1) * group], group
    ).reshape(-1)
    p = e.scratch(number, "s", rows * keys).reshape(rows, keys)
    np.matmul(queries, k[first : task.high, cut].T, out=p)
    slope = e.scratch(number, "slope", rows * keys).reshape(rows, keys) if heads.cap else None
    scale = capped(e, p, heads, slope)
    e.kernels.softmax_again(
        p, group, task.low, first, heads.window, scale, lse[task.head, task.low * group : task.high * group]
    )
    dp = e.scratch(number, "dp", rows * keys).reshape(rows, keys)
    np.matmul(douts, v[first : task.high, cut].T, out=dp)
    piece = e.scratch(number, "piece", keys * size).reshape(keys, size)
    np.matmul(p.T, douts, out=piece)
    e.kernels.add_scaled(piece, 1.0, dv[first : task.high, cut])
    e.kernels.softmax_backward(p, dp, kept, heads.scale)
    if slope is not None:
        dp *= slope
    np.matmul(dp.T, queries, out=piece)
    e.kernels.add_scaled(piece, 1.0, dk[first : task.high, cut])
    result = e.scratch(number, "o", rows * size).reshape(rows, size)
    np.matmul(dp, k[first : task.high, cut], out=result)
    dq[task.low : task.high, slab] = result.reshape(task.high - task.low, group * size)


def sink(e, out, lse, sinks, heads: Heads):
    """As base.py has it; with sinks each row's sum of exponentials grows by theirs."""
    tokens = out.shape[0]
    view = _by_token(lse, tokens, heads)
    with np.errstate(invalid="ignore"):  # of weights that are not numbers
        grown = np.logaddexp(view, sinks)
    result = e.array(*out.shape)
    np.multiply(out, np.repeat(np.exp(view - grown), heads.head_dim, axis=1), out=result)
    new = _per_token(e, tokens, heads.n_heads).reshape(lse.shape)
    new[...] = grown.reshape(tokens, heads.n_kv_heads, heads.group).swapaxes(0, 1).reshape(lse.shape)
    return result, new


def sink_gradient(e, dout, out, lse, sinks, heads: Heads, into) -> None:
    """As base.py has it."""
    tokens = out.shape[0]
    inner = np.empty((tokens, heads.n_heads), np.float32)
    e.kernels.row_dots(dout, out, heads.n_heads, inner)
    into -= (np.exp(sinks - _by_token(lse, tokens, heads)) * inner).sum(0)


def _by_token(lse, tokens: int, heads: Heads) -> np.ndarray:
    """[T, n_heads]"""
    return lse.reshape(heads.n_kv_heads, tokens, heads.group).swapaxes(0, 1).reshape(tokens, -1)


def attend_cache(e, q, keys, values, slots, heads: Heads, sinks=None):
    """Attention of new tokens against a cache, for generation.

    q: [T, n_heads*head_dim]; keys, values: [slots, context, n_kv_heads*head_dim], the new tokens' already in their
    places; slots: list of (slot, first row of q, last row, position of the first) -> o [T, n_heads*head_dim].
    """
    group, size = heads.group, heads.head_dim
    out = e.array(q.shape[0], heads.n_heads * size)
    step = max(1, ROWS // group)
    tasks = [
        (slot, low, min(low + step, high), position + low - begin, head)
        for slot, begin, high, position in slots
        for low in range(begin, high, step)
        for head in range(heads.n_kv_heads)
    ]

    def work(task: tuple, number: int) -> None:
        slot, low, high, position, head = task
        last = position + high - low
        first = max(0, position + 1 - heads.window) if heads.window else 0
        slab, cut = slice(head * group * size, (head + 1) * group * size), slice(head * size, (head + 1) * size)
        rows = (high - low) * group
        queries = _stack(e, number, "q", q[low:high, slab], group)
        scores = e.scratch(number, "s", rows * (last - first)).reshape(rows, -1)
        np.matmul(queries, keys[slot, first:last, cut].T, out=scores)
        lse = e.scratch(number, "lse", rows)
        e.kernels.softmax(scores, group, position, first, heads.window, capped(e, scores, heads), lse)
        result = e.scratch(number, "o", rows * size).reshape(rows, size)
        np.matmul(scores, values[slot, first:last, cut], out=result)
        if sinks is not None:
            own = np.tile(sinks[head * group : (head + 1) * group], high - low)
            with np.errstate(invalid="ignore"):
                result *= np.exp(lse - np.logaddexp(lse, own))[:, None]
        out[low:high, slab] = result.reshape(high - low, group * size)

    e.workers.run([partial(work, task) for task in tasks], q.shape[0] <= 4)
    return out
