"""Optimizer steps on a user's own data, as `anytune train` would take them: packed, masked, in its order."""

from __future__ import annotations

import itertools
import time
from typing import Any

from anytune.errors import UserError

from .cases import ROUND, Settings


class FileTraining:
    """steps: how many a round has, so that it lasts ROUND seconds; found by warm()."""

    def __init__(self, model, settings: Settings):
        import anytune
        from anytune.text import build_dataset
        from anytune.text.packing import MicroBatch
        from anytune.train.steps import Steps
        from anytune.train.settings import TrainSettings

        sizes = {"context": settings.context, "ubatch": settings.ubatch or 512, "batch": settings.batch}
        data = build_dataset(settings.train_file, model.tokenizer, model.template, context=settings.context)
        if not len(data):
            raise UserError(f"{settings.train_file} has no examples.")
        longest = int(data.lengths.max())
        if longest > model.config.context:
            raise UserError(
                f"The longest example has {longest} tokens and the model's context is {model.config.context}: lower -c."
            )
        chosen, _ = TrainSettings(**sizes, epochs=settings.epochs).fitted(longest)
        self.order_of_steps, self.data, self.micro = Steps(data, chosen), data, MicroBatch
        self.trainee = model.trainee(
            anytune.Lora(rank=settings.rank, alpha=2.0 * settings.rank), ubatch=chosen.ubatch, context=longest
        )
        self.order = itertools.cycle(self.order_of_steps.steps_of(0))
        self.steps, self.step, epoch = 1, 0, self.order_of_steps.epoch_steps[0]
        self.tokens_a_step = int(data.offsets[-1]) / epoch
        self.facts = {
            "count": self.tokens_a_step,
            "training": {
                "examples": len(data),
                "tokens_per_epoch": int(data.offsets[-1]),
                "steps_per_epoch": epoch,
                "epochs": settings.epochs,
            },
        }

    @property
    def estimate(self) -> Any:
        """The planner's Estimate (model/plan.py)."""
        return self.trainee.estimate

    def take(self) -> tuple[int, Any]:
        """One step -> (its tokens, what becomes its gradient's norm)."""
        self.step += 1
        batches = [self.micro.of([self.data.example(i) for i in indexes]) for indexes in next(self.order)]
        learned = sum(batch.loss_tokens for batch in batches)
        for number, batch in enumerate(batches):
            self.trainee.accumulate(batch, 1 / learned, self.step, number)
        return sum(len(batch.ids) for batch in batches), self.trainee.update(1e-5, self.step)

    def warm(self) -> None:
        float(self.take()[1])
        start = time.perf_counter()
        float(self.take()[1])
        self.steps = max(1, min(1000, round(ROUND / max(time.perf_counter() - start, 1e-6))))

    def round(self) -> float:
        """Seconds a step of the mean number of tokens."""
        tokens, start = 0, time.perf_counter()
        for _ in range(self.steps):
            more, norm = self.take()
            tokens += more
        float(norm)  # the device is done
        return (time.perf_counter() - start) / tokens * self.tokens_a_step
