"""Types that fall while an adapter trains: how low, and when, before the loss leaves the unrounded model's.

An adapter is trained twice on the same micro-batches: on the model as its file has it, and on one whose matrices are
lowered from stage to stage, each time to the mix of least predicted cost at fewer bits a weight (curvature.py,
choose.py). The adapter goes on training and makes up for part of the rounding. A stage whose mean loss is further from
the first run's over the same steps than the tolerance is taken back: weights, adapter and optimizer return to the
stage's start, the stage runs again with the mix before it, and the next one goes half as far down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.gguf import BLOCKS
from anytune.gguf.encode import encode
from anytune.quantization.imatrix import Importance
from anytune.quantization.rewrite import available_threads, rows_of
from anytune.quantization.search.budget import bytes_of
from anytune.quantization.search.choose import Option, cheapest, choose
from anytune.quantization.search.curvature import Costs, curvature
from anytune.quantization.search.run import TYPES, candidates
from anytune.quantization.search.windows import importance_of

if TYPE_CHECKING:
    from anytune.model import Lora, Model
    from anytune.text import Dataset

START = 9.0  # bits a weight that the way down is counted from: above, rounding changes nothing that can be seen
WINDOWS = 8  # of the training data, on which costs are measured


@dataclass(frozen=True)
class Stage:
    """Steps first..last (from 1) on matrices of `formats`. loss, reference: means over them; kept: within tolerance."""

    first: int
    last: int
    bits: float
    formats: Mapping[str, str]
    loss: float
    reference: float
    kept: bool

    @property
    def apart(self) -> float:
        return abs(self.loss - self.reference) / self.reference

    def facts(self) -> dict[str, Any]:
        return {
            "first_step": self.first,
            "last_step": self.last,
            "bits_per_weight": self.bits,
            "loss": self.loss,
            "reference": self.reference,
            "apart": self.apart,
            "kept": self.kept,
            "types": dict(Counter(self.formats.values()).most_common()),
        }


@dataclass(frozen=True)
class Lowered:
    """stages: as they ran, those taken back too; formats: of the matrices at the end; adapter: trained on them."""

    stages: Sequence[Stage]
    formats: Mapping[str, str]
    adapter: Any
    importance: Importance
    losses: Sequence[float]
    reference: Sequence[float]
    tolerance: float

    def facts(self) -> dict[str, Any]:
        apart = [abs(a - b) / b for a, b in zip(self.losses, self.reference, strict=True)]
        whole = abs(sum(self.losses) - sum(self.reference)) / sum(self.reference)
        return {
            "tolerance": self.tolerance,
            "stages": [stage.facts() for stage in self.stages],
            "bits_per_weight": self.bits,
            "types": dict(Counter(self.formats.values()).most_common()),
            "mean_apart": whole,
            "most_apart_of_a_step": max(apart),
            "losses": list(self.losses),
            "reference_losses": list(self.reference),
        }

    @property
    def bits(self) -> float:
        return next(stage.bits for stage in reversed(self.stages) if stage.formats == self.formats)


def lower(
    model: Model,
    data: Dataset,
    lora: Lora,
    *,
    to: float = 4.5,
    stages: int = 6,
    every: int = 10,
    tolerance: float = 0.01,
    lr: float = 2e-4,
    ubatch: int = 512,
    types: Sequence[str] = TYPES,
    seed: int = 0,
    threads: int | None = None,
    say: Callable[[str, int, int], None] | None = None,
) -> Lowered:
    """Train an adapter while the model's matrices fall to `to` bits a weight in so many stages of `every` steps each.

    data: of this model's tokenizer; an optimizer step is one micro-batch of at most `ubatch` tokens. tolerance: of a
    stage's mean loss, relative. say: called with (what, done, of how many). The model is left with the last stage's
    matrices. Raises UserError, also for an engine whose weights cannot be replaced (NumPy's can).
    """
    if model.engine.name != "numpy":
        raise UserError(f"types can be lowered only with --device numpy, not with {model.engine.name}")
    work = _Run(model, data, lora, lr, ubatch, seed, (stages + 1) * every, say or (lambda *_: None))
    reference = work.train("unrounded", 0, work.steps)
    work.restart()
    mixes = _Mixes(model, work.windows(), types, threads or available_threads(), work.say)
    top = mixes.bits(mixes.own)
    low, formats, made, losses = min(top, START), dict(mixes.own), [], []
    drop = max(0.0, low - max(to, mixes.least)) / stages
    for stage in range(stages + 1):
        first, held = stage * every, work.held()
        wanted = max(to, mixes.least, low - drop) if stage else low
        trial = mixes.at(wanted) if stage else formats
        while True:
            mixes.put(trial)
            found = work.train("lowered", first, every)
            own = reference[first : first + every]
            kept = abs(sum(found) - sum(own)) <= tolerance * sum(own)
            made.append(
                Stage(
                    first + 1, first + every, mixes.bits(trial), trial, float(np.mean(found)), float(np.mean(own)), kept
                )
            )
            if kept or trial == formats:
                break
            work.back(held)
            trial, wanted, drop = formats, low, drop / 2
        formats, low = trial, wanted
        losses += found
    return Lowered(made, formats, work.trainee.adapter(), mixes.importance, losses, reference, tolerance)


class _Run:
    """One adapter under training, on micro-batches of a fixed order."""

    def __init__(
        self,
        model: Model,
        data: Dataset,
        lora: Lora,
        lr: float,
        ubatch: int,
        seed: int,
        steps: int,
        say: Callable[[str, int, int], None],
    ):
        from anytune.text import make_batch, pack

        self.model, self.lora, self.lr, self.ubatch, self.steps, self.say = model, lora, lr, ubatch, steps, say
        self.batches: list[Any] = []
        epoch = 0
        while len(self.batches) < steps:
            self.batches += [make_batch(data, some) for some in pack(data, ubatch, seed, epoch)]
            epoch += 1
        self.batches = [batch for batch in self.batches if batch.loss_tokens][:steps]
        if len(self.batches) < steps:
            raise UserError("the data has too few examples with loss for so many steps")
        self.restart()

    def restart(self) -> None:
        self.trainee = self.model.trainee(self.lora, ubatch=self.ubatch)

    def train(self, what: str, first: int, count: int) -> list[float]:
        """Losses of steps first+1..first+count, in nats a token."""
        losses = []
        for at in range(first, first + count):
            batch = self.batches[at]
            total = float(self.trainee.accumulate(batch, 1.0 / batch.loss_tokens, at + 1, 0))
            self.trainee.update(self.lr, at + 1)
            losses.append(total / batch.loss_tokens)
            self.say(what, at + 1, self.steps)
        return losses

    def held(self) -> dict[str, np.ndarray]:
        return {name: np.array(vector) for name, vector in self.trainee.state().items()}

    def back(self, held: dict[str, np.ndarray]) -> None:
        self.trainee.load_state(held)

    def windows(self) -> list[list[int]]:
        """Windows of one length from the first micro-batches' tokens."""
        ids = np.concatenate([batch.ids for batch in self.batches])
        size = min(256, self.ubatch, len(ids), self.model.config.context)
        return [ids[lo : lo + size].tolist() for lo in range(0, len(ids) - size + 1, size)][:WINDOWS]


class _Mixes:
    """A model's matrices in any mix: which is best at some bits a weight, and put in place."""

    def __init__(
        self,
        model: Model,
        windows: Sequence[Sequence[int]],
        types: Sequence[str],
        threads: int,
        say: Callable[[str, int, int], None],
    ):
        self.model, self.tensors = model, model.gguf.tensors
        kinds = candidates(model, types)
        self.own = {name: self.tensors[name].type.name for name in kinds}
        self.importance = importance_of(model, windows, lambda done, total: say("importance", done, total))
        costs: Costs = curvature(
            model,
            windows,
            kinds,
            importance=self.importance,
            threads=threads,
            progress=lambda done, total: say("costs", done, total),
        )
        self.options = {
            name: [
                Option(self.own[name], bytes_of(self.tensors[name], self.own[name]), 0.0),
                *(Option(kind, bytes_of(self.tensors[name], kind), costs[name][kind]) for kind in some),
            ]
            for name, some in kinds.items()
        }
        self.weights = sum(t.n_elements for t in self.tensors.values())
        self.others = sum(t.nbytes for name, t in self.tensors.items() if name not in kinds)
        self.least = 8 * (cheapest(self.options) + self.others) / self.weights
        self.now = dict(self.own)

    def bits(self, formats: Mapping[str, str]) -> float:
        """Bits a weight of the whole model."""
        return 8 * (self.others + sum(bytes_of(self.tensors[n], kind) for n, kind in formats.items())) / self.weights

    def at(self, bits: float) -> dict[str, str]:
        """The mix of least predicted cost at no more than so many bits a weight."""
        return choose(self.options, max(cheapest(self.options), int(bits * self.weights / 8) - self.others))

    def put(self, formats: Mapping[str, str]) -> None:
        """Round the file's matrices to `formats`; those that have it already stay."""
        for name, kind in formats.items():
            if self.now[name] != kind:
                t = self.tensors[name]
                columns = self.importance.of(name, t.shape)
                exact = rows_of(self.model.gguf, name, 0, t.rows)
                blocks = (
                    self.model.gguf.blocks(name)
                    if kind == self.own[name]
                    else encode(exact, kind, None if columns is None else np.ascontiguousarray(columns[0]))
                )
                self.model.weights.matrices[name].replace(BLOCKS[kind], np.array(blocks).reshape(-1))
                self.now[name] = kind
