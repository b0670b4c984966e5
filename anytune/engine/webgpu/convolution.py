"""A causal depthwise convolution within each example."""

from __future__ import annotations

from collections.abc import Iterator

from anytune.errors import UserError

from .arrays import Array, cuts, row_cuts
from .decode import Cache, Places, unaligned
from .device import ALIGN, WORKGROUPS
from .kernels import convolution as _kernels
from .kernels.columns import COLUMNS


def _runs(e, kernel: int, *arrays: Array) -> Iterator[tuple[int, int, int]]:
    """(low, high, rows before) of runs of rows that fit a binding with those that the kernel reaches beyond them."""
    most = (e.device.max_binding - ALIGN) // (4 * max(a.stride for a in arrays)) - (kernel - 1)
    for low, high in cuts(arrays[0].rows, min(max(1, most), WORKGROUPS)):
        yield low, high, min(low, kernel - 1)


def convolve(e, x: Array, weight: Array, silu: bool) -> Array:
    """x [T, n], weight [n, kernel]."""
    y, (n, kernel), held = e.array(*x.shape), weight.shape, weight.bind()
    for a, b, before in _runs(e, kernel, x, y):
        e.commands.run(
            _kernels.convolve(silu),
            [x.bind(a - before, b), held, e.bounds, y.bind(a, b)],
            (n, kernel, a, before, x.stride, held.shift, y.stride),
            e.grid(n, b - a),
            2.0 * (b - a) * n * kernel,
        )
    return y


def convolve_backward(e, dy: Array, x: Array, weight: Array, silu: bool, into: Array | None = None) -> Array:
    dx, dz, (n, kernel), held = e.array(*x.shape), dy, weight.shape, weight.bind()
    if silu:
        dz = e.array(*x.shape)
        for a, b, before in _runs(e, kernel, x, dy, dz):
            e.commands.run(
                _kernels.silu_backward(),
                [x.bind(a - before, b), held, e.bounds, dy.bind(a, b), dz.bind(a, b)],
                (n, kernel, a, before, x.stride, held.shift, dz.stride, dy.stride),
                e.grid(n, b - a),
                2.0 * (b - a) * n * kernel,
            )
    for a, b, before in _runs(e, kernel, x, dz, dx):
        e.commands.run(
            _kernels.convolve_backward(),
            [dz.bind(a, min(x.rows, b + kernel - 1)), held, e.bounds, dx.bind(a, b)],
            (n, kernel, a, e.bounds.size // 2 + a, dz.stride, held.shift, dx.stride),
            e.grid(n, b - a),
            2.0 * (b - a) * n * kernel,
        )
        if into is not None:
            target = into.bind()
            e.commands.run(
                _kernels.weight_gradient(),
                [x.bind(a - before, b), dz.bind(a, b), e.bounds, target],
                (n, kernel, a, before, x.stride, dz.stride, b - a, target.shift),
                (-(-n // COLUMNS), kernel),
                2.0 * (b - a) * n * kernel,
            )
    return dx


def convolve_cached(e, x: Array, weight: Array, silu: bool, cache: Cache, where: Places) -> Array:
    """cache: state(slots, (kernel - 1) * n), the last inputs of each sequence, oldest first."""
    y, (n, kernel), held = e.array(*x.shape), weight.shape, weight.bind()
    slot, position, limit = where.slot.bind(), where.position.bind(), e.device.max_binding
    for a, b in row_cuts(limit, x, y):  # a run goes on from what the one before has remembered
        for low, high, kept in cache.slot_cuts(limit):
            numbers = (n, kernel, x.stride, slot.shift + a, position.shift + a, low, high, kept.shift)
            e.commands.run(
                _kernels.convolve_cached(silu),
                [x.bind(a, b), held, slot, position, kept, y.bind(a, b)],
                (*numbers, held.shift, y.stride),
                e.grid(n, b - a),
            )
            e.commands.run(
                _kernels.update_window(), [x.bind(a, b), slot, position, kept], (*numbers, b - a), e.grid(n, b - a)
            )
    return y


def state(e, slots: int, size: int) -> Cache:
    """As a cache of one token a slot. Raises UserError if the device cannot bind a sequence's."""
    if 4 * size + unaligned(size) > e.device.max_binding:
        raise UserError(
            f"the state of a layer takes {4 * size >> 10} KiB a sequence, and the device {e.device.name} binds at most "
            f"{e.device.max_binding >> 10} KiB at once: use another --device"
        )
    return Cache(e.zeros(slots * size), slots, 1, size)
