"""Gradient steps on the teacher's distributions, from a closed form on: AdamW on mean KL(teacher || student)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.answers import continued
from anytune.adapt.batching import pack
from anytune.adapt.data import text_examples
from anytune.adapt.job import GUARDED, WINDOW, Settings, Task, Teacher, ordinary_text
from anytune.adapt.measure import PIECE
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.likelihood.windows import logsumexp
from anytune.model.stack import backward, embed, finish, finish_backward, forward

if TYPE_CHECKING:
    from anytune.adapt.data import Example
    from anytune.model import Model

RATE, WARMUP, EACH = 1.5e-3, 3, 4  # peak learning rate, warm-up steps, examples per step
BETA1, BETA2, CLIP = 0.9, 0.99, 1.0
GUARD_WINDOW = 64  # tokens of ordinary text in a step
NOTHING = 1e-9  # of a change's largest singular value
SCALE = 2.0  # of the low-rank path: what rates for adapters are known for
Part = tuple[Callable[[int, int], np.ndarray], int, float]  # the teacher's distributions of rows a…b, rows, weight


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
    guard: float = 0.0,
) -> tuple[Adapter, dict[str, Any]]:
    """(the adapter after `steps` of AdamW, {steps, cpu, seconds}), from `start` on, or from a fresh one of `rank`.

    each: examples of a step. seconds: CPU seconds after which it ends, with the rate falling by them. The rate rises
    for WARMUP steps and falls to a tenth as a cosine. guard: weight of KL(bare model || student) on a window of the
    guarded text in each step, beside that of the examples.
    """
    from anytune.model import Lora

    began, started = time.process_time(), time.perf_counter()
    random = np.random.default_rng(seed)
    groups = [list(task.examples[at : at + each]) for at in range(0, len(task.examples), each)]
    windows = guard_windows(model, settings)[:steps] if guard else []
    context = max(len(e.ids) for e in [*task.examples, *windows])
    ubatch = max(sum(len(e.ids) for e in group) for group in groups) + max((len(e.ids) for e in windows), default=0)
    lora = Lora(rank=rank, alpha=SCALE * rank, seed=seed)
    trainee = model.trainee(lora, adapter=None if start is None else balanced(start), ubatch=ubatch, context=context)
    teacher, order, step = _Teacher(task.teacher, groups), [], 0
    bare = _Teacher(Teacher(model), [[window] for window in windows]) if windows else None
    for step in range(1, steps + 1):
        order = order or list(random.permutation(len(groups)))
        number = order.pop()
        parts, some = [teacher.part(number, 1.0)], list(groups[number])
        if bare is not None:
            parts.append(bare.part(step % len(windows), guard))
            some.append(windows[step % len(windows)])
        batch = pack([some], False, False)[0][0]
        loss = _accumulate(trainee, batch, parts)
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


def prompt_steps(
    model: Model, task: Task, start: Adapter, steps: int, settings: Settings, *, seed: int = 42, guard: float = 0.0
) -> tuple[Adapter, dict[str, Any]]:
    """gradient_steps() from a closed form on, over answers that the teacher draws to the data's requests.

    On the data's own tokens the closed form leaves a sixth of the KL that it leaves on others (docs/LOG.md): they have
    little left to teach.
    """
    began, started = time.process_time(), time.perf_counter()
    task = dataclasses.replace(task, examples=continued(task.teacher, task.examples, seed, settings.tell))
    made, took = gradient_steps(model, task, start, steps, settings, seed=seed, guard=guard)
    return made, {**took, "cpu": time.process_time() - began, "seconds": time.perf_counter() - started}


def balanced(adapter: Adapter) -> Adapter:
    """The same changes with both factors of a size, so that one rate suits both; the scale is SCALE."""
    tensors = {}
    for name, (a, b) in adapter.tensors.items():
        left, inner = np.linalg.qr(b.astype(np.float64) * (adapter.scale / SCALE))
        right, outer = np.linalg.qr(a.T.astype(np.float64))
        u, s, v = np.linalg.svd(inner @ outer.T, full_matrices=False)
        root = np.sqrt(np.where(s > NOTHING * s[0], s, 0))  # ranks that a pair does not have stay zero
        spare = (0, len(a) - len(root))  # a tensor narrower than the rank
        tensors[name] = (
            np.pad((root[:, None] * v @ right.T).astype(np.float32), (spare, (0, 0))),
            np.pad((left @ u * root).astype(np.float32), ((0, 0), spare)),
        )
    return dataclasses.replace(adapter, tensors=tensors, alpha=SCALE * adapter.rank, rslora=False)


class _Teacher:
    """What the teacher says at the scored rows of each group of examples: hidden states, 4 bytes a number, are computed
    once for all, and distributions made of them when they are needed."""

    def __init__(self, teacher: Teacher, groups: Sequence[Sequence[Example]]):
        found, front = pack(groups, True, teacher.shares)
        self.side = Side(teacher.model, found, front, adapter=teacher.adapter)
        self.side.through()
        e = self.side.engine
        self.hidden = [np.array(e.host(self.side.hidden(walker)), np.float32) for walker in self.side.walkers]
        self.side.first, self.side.walkers = None, []

    def part(self, number: int, weight: float) -> Part:
        """A group's share of a step's loss."""
        hidden, e, head = self.hidden[number], self.side.engine, self.side.head()

        def rows(low: int, high: int) -> np.ndarray:
            logits = np.asarray(e.host(e.logits(e.lower(hidden[low:high]), head)), np.float32)
            return np.exp(logits - logsumexp(logits)[:, None].astype(np.float32))

        return rows, len(hidden), weight


def guard_windows(model: Model, settings: Settings) -> list[Example]:
    """Short windows of the text that a fit holds to."""
    text = ordinary_text() if settings.guard_text is None else settings.guard_text
    return text_examples(model, text, GUARD_WINDOW, most=GUARDED * WINDOW // GUARD_WINDOW)


def _accumulate(trainee: Any, batch: Any, parts: Sequence[Part]) -> float:
    """Add the gradients of the weighted sum of mean KL(teacher || student) over each part of a batch's scored rows ->
    that sum. parts: (rows of the teacher's distributions, how many rows, weight), in the rows' order."""
    e, weights = trainee.engine, trainee.weights
    e.training = True
    e.begin(batch.starts, trainee.ubatch, (0, 0, 0))
    positions, rows = e.integers(batch.positions), e.integers(batch.scored)
    x = embed(e, weights, trainee.layers, e.integers(batch.ids), positions)
    top, tape = forward(e, trainee.layers, x, positions, rows, trainee.lowest, trainee.keep)
    h = finish(e, weights, top)
    loss, dh = _soft_loss(e, h, trainee.head, parts)
    dx = finish_backward(e, weights, dh, top)
    del h, dh, top
    backward(e, trainee.layers, dx, positions, rows, trainee.lowest, trainee.keep, tape)
    e.settle()
    return loss


def _soft_loss(e: Any, h: Any, head: Any, parts: Sequence[Part]) -> tuple[float, Any]:
    """(the weighted sum of the parts' mean KL to the head's distributions, its gradient by h [scored, width])."""
    step = max(1, PIECE // (4 * head.width))
    loss, gradients, start = 0.0, [], 0
    for wanted, count, weight in parts:
        for low in range(0, count, step):
            high = min(low + step, count)
            rows = e.gather(h, e.integers(np.arange(start + low, start + high, dtype=np.int32)))
            logits = np.asarray(e.host(e.logits(rows, head)), np.float32)
            own = logits - logsumexp(logits)[:, None].astype(np.float32)
            chances = wanted(low, high)
            terms = np.where(chances > 0, chances * (np.log(np.maximum(chances, 1e-38)) - own), 0)
            loss += weight * float(terms.sum(dtype=np.float64)) / count
            change = (np.exp(own) - chances) * np.float32(weight / count)
            if head.cap:
                change *= 1 - np.square(logits / np.float32(head.cap))
            gradients.append(np.array(e.host(e.linear_backward((e.lower(change),), rows, head))))
        start += count
    return loss, e.lower(np.concatenate(gradients))
