"""Causal attention over packed examples with bf16 products; the tasks are those of numpy/attention.py."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from anytune.engine.base import Heads
from anytune.engine.numpy import attention as whole
from anytune.engine.numpy.attention import add_up, lanes_of

from . import attend
from .rows import address, aligned


def attention(e, q, k, v, heads: Heads):
    """q: [T, n_heads*head_dim], k, v: [T, n_kv_heads*head_dim] -> (o [T, n_heads*head_dim], lse [queries, T]).

    Capped heads and those with sinks are NumPy's, in float32: attend.py makes use of probabilities that add up to 1.
    """
    if heads.cap or heads.sinks:
        return whole.attention(e, q, k, v, heads)
    tokens, size = q.shape[0], heads.head_dim
    out = e.array(tokens, heads.n_heads * size)
    lse = e.flat(max(tokens, e.capacity) * heads.n_heads)[: tokens * heads.n_heads].reshape(heads.n_heads, tokens)

    places = [_at(x) for x in (q, k, v, out)]
    lse_at = address(lse)

    def task_of(task):
        first = task.first_key(heads.window)
        wide, narrow = 4 * task.head * heads.group * size, 4 * task.head * size

        def run(number: int) -> None:
            scratch = _scratch(e, number, attend.sizes, task.high - first, size)
            e.attend.forward(
                heads.scale,
                *_shifted(places, (wide, narrow, narrow, wide)),
                lse_at + task.head * heads.group * lse.strides[0],
                lse.strides[0],
                task.low,
                task.high,
                first,
                heads.group,
                size,
                heads.window,
                *scratch,
            )

        return run

    e.workers.run([task_of(task) for _, tasks in e.attention_tasks(heads) for task in tasks])
    return out, lse


def _scratch(e, number: int, sizes, keys: int, size: int) -> list[int]:
    """A worker's scratch for a task: one buffer, cut on cache lines. sizes: attend's, of the pieces."""
    *offsets, whole = _offsets(sizes, keys, size)
    at = aligned(e, number, "attend", whole)
    return [at + 4 * offset for offset in offsets]


@functools.lru_cache(maxsize=4096)  # asked for by every task of every layer
def _offsets(sizes, keys: int, size: int) -> tuple[int, ...]:
    """Where each piece begins, in words, and where the last one ends."""
    return tuple(itertools.accumulate((n + 15 & -16 for n in sizes(keys, size)), initial=0))


def attention_backward(e, dout, q, k, v, out, lse, heads: Heads):
    """-> (dq, dk, dv), columns of one buffer; out and lse are what attention gave."""
    if heads.cap or heads.sinks:
        return whole.attention_backward(e, dout, q, k, v, out, lse, heads)
    tokens, size = q.shape[0], heads.head_dim
    wide, narrow = heads.n_heads * size, heads.n_kv_heads * size
    both = e.array(tokens, wide + 2 * narrow)
    dq, dk, dv = both[:, :wide], both[:, wide : wide + narrow], both[:, wide + narrow :]
    chains = e.attention_tasks(heads)
    sums_of = lanes_of(e, chains, dk, dv)
    places, results, lse_at = [_at(x) for x in (q, k, v, dout)], _at(dq), address(lse)

    def task_of(task, targets: list):
        first = task.first_key(heads.window)

        def run(number: int) -> None:
            scratch = _scratch(e, number, attend.sizes_backward, task.high - first, size)
            at, slim = 4 * task.head * heads.group * size, 4 * task.head * size
            e.attend.backward(
                heads.scale,
                *_shifted(places, (at, slim, slim, at)),
                lse_at + task.head * heads.group * lse.strides[0],
                lse.strides[0],
                *_shifted(targets, (at, slim, slim)),
                task.low,
                task.high,
                first,
                heads.group,
                size,
                heads.window,
                *scratch,
            )

        return run

    targets = [[results, *(_at(x) for x in own)] for own in sums_of]
    e.workers.chains([[task_of(task, targets[lane]) for task in tasks] for lane, tasks in chains])
    add_up(e, sums_of)
    return dq, dk, dv


def _at(x: np.ndarray) -> tuple[int, int]:
    """(address, row stride) of x."""
    return address(x), x.strides[0]


def _shifted(places, columns) -> Iterator[int]:
    """Each place so many bytes into its rows, flat."""
    for (at, stride), more in zip(places, columns):
        yield at + more
        yield stride
