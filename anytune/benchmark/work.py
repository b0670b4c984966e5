"""What one round of a test does, on random tokens: what is read does not change how long it takes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from anytune.errors import UserError

from .cases import ROUND, Settings, Test
from .file_training import FileTraining


def work(model, test: Test, settings: Settings):
    """The test's work on a model. Raises UserError for one that the model cannot do."""
    if test.kind == "file":
        return FileTraining(model, settings)
    rank, ubatch = settings.rank, settings.ubatch
    if test.context > model.config.context:
        raise UserError(
            f"{test.name} needs a context of {test.context} tokens and the model has "
            f"{model.config.context}: ask for fewer tokens."
        )
    return Training(model, test, rank, ubatch) if test.kind == "train" else Decoding(model, test)


class Training:
    """Whole optimizer steps: forward, backward, clipping, AdamW. LoRA on all linears, the second half of each example
    with loss.

    steps: how many a round has, so that it lasts ROUND seconds; found by warm().
    """

    def __init__(self, model, test: Test, rank: int = 16, ubatch: int | None = None):
        import anytune
        from anytune.text.packing import MicroBatch

        self.engine, self.steps, self.step, self.loss = model.engine, 1, 0, float("nan")
        most = min(ubatch or test.count, test.count)
        if most < test.tokens:
            raise UserError(
                f"{test.name} has examples of {test.tokens} tokens and -ub {most} computes fewer at once: raise -ub."
            )
        self.trainee = model.trainee(anytune.Lora(rank=rank, alpha=2.0 * rank), ubatch=most, context=test.tokens)
        ids = np.random.default_rng(1).integers(0, model.config.vocabulary, (test.examples, test.tokens))
        rows, at = [(row, np.arange(test.tokens) >= test.tokens // 2) for row in ids], most // test.tokens
        self.batches = [MicroBatch.of(rows[low : low + at]) for low in range(0, len(rows), at)]
        self.loss_tokens = sum(batch.loss_tokens for batch in self.batches)

    @property
    def estimate(self):
        """The planner's Estimate (model/plan.py)."""
        return self.trainee.estimate

    def take(self) -> Any:
        """One step -> what becomes its gradient's norm."""
        self.step += 1
        sums = [
            self.trainee.accumulate(batch, 1 / self.loss_tokens, self.step, number)
            for number, batch in enumerate(self.batches)
        ]
        norm = self.trainee.update(1e-4, self.step)
        self.loss = sums, norm
        return norm

    def mean_loss(self) -> float:
        """Nats a token at the last step."""
        return sum(map(float, self.loss[0])) / self.loss_tokens

    def warm(self) -> None:
        """A first step, in which engines record and tune, and one to see how long steps take."""
        float(self.take())
        start = time.perf_counter()
        float(self.take())
        self.steps = max(1, min(1000, round(ROUND / max(time.perf_counter() - start, 1e-6))))

    def round(self) -> float:
        """Seconds a step."""
        start = time.perf_counter()
        for _ in range(self.steps):
            norm = self.take()
        float(norm)  # the device is done
        return (time.perf_counter() - start) / self.steps


class Decoding:
    """Tokens on top of `depth` that are in the cache: all of a prompt at once (in the decoder's chunks), or one after
    the other for every sequence, with the logits of each on the host."""

    estimate = None

    def __init__(self, model, test: Test):
        self.test, random = test, np.random.default_rng(1)
        self.decoder = model.decoder(batch=test.examples, context=test.context)
        self.ids = random.integers(0, model.config.vocabulary, (test.examples, test.context)).tolist()
        self.started, self.times = 0.0, []  # of the last round, for generation_stats
        if test.depth:
            self.decoder.feed([ids[: test.depth] for ids in self.ids])

    def warm(self) -> None:
        self.round()

    def round(self) -> float:
        """Seconds."""
        depth = self.test.depth
        for slot in range(self.test.examples):
            self.decoder.truncate(slot, depth)
        self.times = []
        self.started = time.perf_counter()
        if self.test.kind == "prompt":
            self.decoder.feed([ids[depth:] for ids in self.ids])
            self.times.append(time.perf_counter())
        else:
            for at in range(depth, self.test.context):
                self.decoder.feed([[ids[at]] for ids in self.ids])
                self.times.append(time.perf_counter())
        return self.times[-1] - self.started
