"""The gated delta net's backward, run by run from the last: states are made again from those before each run."""

from __future__ import annotations

from anytune.engine.base import DeltaHeads

from .arrays import Array, row_cuts
from .delta import Net, before
from .gradients import bias_gradient, gain_gradient
from .kernels import delta_backward as _kernels
from .kernels import delta_gradients as _chunks


def delta_backward(
    e, dy: Array, x: Array, beta: Array, alpha: Array, weights: tuple, heads: DeltaHeads, kept, into=(None, None, None)
):
    """As base.py has it."""
    runs, states = kept
    net, size = Net(e, x, beta, alpha, weights, heads, runs), heads.inner * runs.sizes.key
    dx, dgates, square = e.array(*x.shape), e.array(x.rows, 2 * heads.values), runs.sizes.key * heads.value_size
    work = e.array(net.tokens, 3 * heads.inner, net.tokens)
    held, after = net.by_chunk(square), net.by_chunk(square)
    through = net.by_chunk(_chunks.through_width(net.sizes))
    ends = None if states is None else e.array(2, size, 2)  # gradients of states between runs, in turns
    parts = runs.over(x.rows)
    for number, (low, high) in reversed(list(enumerate(parts))):
        net.factor(low, high)
        net.scan(low, high, before(states, number), None, work, held)
        _through_norm(e, dy[low:high], work, weights[2], heads, into[2])
        behind = ends.bind(number % 2, number % 2 + 1) if number + 1 < len(parts) else None
        first = ends.bind((number + 1) % 2, (number + 1) % 2 + 1) if number else None
        _scan_backward(net, low, high, behind, first, work, after)
        _gradients(net, low, high, work, held, after, through, dx, dgates)
    return dx, *_gates_backward(e, dgates, beta, alpha, weights, into)


def _through_norm(e, dy: Array, work: Array, gain: Array, heads: DeltaHeads, into: Array | None) -> None:
    """The results of a run, the first third of work, become the gradients of those before their norm."""
    results, held = work.part(0, heads.inner)[: dy.rows], gain.bind()
    if into is not None:
        gain_gradient(e, dy, results, heads.eps, into)
    e.commands.run(
        _kernels.norm_backward(),
        [dy, held, results],
        (heads.value_size, dy.stride, results.stride, held.shift, heads.eps),
        (heads.values, dy.rows),
        10.0 * dy.rows * dy.columns,
    )


def _scan_backward(net: Net, low: int, high: int, behind, first, work: Array, after: Array) -> None:
    h, chunks = net.heads, net.chunks(low, high)
    grid = net.grid(chunks)
    net.e.commands.run(
        _kernels.scan_backward(net.sizes, behind is not None, first is not None),
        [
            *(net.units.bind(low, high), net.factors, net.steps, *([] if behind is None else [behind])),
            *(work, after, *([] if first is None else [first])),
        ],
        (
            *(h.keys, h.values, high - low, chunks),
            *(net.units.stride // 4, *(z.stride for z in (net.factors, net.steps, work, after))),
            grid[2],
            net.scale,
        ),
        grid,
        6.0 * (high - low) * h.inner * h.key_size,
    )


def _gradients(
    net: Net, low: int, high: int, work: Array, held: Array, after: Array, through: Array, dx: Array, dgates: Array
) -> None:
    """Of a run's queries, keys and values into dx, and of its gates."""
    e, h, chunks, tokens = net.e, net.heads, net.chunks(low, high), high - low
    e.commands.run(
        _chunks.products(net.sizes),
        [work, held, after, through],
        (h.values, tokens, work.stride, held.stride, through.stride),
        (-(-h.key_size // _chunks.BLOCK), h.values, chunks),
        6.0 * tokens * h.inner * h.key_size,
    )
    units, x, dgate, part = (z.bind(low, high) for z in (net.units, net.x, dgates, dx))
    e.commands.run(
        _chunks.gradients(net.sizes),
        [units, work, x, net.factors, net.steps, through, dgate, part],
        (
            *(h.keys, h.values, h.key_size, tokens),
            *(z.stride for z in (net.units, work, net.x, net.factors, net.steps, through, dgates, dx)),
            net.scale,
        ),
        (h.values, chunks),
        8.0 * tokens * h.values * net.sizes.chunk * (h.key_size + h.value_size),
    )
    e.commands.run(
        _kernels.units_backward(net.sizes),
        [through, units, net.lengths.bind(low, high), part],
        (h.keys, h.values, h.key_size, *(z.stride for z in (net.units, net.lengths, through, dx)), h.eps),
        (2 * h.keys, tokens),
        6.0 * tokens * h.values * h.key_size,
    )


def _gates_backward(e, dgates: Array, beta: Array, alpha: Array, weights: tuple, into: tuple) -> tuple[Array, Array]:
    """(dbeta, dalpha); adds the gradients of a and its bias."""
    n, one, two = beta.columns, weights[0].bind(), weights[1].bind()
    dbeta, dalpha, da = e.columns(beta.rows, n, n, n)
    for low, high in row_cuts(e.device.max_binding, dgates, beta, alpha, dbeta):
        e.commands.run(
            _kernels.gates_backward(),
            [
                *(z.bind(low, high) for z in (dgates, beta, alpha)),
                *(one, two),
                *(z.bind(low, high) for z in (dbeta, dalpha, da)),
            ],
            (n, dgates.stride, beta.stride, alpha.stride, one.shift, two.shift, dbeta.stride),
            e.grid(n, high - low),
        )
    for share, target in zip((da, dalpha), into):
        if target is not None:
            bias_gradient(e, share, target)
    return dbeta, dalpha
