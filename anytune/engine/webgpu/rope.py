"""Norms of query and key heads, and rope, for both at once."""

from __future__ import annotations

from anytune.engine.base import Heads
from .arrays import Array, row_cuts
from .kernels import rope as _kernels


def qk_norm_rope(e, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool):
    normed = gains is not None
    out = e.columns(q.rows, q.columns, k.columns) if normed else (q, k)
    for x, y, count, queries in _heads((q, k), out, heads):
        for a, b in row_cuts(e.device.max_binding, x, y):
            where = positions.bind()
            arrays = [x.bind(a, b), *(gains if normed else ()), *table, where, *([y.bind(a, b)] if normed else [])]
            e.commands.run(
                _kernels.qk_norm_rope(normed, neox),
                arrays,
                (heads.head_dim, table[0].columns, x.stride, y.stride, eps, queries, where.shift + a),
                (count, b - a),
                8.0 * (b - a) * x.columns,
            )
    return out


def qk_norm_rope_backward(
    e, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
):
    turns = all(gradient is None for gradient in into)
    if not turns:  # the gains' gradients are between turning and norms
        _backward(e, dq, dk, q, k, None, eps, table, positions, heads, neox, True)
        for dx, x, gradient in zip((dq, dk), (q, k), into):
            if gradient is not None:
                e.gain_gradient(dx, x, eps, gradient)
    return _backward(e, dq, dk, q, k, gains, eps, table, positions, heads, neox, turns)


def _backward(e, dq, dk, q, k, gains, eps, table, positions, heads, neox, turns: bool):
    normed = gains is not None
    for dx, x, count, queries in _heads((dq, dk), (q, k) if normed else (dq, dk), heads):
        for a, b in row_cuts(e.device.max_binding, dx, x):
            where = positions.bind()
            arrays = [dx.bind(a, b), *([x.bind(a, b), *gains] if normed else []), *table, where]
            e.commands.run(
                _kernels.qk_norm_rope_backward(normed, neox),
                arrays,
                (heads.head_dim, table[0].columns if turns else 0, dx.stride, x.stride, eps, queries, where.shift + a),
                (count, b - a),
                16.0 * (b - a) * x.columns,
            )
    return dq, dk


def _heads(one: tuple[Array, Array], two: tuple[Array, Array], heads: Heads):
    """(an array of `one`, its neighbour of `two`, heads, how many of them are queries): queries and keys as one array
    where they lie side by side in both."""
    (q, k), (other_q, other_k) = one, two
    if all(b.buffer is a.buffer and b.stride == a.stride and b.at == a.at + a.columns for a, b in (one, two)):
        width = q.columns + k.columns
        yield q.part(0, width), other_q.part(0, width), heads.n_heads + heads.n_kv_heads, heads.n_heads
    else:
        yield q, other_q, heads.n_heads, heads.n_heads
        yield k, other_k, heads.n_kv_heads, 0
