"""The gated delta net over packed examples: runs of chunks that fit a binding, forward and in generation.

A state goes from run to run through memory; within a run a workgroup for each head and segment walks over chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.engine.base import DeltaHeads
from anytune.errors import UserError

from .arrays import Array, cuts, lines, row_cuts
from .decode import Cache, Places
from .device import ALIGN, WORKGROUPS
from .kernels import delta as _kernels
from .kernels import delta_scan as _scans
from .kernels.delta import Sizes
from .kernels.delta_gradients import through_width

CHUNKS = (32, 16, 8, 4)  # tokens of a chunk: as many as bindings allow
STATES = 8 << 20  # elements of the states that exist at once, where more than one chunk's do


@dataclass(frozen=True)
class Runs:
    """sizes: of the kernels; most: chunks of a run."""

    sizes: Sizes
    most: int

    @classmethod
    def of(cls, e, heads: DeltaHeads, stride: int) -> Runs:
        """stride: of the caller's widest rows. Raises UserError if no chunk fits a binding."""
        limit = (e.device.max_binding - ALIGN) // 4
        for chunk in CHUNKS:
            sizes = Sizes.of(chunk, heads)
            states = lines(sizes.key * sizes.value)
            columns = max(states, lines(through_width(sizes)), 4 * chunk * chunk)
            each = max(heads.values * columns, chunk * max(stride, lines(3 * heads.inner), lines(heads.width)))
            if each <= limit:
                most = min(limit // each, STATES // (heads.values * states), WORKGROUPS // chunk)
                return cls(sizes, max(1, most))
        raise UserError(
            f"the states of a delta net's {heads.values} heads take {4 * heads.values * states >> 10} KiB, more than "
            f"the device {e.device.name} binds at once: use another --device"
        )

    def over(self, tokens: int) -> list[tuple[int, int]]:
        """(first token, last) of each run."""
        return list(cuts(tokens, self.most * self.sizes.chunk))

    def tokens(self, e, rows: int) -> int:
        """The most tokens of a run, in this stream and all others: what its arrays are made for."""
        chunk = self.sizes.chunk
        return min(self.most, -(-max(rows, e.capacity) // chunk)) * chunk


class Net:
    """A stream's inputs as the kernels take them: units and gates, and the factors of one run at a time."""

    def __init__(self, e, x: Array, beta: Array, alpha: Array, weights: tuple, heads: DeltaHeads, runs: Runs):
        self.e, self.x, self.heads, self.runs, self.sizes = e, x, heads, runs, runs.sizes
        self.units, self.lengths, self.gates = prepared(e, x, beta, alpha, weights, heads, self.sizes)
        self.tokens, self.scale = runs.tokens(e, x.rows), heads.key_size**-0.5
        self.factors = self.by_chunk(4 * self.sizes.chunk**2)
        self.steps = e.array(self.tokens, 2 * heads.values + 1, self.tokens)

    def by_chunk(self, width: int) -> Array:
        """[chunks * values, width] of a run."""
        rows = self.tokens // self.sizes.chunk * self.heads.values
        return self.e.array(rows, width, rows)

    def factor(self, low: int, high: int) -> None:
        """Factors and steps of tokens low…high."""
        e, h, chunks = self.e, self.heads, self.chunks(low, high)
        e.commands.run(
            _scans.factors(self.sizes),
            [self.units.bind(low, high), self.gates.bind(low, high), e.bounds, self.factors, self.steps],
            (
                *(h.keys, h.values, high - low, low),
                *(self.units.stride // 4, self.gates.stride, self.factors.stride, self.steps.stride, self.scale),
            ),
            (h.values, chunks),
            4.0 * (high - low) * h.values * self.sizes.chunk * h.key_size,
        )

    def scan(self, low: int, high: int, before, behind, out: Array, states: Array | None = None) -> None:
        """before, behind: bindings of states, or None."""
        h, chunks, ends = self.heads, self.chunks(low, high), (before is not None, behind is not None)
        arrays = [self.x.bind(low, high), self.units.bind(low, high), self.factors, self.steps]
        arrays += [] if before is None else [before]
        arrays += [out.bind(0, high - low), *(z for z in (states, behind) if z is not None)]
        strides = self.x.stride, self.units.stride // 4, self.factors.stride // 4, self.steps.stride, out.stride
        self.e.commands.run(
            _scans.scan(self.sizes, states is not None, *ends),
            arrays,
            (h.keys, h.values, h.key_size, high - low, chunks, *strides, (states or out).stride, self.scale),
            self.grid(chunks),
            6.0 * (high - low) * h.inner * h.key_size,
        )

    def chunks(self, low: int, high: int) -> int:
        return -(-(high - low) // self.sizes.chunk)

    def grid(self, chunks: int) -> tuple[int, int, int]:
        return -(-self.heads.value_size // self.sizes.columns), self.heads.values, -(-chunks // _scans.SPAN)


def prepared(
    e, x: Array, beta: Array, alpha: Array, weights: tuple, heads: DeltaHeads, sizes: Sizes
) -> tuple[Array, Array, Array]:
    """(units, 1 / their lengths before, gates)."""
    (a, bias, _), h = weights, heads
    made, lengths = e.array(x.rows, 2 * h.keys * sizes.key), e.array(x.rows, 2 * h.keys)
    for low, high in row_cuts(e.device.max_binding, x, made, lengths):
        e.commands.run(
            _kernels.units(),
            [x.bind(low, high), made.bind(low, high), lengths.bind(low, high)],
            (h.key_size, sizes.key, x.stride, made.stride, lengths.stride, h.eps),
            (2 * h.keys, high - low),
            4.0 * (high - low) * made.columns,
        )
    gates, one, two = e.array(x.rows, 2 * h.values), a.bind(), bias.bind()
    for low, high in row_cuts(e.device.max_binding, beta, alpha, gates):
        e.commands.run(
            _kernels.gates(),
            [beta.bind(low, high), alpha.bind(low, high), one, two, gates.bind(low, high)],
            (h.values, beta.stride, alpha.stride, one.shift, two.shift, gates.stride),
            e.grid(h.values, high - low),
        )
    return made, lengths, gates


def delta(e, x: Array, beta: Array, alpha: Array, weights: tuple, heads: DeltaHeads):
    """-> (out, kept): the runs, and the states before all of them but the first ([runs - 1, …], or None)."""
    runs = Runs.of(e, heads, x.stride)
    net, size = Net(e, x, beta, alpha, weights, heads, runs), heads.inner * runs.sizes.key
    out, parts = e.array(x.rows, heads.inner), runs.over(x.rows)
    most = len(runs.over(max(x.rows, e.capacity))) - 1
    states = e.array(most, size, most) if most else None
    for number, (low, high) in enumerate(parts):
        net.factor(low, high)
        behind = states.bind(number, number + 1) if number + 1 < len(parts) else None
        net.scan(low, high, before(states, number), behind, out[low:high])
    _norm(e, out, weights[2], heads)
    return out, (runs, states)


def before(states: Array | None, number: int):
    """The state before a run, as a binding."""
    return states.bind(number - 1, number) if number else None


def _norm(e, out: Array, gain: Array, heads: DeltaHeads) -> None:
    held = gain.bind()
    for low, high in row_cuts(e.device.max_binding, out):
        e.commands.run(
            _kernels.norm(),
            [held, out.bind(low, high)],
            (heads.value_size, out.stride, held.shift, heads.eps),
            (heads.values, high - low),
            4.0 * (high - low) * out.columns,
        )


def delta_cached(
    e, x: Array, beta: Array, alpha: Array, weights: tuple, heads: DeltaHeads, cache: Cache, where: Places
):
    """Token by token, from states and to them; cache: state(slots, values * key_size * value_size)."""
    h, sizes = heads, Sizes.of(CHUNKS[0], heads)
    units, _, gates = prepared(e, x, beta, alpha, weights, h, sizes)
    out, limit = e.array(x.rows, h.inner), e.device.max_binding
    slot, position = where.slot.bind(), where.position.bind()
    for a, b in row_cuts(limit, x, units, gates, out):  # a run goes on from the states of the one before
        for low, high, held in cache.slot_cuts(limit):
            e.commands.run(
                _kernels.cached(sizes),
                [x.bind(a, b), units.bind(a, b), gates.bind(a, b), slot, position, held, out.bind(a, b)],
                (
                    *(h.keys, h.values, h.key_size, b - a, cache.width),
                    *(slot.shift + a, position.shift + a, low, high, held.shift),
                    *(z.stride for z in (x, units, gates, out)),
                    h.key_size**-0.5,
                ),
                (-(-h.value_size // sizes.columns), h.values, b - a),
                6.0 * (b - a) * h.inner * h.key_size,
            )
    _norm(e, out, weights[2], h)
    return out
