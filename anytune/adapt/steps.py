"""Gradient steps on the teacher's distributions, from a closed form on: AdamW on mean KL(teacher || student)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.data import batches
from anytune.adapt.measure import PIECE
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.likelihood.windows import log_sums
from anytune.model.stack import backward, forward

if TYPE_CHECKING:
    from anytune.adapt.job import Settings, Task
    from anytune.model import Model

RATE, WARMUP, EACH = 1e-3, 3, 4  # learning rate at its highest, steps in which it rises, examples of a step
BETA1, BETA2, CLIP = 0.9, 0.99, 1.0
SCALE = 2.0  # of the low-rank path: what rates for adapters are known for


def gradient_steps(
    model: Model,
    task: Task,
    start: Adapter | None,
    steps: int,
    settings: Settings,
    *,
    rank: int = 16,
    rate: float = RATE,
    each: int = EACH,
    seed: int = 42,
    seconds: float | None = None,
) -> tuple[Adapter, dict[str, Any]]:
    """(the adapter after `steps` of AdamW, {steps, cpu, seconds}), from `start` on, or from a fresh one of `rank`.

    each: examples of a step. seconds: CPU seconds after which it ends, with the rate falling by them. The rate rises
    for WARMUP steps and falls to a tenth as a cosine.
    """
    from anytune.model import Lora

    began, started = time.process_time(), time.perf_counter()
    random = np.random.default_rng(seed)
    groups = [list(task.examples[at : at + each]) for at in range(0, len(task.examples), each)]
    context = max(len(e.ids) for e in task.examples)
    ubatch = max(sum(len(e.ids) for e in group) for group in groups)
    lora = Lora(rank=rank, alpha=SCALE * rank, seed=seed)
    trainee = model.trainee(lora, adapter=None if start is None else balanced(start), ubatch=ubatch, context=context)
    teacher, order, step = _Teacher(task, groups), [], 0
    for step in range(1, steps + 1):
        order = order or list(random.permutation(len(groups)))
        number = order.pop()
        loss = _accumulate(trainee, batches(groups[number], 1 << 30, False, False)[0][0], teacher.distributions(number))
        done = step / steps if seconds is None else min(1.0, (time.process_time() - began) / seconds)
        lr = rate * min(1.0, step / WARMUP) * (0.45 * (1 + math.cos(math.pi * done)) + 0.1)
        trainee.update(lr, step, beta1=BETA1, beta2=BETA2, weight_decay=0.0, max_grad_norm=CLIP)
        settings.tell("gradient steps", step, steps, f"KL {loss:.4f}")
        if seconds is not None and time.process_time() - began > seconds:
            break
    made = trainee.adapter()
    model.engine.row_padding = 0
    template = start.chat_template if start is not None else made.chat_template
    return (
        dataclasses.replace(made, chat_template=template),
        {"steps": step, "cpu": time.process_time() - began, "seconds": time.perf_counter() - started},
    )


def balanced(adapter: Adapter) -> Adapter:
    """The same changes with both factors of a size, so that one rate suits both; the scale is SCALE."""
    tensors = {}
    for name, (a, b) in adapter.tensors.items():
        left, inner = np.linalg.qr(b.astype(np.float64) * (adapter.scale / SCALE))
        right, outer = np.linalg.qr(a.T.astype(np.float64))
        u, s, v = np.linalg.svd(inner @ outer.T)
        root = np.sqrt(s)
        tensors[name] = ((root[:, None] * v @ right.T).astype(np.float32), (left @ u * root).astype(np.float32))
    return dataclasses.replace(adapter, tensors=tensors, alpha=SCALE * adapter.rank, rslora=False)


class _Teacher:
    """What the teacher says at the scored rows of each group of examples: its hidden states are kept, 4 bytes a number,
    and its distributions are made of them when they are needed."""

    def __init__(self, task: Task, groups: Sequence[Sequence[Any]]):
        self.task, self.groups = task, groups
        self.hidden: dict[int, tuple[Side, np.ndarray]] = {}

    def distributions(self, number: int):
        if number not in self.hidden:
            teacher = self.task.teacher
            share = bool(teacher.context)
            found, front = batches(self.groups[number], 1 << 30, True, share)
            side = Side(teacher.model, found, front, adapter=teacher.adapter)
            side.through()
            self.hidden[number] = side, np.array(side.engine.host(side.hidden(side.walkers[0])), np.float32)
            for walker in [side.first, *side.walkers]:
                if walker is not None:
                    walker.x = walker.shared = walker.caches = None
        side, hidden = self.hidden[number]
        e, head = side.engine, side.head()

        def rows(low: int, high: int) -> np.ndarray:
            logits = np.asarray(e.host(e.logits(e.lower(hidden[low:high]), head)), np.float32)
            return np.exp(logits - log_sums(logits)[:, None].astype(np.float32))

        return rows


def _accumulate(trainee: Any, batch: Any, wanted: Any) -> float:
    """Add the gradients of mean KL(teacher || student) over a batch's scored rows -> that mean."""
    e, config, weights = trainee.engine, trainee.config, trainee.weights
    e.training = True
    e.begin(batch.starts, trainee.ubatch, (0, 0, 0))
    positions, rows = e.integers(batch.positions), e.integers(batch.scored)
    x = e.embed(e.integers(batch.ids), weights.embedding, weights.embedding_scale)
    top, tape = forward(e, trainee.layers, x, positions, rows, trainee.lowest, trainee.keep)
    h = e.rms_norm(top, weights.output_norm, config.eps)
    loss, dh = _soft_loss(e, h, trainee.head, len(batch.scored), wanted)
    dx = e.rms_norm_backward(dh, top, weights.output_norm, config.eps)
    del h, dh, top
    backward(e, trainee.layers, dx, positions, rows, trainee.lowest, trainee.keep, tape)
    e.settle()
    return loss


def _soft_loss(e: Any, h: Any, head: Any, count: int, wanted: Any) -> tuple[float, Any]:
    """(mean KL of `wanted` distributions to the head's, its gradient by h [count, width])."""
    step = max(1, PIECE // (4 * head.width))
    loss, parts = 0.0, []
    for low in range(0, count, step):
        high = min(low + step, count)
        part = e.gather(h, e.integers(np.arange(low, high, dtype=np.int32)))
        logits = np.asarray(e.host(e.logits(part, head)), np.float32)
        own = logits - log_sums(logits)[:, None].astype(np.float32)
        chances = wanted(low, high)
        terms = np.where(chances > 0, chances * (np.log(np.maximum(chances, 1e-38)) - own), 0)
        loss += float(terms.sum(dtype=np.float64))
        change = (np.exp(own) - chances) / np.float32(count)
        parts.append(np.array(e.host(e.linear_backward((e.lower(change),), part, head))))
    return loss / count, e.lower(np.concatenate(parts))
