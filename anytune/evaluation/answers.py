"""Answers of a model, with or without an adapter, some prompts at a time; and how likely it finds given answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.evaluation.kept import Kept
from anytune.generation.generate import Reply, decode
from anytune.likelihood.windows import Forward, logsumexp
from anytune.generation.sampling import Sampling

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

BATCH = 2048  # tokens run at once


def answer(
    model: Model,
    adapter: Adapter | None,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    batch: int = 8,
    kept: Kept | None = None,
    series: str = "base",
    progress: Callable[[int, int], None] | None = None,
) -> list[Reply]:
    """One Reply a prompt, in their order. prompts: token ids; batch: prompts decoded together, alike in length.

    A batch changes no greedy answer but by rounding. kept: where whole batches of `series` are looked up and kept.
    progress: (tokens done, at most). Raises UserError.
    """
    kept = kept or Kept()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Reply] = {}
    for lo in range(0, len(order), batch):
        some = order[lo : lo + batch]
        replies: list[Reply] = []
        known = kept.get(series, lo, len(some))
        if known is not None:
            found |= {i: Reply(list(prompts[i]), *row) for i, row in zip(some, known, strict=True)}
            if progress is not None:
                progress((lo + len(some)) * max_tokens, len(prompts) * max_tokens)
            continue
        room = min(max(len(prompts[i]) for i in some) + max_tokens, model.config.context)
        decoder = model.decoder(adapter=adapter, batch=len(some), context=room)
        for _ in decode(
            decoder, model.tokenizer, [prompts[i] for i in some], how, max_tokens=max_tokens, stop=stop, replies=replies
        ):
            if progress is not None:
                now = sum(max_tokens if reply.finish else len(reply.ids) for reply in replies)
                progress(lo * max_tokens + now, len(prompts) * max_tokens)
        found |= dict(zip(some, replies, strict=True))
        kept.put(series, lo, [[reply.ids, reply.text, reply.finish] for reply in replies])
        if progress is not None:
            progress((lo + len(some)) * max_tokens, len(prompts) * max_tokens)
    return [found[i] for i in range(len(prompts))]


def losses(
    model: Model,
    adapter: Adapter | None,
    examples: Sequence[tuple[list[int], list[bool]]],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n] summed loss in nats, int64 [n] tokens with loss) of examples (ids, loss) within one context."""
    forward = Forward(model, max(len(ids) for ids, _ in examples), adapter)
    sums, counts = np.zeros(len(examples)), np.array([sum(loss) for _, loss in examples])
    lo = 0
    while lo < len(examples):
        hi, held = lo, 0
        while hi < len(examples) and (hi == lo or held + len(examples[hi][0]) <= BATCH):
            held += len(examples[hi][0])
            hi += 1
        some = examples[lo:hi]
        starts = np.cumsum([0, *(len(ids) for ids, _ in some)])
        places = [np.flatnonzero(loss) for _, loss in some]
        rows = np.concatenate([start + at - 1 for start, at in zip(starts, places, strict=False)])
        targets = np.concatenate([np.asarray(ids)[at] for (ids, _), at in zip(some, places, strict=True)])
        owner = np.repeat(np.arange(lo, hi), counts[lo:hi])
        for at, logits in forward.logits(forward.hidden([ids for ids, _ in some]), rows):
            part = slice(at, at + len(logits))
            np.add.at(sums, owner[part], logsumexp(logits) - logits[np.arange(len(logits)), targets[part]])
        lo = hi
        if progress is not None:
            progress(hi, len(examples))
    return sums, counts
