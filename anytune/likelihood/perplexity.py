"""Perplexity by llama.cpp's method, and the distance of two runs' distributions.

The text is cut into windows; of each the second half is scored, every token from those before it in the window.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write
from anytune.likelihood import baseline
from anytune.likelihood.windows import Forward, logsumexp, starting, windows

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

LEAST = -16.0  # log-probabilities of the base below this do not count towards the divergence


def perplexity(
    model: Model,
    text: str | None = None,
    adapter: Adapter | None = None,
    *,
    context: int | None = None,
    chunks: int | None = None,
    batch: int = 2048,
    save: str | os.PathLike | None = None,
    base: str | os.PathLike | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Perplexity of `text`, with its uncertainty.

    context: tokens of a window, 512 or what the model can take; the text must fill two. chunks: windows at most; batch:
    tokens run at once. save: keep every scored distribution in this file. base: compare with the distributions of such
    a file, whose tokens take the place of `text`. progress: called with (tokens done, of how many, perplexity so far).
    Returns facts. Raises UserError.
    """
    if base is not None:
        with baseline.Baseline(base) as file:
            if file.vocabulary != model.config.vocabulary:
                raise UserError(
                    f"{base} is from a model with {file.vocabulary} tokens, but this one has "
                    f"{model.config.vocabulary}: their distributions cannot be compared."
                )
            pieces = [starting(model, window) for window in file.windows[:chunks]]
            if len(pieces[0]) > model.config.context or max(map(max, pieces)) >= model.config.vocabulary:
                raise UserError(f"{base} has windows that this model cannot run.")
            return _compare(model, file, pieces, adapter, batch, progress)
    if text is None:
        raise UserError("There is no text to score: give one, or a file of distributions to compare with.")
    pieces = windows(model, text, context, chunks, least=2)
    losses: list[np.ndarray] = []
    try:
        with atomic_write(save) if save is not None else contextlib.nullcontext() as out:
            if out is not None:
                baseline.write_header(out, pieces, model.config.vocabulary)
            for logits, targets in _logits(model, pieces, adapter, batch):
                sums = logsumexp(logits)
                losses.append(sums - logits[np.arange(len(targets)), targets])
                if out is not None:
                    out.write(baseline.pack(logits, sums))
                _tell(progress, losses, pieces)
    except OSError as error:
        raise cannot_write(save or "", error) from None
    return _facts(np.concatenate(losses), pieces)


def _logits(
    model: Model, pieces: list[list[int]], adapter: Adapter | None, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(logits float32 [n, vocabulary], tokens that followed [n]) for all scored tokens, in order."""
    size = len(pieces[0])
    forward = Forward(model, size, adapter)
    step, first = max(1, batch // size), size // 2
    for lo in range(0, len(pieces), step):
        some = pieces[lo : lo + step]
        hidden = forward.hidden(some)
        rows = np.concatenate([np.arange(first, size - 1) + size * k for k in range(len(some))])
        following = np.concatenate([np.asarray(ids[first + 1 :]) for ids in some])
        for at, logits in forward.logits(hidden, rows):
            yield logits, following[at : at + len(logits)]


def _tell(
    progress: Callable[[int, int, float], None] | None, losses: list[np.ndarray], pieces: list[list[int]]
) -> None:
    if progress is not None:
        count = sum(map(len, losses))
        each = baseline.scored(len(pieces[0]))
        mean = sum(float(part.sum()) for part in losses) / count
        progress(count * len(pieces[0]) // each, len(pieces) * len(pieces[0]), float(np.exp(min(mean, 700.0))))


def mean_of(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error)."""
    spread = float(values.var()) / max(1, len(values) - 1)
    return float(values.mean()), float(np.sqrt(spread))


def _facts(losses: np.ndarray, pieces: list[list[int]]) -> dict[str, Any]:
    mean, deviation = mean_of(losses)
    value = float(np.exp(mean)) if mean < 700 else float("inf")
    return {
        "perplexity": value,
        "uncertainty": value * deviation,
        "loss": mean,
        "tokens": len(losses),
        "windows": len(pieces),
        "context": len(pieces[0]),
    }


def _compare(
    model: Model,
    file: baseline.Baseline,
    pieces: list[list[int]],
    adapter: Adapter | None,
    batch: int,
    progress: Callable[[int, int, float], None] | None,
) -> dict[str, Any]:
    losses, theirs, divergences, changes, same = [], [], [], [], []
    for logits, targets in _logits(model, pieces, adapter, batch):
        reference, rows = file.take(len(logits)), np.arange(len(targets))
        ours = logits - logsumexp(logits)[:, None].astype(np.float32)
        losses.append(-ours[rows, targets].astype(np.float64))
        theirs.append(-reference[rows, targets].astype(np.float64))
        terms = np.exp(reference) * (reference - ours)
        divergences.append(np.where(reference > LEAST, terms, 0).sum(axis=1, dtype=np.float64))
        changes.append(np.exp(-losses[-1]) - np.exp(-theirs[-1]))
        same.append(reference.argmax(axis=1) == ours.argmax(axis=1))
        _tell(progress, losses, pieces)
    loss, loss_base, kl, change, top = (np.concatenate(part) for part in (losses, theirs, divergences, changes, same))
    facts = _facts(loss, pieces)
    ratio, deviation = mean_of(loss - loss_base)
    agreement = float(top.mean())
    facts |= {
        "perplexity_base": float(np.exp(loss_base.mean())),
        "ratio": float(np.exp(ratio)),
        "ratio_uncertainty": float(np.exp(ratio)) * deviation,
        "kl_mean": mean_of(kl)[0],
        "kl_uncertainty": mean_of(kl)[1],
        "kl_max": float(kl.max()),
        "kl_percentiles": {str(p): float(np.percentile(kl, p)) for p in (50, 90, 99, 99.9)},
        "change_mean": float(change.mean()),
        "change_rms": float(np.sqrt((change**2).mean())),
        "same_top": agreement,
        "same_top_uncertainty": float(np.sqrt(agreement * (1 - agreement) / max(1, len(top) - 1))),
    }
    return facts
