"""Causal attention over packed examples: queries and keys in runs of rows that fit a binding, merged by their
log-sums."""

from __future__ import annotations

from anytune.engine.base import Heads

from .arrays import Array, lines, row_cuts
from .kernels import attention as _kernels
from .kernels.attention_backward import attention_backward as backward_kernel
from .linear import add_slices
from .sizes import SCRATCH

FILL = 256  # workgroups that occupy a device


def _runs(e, queries: tuple[Array, ...], keys: tuple[Array, ...]):
    """((first query, last, first key, last), …) of dispatches, with rows of both that fit a binding; queries see no
    keys behind them."""
    for q_low, q_high in row_cuts(e.device.max_binding, *queries):
        for k_low, k_high in row_cuts(e.device.max_binding, *keys):
            if k_low < q_high:
                yield q_low, q_high, k_low, k_high


def _numbers(heads: Heads, run: tuple[int, int, int, int], tokens: int) -> tuple:
    q_low, q_high, k_low, k_high = run
    return q_low, k_low, q_low, q_high, k_low, k_high, heads.head_dim, heads.group, heads.window, heads.scale, tokens


def _cap(heads: Heads) -> tuple:
    return (heads.cap,) if heads.cap else ()


def _cost(heads: Heads, run: tuple[int, int, int, int], products: int) -> float:
    q_low, q_high, k_low, k_high = run
    pairs = (q_high - q_low) * min(k_high - k_low, heads.window or 1 << 30)
    return 2.0 * products * pairs * heads.n_heads * heads.head_dim


def attention(e, q: Array, k: Array, v: Array, heads: Heads) -> tuple[Array, Array]:
    """q [T, n_heads*head_dim], k, v [T, n_kv_heads*head_dim] -> (out like q, natural log-sum-exp of the scaled scores
    [n_heads, T])."""
    tokens = q.rows
    out, lse = e.array(tokens, q.columns), e.flat(heads.n_heads * tokens, heads.n_heads * max(tokens, e.capacity))
    kernel, rows = _kernels.attention(heads.head_dim, bool(heads.cap)), _kernels.Tiling(heads.head_dim).rows
    for run in _runs(e, (q, out), (k, v)):
        q_low, q_high, k_low, k_high = run
        sources = [q.bind(q_low, q_high), k.bind(k_low, k_high), v.bind(k_low, k_high)]
        strides, carry = (q.stride, k.stride, v.stride, out.stride), int(k_low > 0)
        e.commands.run(
            kernel,
            [*sources, e.bounds, out.bind(q_low, q_high), lse],
            (*_numbers(heads, run, tokens), *strides, carry, *_cap(heads)),
            (-(-(q_high - q_low) // rows), heads.n_heads),
            _cost(heads, run, 2),
        )
    return out, lse


def slices(e, heads: Heads, run: tuple[int, int, int, int], name: str, columns: int) -> tuple[int, int]:
    """(slices of a sum over columns, whether each query head has its own) of a dispatch of attention_backward(): few
    tokens have few tiles, and a tile alone walks over all its columns."""
    q_low, q_high, k_low, k_high = run
    rows, cols = (q_high - q_low, k_high - k_low) if name == "dq" else (k_high - k_low, q_high - q_low)
    tiles = -(-rows // _kernels.Tiling(heads.head_dim).rows) * (heads.n_heads if name == "dq" else heads.n_kv_heads)
    room = min(SCRATCH, e.device.max_binding // 4) // (rows * lines(columns))
    most, group = min(FILL // tiles, room), 1 if name == "dq" else heads.group
    if most < 2 * group:
        return 1, 0
    return max(1, min(most // group, -(-cols // _kernels.COLS))), int(group > 1)


def inner_products(e, dout: Array, out: Array, heads: Heads) -> Array:
    """Of each head's rows of both: [n_heads, T]."""
    tokens = out.rows
    made = e.flat(heads.n_heads * tokens, heads.n_heads * e.buffer_rows(tokens))
    for a, b in row_cuts(e.device.max_binding, dout, out):
        e.commands.run(
            _kernels.inner(),
            [dout.bind(a, b), out.bind(a, b), made],
            (heads.head_dim, dout.stride, out.stride, a, tokens),
            (heads.n_heads, b - a),
            2.0 * (b - a) * out.columns,
        )
    return made


def attention_backward(e, dout: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, heads: Heads):
    """(dq, dk, dv), columns of one buffer."""
    tokens = q.rows
    dq, dk, dv = e.columns(tokens, q.columns, k.columns, k.columns)
    delta = inner_products(e, dout, out, heads)
    runs = list(_runs(e, (q, dout, dq), (k, v, dk)))
    started: set[tuple[str, int]] = set()  # runs of rows that hold a part of their sum already
    for name, run in [(name, run) for name in ("dq", "dk", "dv") for run in runs]:
        dx, low = {"dq": dq, "dk": dk, "dv": dv}[name], run[0 if name == "dq" else 2]
        _gradient(e, name, run, (q, k, v, dout), (lse, delta), dx, int((name, low) in started), heads)
        started.add((name, low))
    return dq, dk, dv


def _gradient(
    e, name: str, run: tuple[int, int, int, int], inputs: tuple, stats: tuple, dx: Array, adds: int, heads: Heads
) -> None:
    """One of dq, dk and dv of a run of rows and columns into dx, or (adds) onto what is there. inputs: q, k, v, dout;
    stats: log-sum-exp and delta."""
    (q, k, v, dout), (lse, delta), (q_low, q_high, k_low, k_high) = inputs, stats, run
    low, high = (q_low, q_high) if name == "dq" else (k_low, k_high)
    own, rows = heads.n_heads if name == "dq" else heads.n_kv_heads, high - low
    count, apart = slices(e, heads, run, name, dx.columns)
    several = count * (heads.group if apart else 1)
    width, target, placing = lines(dx.columns), dx.bind(low, high), (dx.stride, adds)
    if several > 1:
        parts = e.scratch(several * rows, width)
        target, placing = parts.bind(), (width, 0)
    arrays = [q.bind(q_low, q_high), k.bind(k_low, k_high), *([] if name == "dv" else [v.bind(k_low, k_high)])]
    arrays += [dout.bind(q_low, q_high), lse, *([] if name == "dv" else [delta])]
    e.commands.run(
        backward_kernel(heads.head_dim, name, bool(heads.cap)),
        [*arrays, e.bounds, target],
        (
            *(*_numbers(heads, run, q.rows), q.stride, k.stride, v.stride, dout.stride, *placing),
            *(e.bounds.size // 2, count, apart, rows * width, *_cap(heads)),
        ),
        (-(-rows // _kernels.Tiling(heads.head_dim).rows), own, several),
        _cost(heads, run, 2 if name == "dv" else 3),
    )
    if several > 1:
        add_slices(e, parts, several, dx.part(0, dx.columns), low, high, 0, dx.columns, adds)
