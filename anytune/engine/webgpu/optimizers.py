"""The optimizers of engine/optimizers.py on the device, in pieces that fit a binding."""

from __future__ import annotations

import math

import numpy as np

from anytune.engine import optimizers as rules

from .arrays import Array, cuts
from .gradients import rows_of
from .kernels import gradients as _gradients
from .kernels import optimizer as _kernels
from .kernels import rules as _rules
from .kernels.columns import COLUMNS
from .update import square_sums

# elements of a dispatch. A constant, where others follow the measured rate: it decides how sums are rounded
MOST = 1 << 24


class Codes(Array):
    """uint8 [count] on the device, four to a word."""

    __slots__ = ("count",)

    def __init__(self, words: Array, count: int):
        super().__init__(words.buffer, words.at, words.shape, words.stride)
        self.count = count


class Optimizers:
    """Their small arrays for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.partial: Array | None = None
        self.scalars: Array | None = None
        self.codes: Array | None = None
        self.hyper: dict[bool, tuple] = {}  # whether weights decay: (the rule that is on the device, its numbers)

    def _most(self) -> int:
        """Elements of a vector that one dispatch takes: whole blocks, whose bindings are within the limit."""
        most = min((self.engine.device.max_binding - 512) // 4, MOST)
        return max(rules.BLOCK, most // rules.BLOCK * rules.BLOCK)

    def _scratch(self, count: int) -> Array:
        """Scratch of at least `count` floats."""
        if self.partial is None or self.partial.size < count:
            self.engine.commands.flush()
            self.partial = self.engine.zeros(count)
        return self.partial

    def _numbers(self, rule) -> Array:
        """The rule's numbers on the device. A step has two rules at most: with and without decay."""
        known, array = self.hyper.get(bool(rule.decay), (None, None))
        if known != rule:
            array = array or self.engine.zeros(len(_rules.HYPER))
            keep = 1.0 - rule.step**rules.DECAY
            rate, unroot = rule.lr / (1.0 - rule.beta1**rule.step), 1.0 / math.sqrt(1.0 - rule.beta2**rule.step)
            values = [rule.factor, 1.0 - rule.lr * rule.decay, rule.lr, rate, unroot, rule.beta1, 1.0 - rule.beta1]
            values += [rule.beta2, 1.0 - rule.beta2, rule.eps, keep, 1.0 - keep]
            self.engine.commands.write(array, np.array(values, np.float32))
            self.hyper[bool(rule.decay)] = rule, array
        return array

    def norm(self, gradients: list[Array]) -> float:
        """See base.py. Partial sums are added on the host, in float64."""
        e, most = self.engine, self._most()
        pieces = [(g, low, high) for g in gradients for low, high in cuts(g.size, most, rules.BLOCK)]
        partial = self._scratch(sum(-(-(high - low) // _kernels.PIECE) for _, low, high in pieces))
        e.canary.look()
        done = square_sums(e, pieces, partial)
        return float(np.sqrt(np.sum(e.host(partial[:done]), dtype=np.float64)))

    def start(self, kind: str, shape: tuple[int, ...]) -> dict[str, Array]:
        """See base.py, optimizer_state()."""
        made = {}
        for name, (sizes, dtype) in rules.state_shapes(kind, shape).items():
            if dtype is np.uint8:
                zero = np.searchsorted(rules.codes(name == "first"), 0.0)
                words = np.full(-(-sizes[0] // 4), int(zero) * 0x01010101, np.uint32)
                made[name] = Codes(self.engine.integers(words.view(np.int32)), sizes[0])
            else:
                made[name] = self.engine.zeros(sizes[0])
        return made

    def step(self, kind: str, p: Array, g: Array, state: dict[str, Array], shape: tuple[int, ...], rule) -> None:
        """See base.py, optimize()."""
        hyper = self._numbers(rule)
        if kind == "adafactor":
            self._adafactor(p, g, state, shape, hyper)
        elif "root" in state:
            self._adamw8bit(p, g, state, hyper)
        else:
            for low, high in cuts(p.size, self._most()):
                held = [a.span(low, high) for a in (p, g, state["first"], state["second"])]
                self.engine.commands.run(
                    _rules.adamw(),
                    [*held, hyper],
                    (high - low, *(b.shift for b in held)),
                    _each(high - low),
                    20.0 * (high - low),
                )

    def _adamw8bit(self, p, g, state, hyper) -> None:
        if self.codes is None:
            tables = [
                np.append(z, np.float32(0))[:256]
                for signed in (True, False)
                for z in (rules.codes(signed), rules.middles(signed))
            ]
            self.codes = self.engine.vector(np.concatenate(tables))
        for low, high in cuts(p.size, self._most(), rules.BLOCK):
            words, blocks = (low // 4, -(-high // 4)), (low // rules.BLOCK, -(-high // rules.BLOCK))
            w, slope, scales = p.span(low, high), g.span(low, high), state["first_scale"].span(*blocks)
            self.engine.commands.run(
                _rules.adamw8bit(),
                [
                    *(w, slope, state["first"].span(*words), scales),
                    *(state["root"].span(*words), state["root_scale"].span(*blocks), hyper, self.codes),
                ],
                (high - low, w.shift, slope.shift, scales.shift),
                _groups(blocks[1] - blocks[0]),
                40.0 * (high - low),
            )

    def _adafactor(self, p, g, state, shape, hyper) -> None:
        e = self.engine
        if self.scalars is None:
            self.scalars = e.zeros(4)
        done = (
            self._vector_updates(g, state["square"], hyper)
            if "square" in state
            else self._matrix_updates(g.reshape(shape), state["row"], state["column"], hyper)
        )
        e.commands.run(_rules.clip_updates(), [self.partial, self.scalars], (done, p.size), (1,))
        for low, high in cuts(p.size, self._most()):
            w, slope = p.span(low, high), g.span(low, high)
            e.commands.run(
                _rules.apply(),
                [w, slope, hyper, self.scalars],
                (high - low, w.shift, slope.shift),
                _each(high - low),
                8.0 * (high - low),
            )

    def _vector_updates(self, g, square, hyper) -> int:
        """g becomes the updates -> how many partial sums of their squares there are."""
        done, pieces = 0, list(cuts(g.size, self._most()))
        self._scratch(sum(-(-(high - low) // _rules.PIECE) for low, high in pieces))
        for low, high in pieces:
            slope, held, groups = g.span(low, high), square.span(low, high), -(-(high - low) // _rules.PIECE)
            self.engine.commands.run(
                _rules.vector_updates(),
                [slope, held, hyper, self.partial],
                (high - low, slope.shift, done, held.shift),
                (groups,),
                10.0 * (high - low),
            )
            done += groups
        return done

    def _matrix_updates(self, g, row, column, hyper) -> int:
        e, n, slices, done = self.engine, g.columns, 0, 0
        pieces = list(rows_of(e, g, max(1, self._most() // n)))
        cut = [(-(-(high - low) // _rules.ROWS), -(-(high - low) * n // _rules.PIECE)) for low, high, _ in pieces]
        partial = self._scratch(max(n * sum(s for s, _ in cut), sum(groups for _, groups in cut)))
        for (low, high, held), (count, _) in zip(pieces, cut):
            rows = row.span(low, high)
            e.commands.run(
                _rules.row_means(),
                [held, hyper, rows],
                (high - low, n, held.shift, rows.shift),
                _groups(high - low),
                4.0 * (high - low) * n,
            )
            e.commands.run(
                _gradients.column_sums("squares"),
                [held, hyper, partial],
                (high - low, 1, _rules.ROWS, n, n, held.shift, 0, 0, slices * n, 0),
                (-(-n // COLUMNS), count),
                4.0 * (high - low) * n,
            )
            slices += count
        e.commands.run(_rules.column_means(), [partial, hyper, column], (n, slices, g.rows), (-(-n // 256),))
        for number, (low, high) in enumerate(cuts(g.rows, self._most())):
            rows = row.span(low, high)
            e.commands.run(_kernels.add_up(), [rows, self.scalars], (high - low, rows.shift, 0, int(number > 0)), (1,))
        for (low, high, held), (_, groups) in zip(pieces, cut):
            rows = row.span(low, high)
            e.commands.run(
                _rules.matrix_updates(),
                [held, rows, column, self.scalars, hyper, partial],
                ((high - low) * n, held.shift, done, n, rows.shift, g.rows),
                (groups,),
                12.0 * (high - low) * n,
            )
            done += groups
        return done


def _each(count: int) -> tuple[int, int]:
    """Workgroups for one invocation per element."""
    return _groups(-(-count // 256))


def _groups(count: int) -> tuple[int, int]:
    return min(_rules.WIDE, count), -(-count // _rules.WIDE)
