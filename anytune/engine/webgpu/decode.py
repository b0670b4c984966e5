"""Generation: linears and logits for a few tokens straight from the blocks, caches of keys and values, recorded tokens.

With one new token a sequence all shapes are static, so the whole token is one recorded list of dispatches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.engine.base import Heads
from anytune.errors import UserError

from .arrays import LINE, Array, Pool, cuts, lines, row_cuts
from .device import ALIGN
from .groups import Group
from .kernels import decode as _kernels
from .kernels import gemv as _gemv
from .kernels import rows as _rows
from .linear import forward, linear
from .low import low_product
from .rows import by_element

LANES = _kernels.LANES
RUN = LANES  # keys that a workgroup takes, at least
RUNS = 32  # workgroups for a head and token, at most


@dataclass
class Places:
    """Per new row its sequence's slot and its position: int32 [T] on the device."""

    slot: Array
    position: Array


@dataclass
class Cache:
    """float32 [slots, context, width]."""

    array: Array
    slots: int
    context: int
    width: int

    def slot_cuts(self, limit: int):
        """(first slot, last, binding) of runs of slots that fit a binding."""
        size = self.context * self.width
        for low, high in cuts(self.slots, max(1, (limit - unaligned(size)) // (4 * size))):
            yield low, high, self.array.span(low * size, high * size)


def unaligned(size: int) -> int:
    """Bytes by which a binding of slots of `size` elements may have to begin too early."""
    return ALIGN if size % LINE else 0


def cache(e, slots: int, context: int, width: int) -> Cache:
    size = 4 * context * width
    if size + unaligned(context * width) > e.device.max_binding:
        raise UserError(
            f"keys of {context} tokens take {size >> 20} MiB, and the device {e.device.name} binds at most "
            f"{e.device.max_binding >> 20} MiB at once: give a smaller -c"
        )
    return Cache(e.zeros(slots * context * width), slots, context, width)


def places(e, spans) -> Places:
    slot = np.concatenate([np.full(high - low, slot) for slot, low, high, _ in spans])
    position = np.concatenate([np.arange(p, p + high - low) for _, low, high, p in spans])
    return Places(e.integers(slot), e.integers(position))


def store(e, cache: Cache, where: Places, rows: Array) -> None:
    slot, position = where.slot.bind(), where.position.bind()
    for low, high, held in cache.slot_cuts(e.device.max_binding):
        for a, b in row_cuts(e.device.max_binding, rows):
            e.commands.run(
                _kernels.store(),
                [rows.bind(a, b), slot, position, held],
                (cache.width, rows.stride, cache.context, slot.shift + a, position.shift + a, low, high, held.shift),
                e.grid(cache.width, b - a),
            )


def runs(e, heads: Heads, rows: int, context: int) -> tuple[int, int]:
    """(runs that a new token's keys are cut into, keys of each). Few rows alone would leave most of a device idle; the
    number is the context's, not the position's, so that a recorded token stays as it is."""
    reach = min(context, heads.window or context)
    room = (e.device.max_binding - ALIGN) // (4 * heads.n_heads * (heads.head_dim + 2))
    count = min(-(-reach // RUN), RUNS, room) if rows <= e.decode_rows else 1
    if count < 2:
        return 1, context
    span = -(-reach // (count * LANES)) * LANES
    return -(-reach // span), span


def attend_cache(
    e, q: Array, keys: Cache, values: Cache, where: Places, heads: Heads, sinks: Array | None = None
) -> Array:
    held = [] if sinks is None else [sinks.bind()]
    shift = [sink.shift for sink in held]
    out = e.array(q.rows, q.columns)
    slot, position = where.slot.bind(), where.position.bind()
    count, span = runs(e, heads, q.rows, keys.context)
    parts = e.array(q.rows, heads.n_heads * count * (heads.head_dim + 2)) if count > 1 else out
    limit = e.device.max_binding
    for a, b in row_cuts(limit, q, out, parts):
        for (low, high, k), (_, _, v) in zip(keys.slot_cuts(limit), values.slot_cuts(limit)):
            e.commands.run(
                _kernels.attend(heads.head_dim, count > 1, bool(heads.cap), bool(held) and count == 1),
                [q.bind(a, b), k, v, slot, position, parts.bind(a, b), *(held if count == 1 else [])],
                (
                    *(heads.head_dim, heads.group, heads.window, heads.scale, q.stride, parts.stride),
                    *(keys.width, keys.context, slot.shift + a, position.shift + a, low, high, k.shift, span),
                    *([count] if count > 1 else []),
                    *([heads.cap] if heads.cap else []),
                    *(shift if count == 1 else []),
                ),
                (heads.n_heads, b - a, count),
                4.0 * (b - a) * keys.context * q.columns,
            )
        if count > 1:
            e.commands.run(
                _kernels.combine(bool(held)),
                [parts.bind(a, b), out.bind(a, b), *held],
                (heads.head_dim, count, parts.stride, out.stride, *shift),
                (heads.n_heads, b - a),
            )
    return out


def linear_decode(e, x: Array, group: Group) -> tuple[Array, ...]:
    """As linear(), for few rows and no backward."""
    if x.rows > e.decode_rows or (group.dropout and e.training):
        return linear(e, x, group)
    y = e.array(x.rows, group.width)
    _vectors(e, x, group, y)
    return group.split(y)


def logits(e, h: Array, head: Group) -> Array:
    y = e.array(h.rows, head.width, h.rows)
    if h.rows <= e.decode_rows:
        _vectors(e, h, head, y)
    else:
        forward(e, h, head, y)
    if head.cap:
        by_element(e, _rows.cap(), y, numbers=(head.cap,))
    return head.split(y)[0]


def _vectors(e, x: Array, group: Group, y: Array) -> None:
    rows = next(n for n in (1, 2, 4, 8) if n >= x.rows)
    bias = group.bias()
    for part in group.parts():
        # the kernel knows one pair, so linears with pairs of their own take a dispatch each
        for number, (first, last) in enumerate(zip(part.bounds, part.bounds[1:]) if part.rank else [(0, part.width)]):
            slot = part.pairs[number]
            low = None if slot is None else low_product(e, x, slot)
            for a, b, weights, base in part.pieces(e.device.max_binding, 1 << 30):
                a, skip, b = max(a, first), max(0, first - a), min(b, last)
                if a >= b:
                    continue
                arrays = [x, weights, y]
                numbers = [base + skip * part.row_bytes, part.row_bytes, x.rows, b - a, group.in_features]
                numbers += [x.stride // 4, y.stride, part.low + a]
                if low is not None:
                    held = slot.b.bind()
                    arrays += [low, held]
                    numbers += [slot.rank, low.stride, 0, held.shift + (a - first) * slot.rank, slot.rank, 1]
                if bias is not None:
                    arrays.append(bias)
                    numbers.append(part.low + a)
                pairs = -(-(b - a) // 2)
                e.commands.run(
                    _gemv.gemv(part.block, rows, low is not None, bias is not None),
                    arrays,
                    tuple(numbers),
                    (min(32768, pairs), -(-pairs // 32768)),
                    2.0 * x.rows * (b - a) * group.in_features,
                )


class TokenTapes:
    """One recording for each number of sequences that take one token each; those of the last few decoders are kept."""

    MOST = 4

    def __init__(self, engine):
        self.engine, self.known = engine, {}

    def clear(self) -> None:
        self.known = {}

    def run(self, body, ids, spans, rows) -> np.ndarray | None:
        """body(ids, positions, places, rows) -> float32 [n, vocab] on the host; see base.py's decode()."""
        e = self.engine
        if not (all(high - low == 1 for _, low, high, _ in spans) and len(rows) == len(spans) <= e.decode_rows):
            e.begin(np.array([0, len(ids)], np.int32), 0)
            where = places(e, spans)
            made = body(e.integers(ids), where.position, where, e.integers(rows) if len(rows) else None)
            return None if made is None else e.host(made)
        values = np.zeros((4, lines(len(spans))), np.int32)
        for row, numbers in zip(values, (ids, [s for s, _, _, _ in spans], [p for _, _, _, p in spans], rows)):
            row[: len(spans)] = numbers
        key = (body, len(spans))
        token = self.known.pop(key, None)
        token = token or Token(e, len(spans))
        logits = token.run(body, values)
        self.known[key] = token
        while len(self.known) > self.MOST:
            self.known.pop(next(iter(self.known))).drop()
        return logits


class Token:
    """One new token for each of n sequences: recorded the first time, replayed from then on. Its arrays stay its
    own."""

    def __init__(self, engine, n: int):
        self.engine, self.n, self.tape, self.kept, self.logits = engine, n, None, None, None
        self.pool = Pool(engine.device)
        self.numbers = engine.integers(np.zeros(4 * lines(n), np.int32))
        self.real = engine.integers(np.array([n, n], np.int32))

    def run(self, body, values: np.ndarray) -> np.ndarray:
        """values int32 [4, lines(n)]: token, slot, position, row of the logits."""
        e = self.engine
        e.commands.write(self.numbers, values)
        if self.tape is not None:
            e.commands.play(self.tape)
            return e.host(self.logits)
        e.tuning.ensure()
        token, slot, position, row = (
            self.numbers[at : at + self.n] for at in range(0, self.numbers.size, lines(self.n))
        )
        before = e.pool, e.capacity, e.real
        e.pool, e.capacity, e.real = self.pool, 0, self.real
        e.commands.record()
        try:
            self.logits = body(token, position, Places(slot, position), row)
            self.tape, self.kept = e.commands.recorded()
        except BaseException:
            e.commands.discard()
            raise
        finally:
            e.pool, e.capacity, e.real = before
        return e.host(self.logits)

    def drop(self) -> None:
        self.pool.clear()
