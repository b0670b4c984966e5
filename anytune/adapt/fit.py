"""The sequential closed form: front to back, each product gets the low-rank change that brings student to teacher.

Teacher and student go through the layers side by side. x is the student's input of a product, as it is adapted so far;
what its outputs lack is the teacher's outputs less its own, and where they are added to the residual stream, what
earlier layers left over there as well: so errors are corrected by later layers, not propagated. Only sums over tokens
of one group of products are kept at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anytune.adapt.closed import Pair, ridge
from anytune.adapt.ranks import kind_of
from anytune.adapt.statistics import sums_for
from anytune.adapt.walk import Side, Walker

SMALL = 1e-2  # of a norm's mean square gain: columns with less get less than their share of what a stream lacks


@dataclass(frozen=True)
class Recipe:
    """rank: of every change, or on average where `ranks` {kind of product: rank} says more (ranks.py). ridge: λ, of the
    mean of G's diagonal. guard: weight of the guarded text's tokens, as if they were as many as the data's. prior:
    {tensor} -> what its change is drawn to, float32 [out, in], or None. bases: {tensor: (b, its left inverse)} where
    the outputs' directions are given, and inputs alone are solved for. relative: whether tokens count by what their
    errors are of the residual stream, where a product writes to it."""

    rank: int = 16
    ridge: float = 1e-2
    guard: float = 0.0
    prior: Callable[[str], np.ndarray] | None = None
    bases: Mapping[str, tuple[np.ndarray, np.ndarray | None]] | None = None
    relative: bool = False
    ranks: Mapping[str, int] | None = None

    def rank_of(self, tensor: str) -> int:
        return self.rank if self.ranks is None else self.ranks[kind_of(tensor)]

    @property
    def largest(self) -> int:
        return self.rank if self.ranks is None else max(self.ranks.values())


@dataclass
class Progress:
    """What is known after a layer: number, of how many; gap: |student's stream - teacher's| / |teacher's|; raised: the
    largest ridge that had to be taken; worth: of each tensor's ranks."""

    layer: int
    layers: int
    gap: float
    raised: float
    pairs: dict[str, Pair] = field(default_factory=dict)


@dataclass(frozen=True)
class Couple:
    """A student and its teacher over the same tokens: batch for batch as many rows."""

    student: Side
    teacher: Side


def fit(
    couples: Sequence[Couple],
    recipe: Recipe,
    *,
    guard: Side | None = None,
    done: Mapping[str, Pair] | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
    keep: Callable[..., None] | None = None,
) -> dict[str, Pair]:
    """The pairs {tensor: Pair} of the adapter that brings the students (sides of one adapter) to their teachers.

    guard: a side over text whose outputs should stay as they are, of the bare model. done: pairs of an earlier run, of
    whole layers from the first on: they are taken as they are. tell: called after each layer. keep: called with each
    group's place in Config.products(), its Equations before they are solved, and its priors. Raises UserError.
    """
    student = couples[0].student
    config, held, e = student.model.config, student.pairs, student.engine
    made = dict(done or {})
    sides = [side for couple in couples for side in (couple.student, couple.teacher)] + ([guard] if guard else [])
    for side in sides:
        side.start()
    for number in range(config.layers):
        for side in sides:
            side.enter(number)
        new: dict[str, Pair] = {}
        raised, there = 0.0, student.tensors(-1)[0] in made
        for product in range(len(student.layer.products)):
            if there:
                pairs = _again(couples, made, product)
            else:
                pairs, took = _product(couples, guard, recipe, product, keep)
                raised = max(raised, took)
                new |= pairs
            held.update({name: _lora_pair(e, pair) for name, pair in pairs.items() if len(pair.a)})
            for couple in couples:
                _take_up(couple.student, list(pairs.values()))
                couple.student.refresh()
        for side in sides:
            side.leave()
        made |= new
        tell(Progress(number, config.layers, gap(couples), raised, new))
    order = [name for names in config.products() for name in names]
    return {name: made[name] for name in order if name in made}  # a run that was taken up has them in another order


def _again(couples: Sequence[Couple], made: Mapping[str, Pair], product: int) -> dict[str, Pair]:
    """The pairs of a group that an earlier run made; students come as far as _product() would bring them."""
    for couple in couples:
        couple.student.before(product)
        for one in couple.student.walkers:
            _bare(couple.student, one, product)
    return {name: made[name] for name in couples[0].student.tensors(product) if name in made}


def _bare(student: Side, one: Walker, product: int) -> tuple[Any, tuple]:
    """(a product's input, its outputs as long as it has no pairs)."""
    x = one.run(product)
    one.bare = x, student.engine.linear(x, student.layer.products[product][0])
    return one.bare


def _take_up(student: Side, pairs: Sequence[Pair]) -> None:
    """Give each batch its outputs with the new pairs: the bare ones and the low-rank part, instead of the whole product
    again. Where outputs are no float32 arrays of the host the product does run again."""
    for one in student.walkers:
        (x, found), one.bare = one.bare, None
        if one.keep and isinstance(x, np.ndarray) and student.engine.lift(x) is x and len(pairs) == len(found):
            for y, pair in zip(found, pairs):
                if len(pair.a):
                    y += (x @ pair.a.T) @ pair.b.T
            one.kept.append(found)


def _lora_pair(e: Any, pair: Pair) -> Any:
    return e.lora_pair(e.vector(pair.a), e.vector(pair.b), 1.0)


def _product(
    couples: Sequence[Couple], guard: Side | None, recipe: Recipe, product: int, keep: Callable[..., None] | None
) -> tuple[dict[str, Pair], float]:
    """({tensor: Pair} of one group of the layer that all sides are in, the ridge if it had to be raised)."""
    student = couples[0].student
    names, la, config = student.tensors(product), student.engine.algebra, student.model.config
    group = student.layer.products[product][0]
    widths = [weight.out_features for weight in group.weights]
    own, held = sum(couple.student.tokens for couple in couples), guard.tokens if guard and recipe.guard else 0
    sums = sums_for(la, group.in_features, widths, own + held, not student.walkers[0].keep)
    counted = 0.0
    for couple in couples:  # each counts the same, however many tokens it has
        couple.student.before(product)
        couple.teacher.before(product)
        weight = 1.0 / (len(couples) * couple.student.tokens)
        for one, other in zip(couple.student.walkers, couple.teacher.walkers, strict=True):
            x, missing = _lacking(couple, one, other, product)
            if recipe.relative and couple.teacher.layer.written_by(product) is not None:
                share = _relative(couple.teacher, other)
                counted += weight * float((share * share).sum())
                x, missing = x * share, missing * share
            sums.add(x, missing, weight)
    if counted:
        sums.scale(1.0 / counted)
    priors = None if recipe.prior is None else [la.array(recipe.prior(name)) for name in names]
    if priors is not None:  # what it does already is of the data's tokens alone, not of the guarded ones
        sums.toward(la.concatenate(priors, 0))
    for walker in guard.walkers if held else ():
        sums.add(_rows(guard.engine.lift(walker.run(product)), walker), None, recipe.guard / held)
    equations = sums.equations()
    if keep is not None:
        keep(config.products().index(names), equations, priors)
    bases = None
    if recipe.bases is not None:
        bases = [recipe.bases.get(name, (np.zeros((width, 0), np.float32), None)) for name, width in zip(names, widths)]
    pairs = ridge(equations, widths, [recipe.rank_of(name) for name in names], recipe.ridge, priors, bases=bases)
    return dict(zip(names, pairs)), equations.ridge if equations.raised else 0.0


def _lacking(couple: Couple, one: Walker, other: Walker, product: int) -> tuple[Any, Any]:
    """(the student's inputs of a product [tokens, in], what its outputs lack [tokens, out]), of the rows that count."""
    student, teacher = couple.student, couple.teacher
    wanted = _outputs(teacher, other, product)
    x, found = _bare(student, one, product)
    la = student.engine.algebra
    own = la.concatenate([_rows(student.engine.lift(y), one) for y in found], 1)
    x, missing = _rows(student.engine.lift(x), one), wanted - own
    part = teacher.layer.written_by(product)
    if part is None:
        return x, missing
    left = _rows(teacher.engine.lift(other.stream), other) - _rows(student.engine.lift(one.stream), one)
    if part.post is None:
        return x, missing + left
    return _through_norm(la, x, missing, wanted, left, la.array(teacher.engine.host(part.post.gain)))


def _relative(teacher: Side, walker: Walker) -> Any:
    """[tokens, 1]: 1 / rms of the teacher's residual stream, of the rows that count: whatever reads the stream divides
    by it, so that an error weighs as much as it is of the stream."""
    stream = _rows(teacher.engine.lift(walker.stream), walker)
    return (1.0 / ((stream * stream).mean(1) + 1e-12) ** 0.5)[:, None]


def _through_norm(la: Any, x: Any, missing: Any, wanted: Any, left: Any, gain: Any) -> tuple[Any, Any]:
    """As _lacking(), where outputs y pass an RMSNorm with `gain` on their way to the stream: to first order, y is to
    move by left · rms(y) / gain, and a token counts by 1 / rms(y)²."""
    rms = ((wanted * wanted).mean(1) + 1e-12) ** 0.5
    back = gain / (gain * gain + SMALL * (gain * gain).mean())
    scale = (rms.mean() / rms)[:, None]
    return x * scale, (missing + left * rms[:, None] * back) * scale


def _outputs(side: Side, walker: Walker, product: int) -> Any:
    """A product's outputs side by side, of the rows that count."""
    parts = walker.run(product, after=True)
    return side.engine.algebra.concatenate([_rows(side.engine.lift(y), walker) for y in parts], 1)


def _rows(x: Any, walker: Walker) -> Any:
    rows = walker.batch.rows
    return x if len(rows) == len(x) else x[rows]


def gap(couples: Sequence[Couple]) -> float:
    """|student's stream - teacher's| / |teacher's| over the rows that count."""
    lost = size = 0.0
    for couple in couples:
        for one, other in zip(couple.student.walkers, couple.teacher.walkers, strict=True):
            own = _rows(couple.student.engine.lift(one.x), one)
            wanted = _rows(couple.teacher.engine.lift(other.x), other)
            lost += float(((own - wanted) ** 2).sum())
            size += float((wanted**2).sum())
    return (lost / max(size, 1e-300)) ** 0.5
