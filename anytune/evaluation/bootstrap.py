"""Bootstrap intervals (Efron 1979): a figure recomputed on samples, with replacement, of what it was computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 2000


def resampled(count: int, seed: int, samples: int = SAMPLES) -> np.ndarray:
    """int64 [samples, count]: how often each of `count` items is drawn. Compared figures share it: pairs stay pairs."""
    drawn = np.random.default_rng([seed, count]).integers(0, count, (samples, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn])


def means(values: Sequence[float] | np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean on each sample: float64 [samples]; items that are NaN have no part."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return draws @ np.where(known, values, 0.0) / (draws @ known.astype(np.float64))


def interval(value: float, samples: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high): the middle 95 % of the samples, those that could not be computed left out."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return value, float("nan"), float("nan")
    low, high = np.percentile(finite, (2.5, 97.5))
    return float(value), float(low), float(high)


def normal_interval(value: float, samples: np.ndarray, least: float = -np.inf) -> tuple[float, float, float]:
    """(value, low, high) by the samples' standard deviation. For distances, which every resampling makes larger, so
    that the samples need not surround the value. least: what the figure cannot fall below."""
    finite = samples[np.isfinite(samples)]
    half = 1.959964 * float(finite.std(ddof=1)) if finite.size > 1 else float("nan")
    low = value - half
    return float(value), max(least, low) if np.isfinite(low) else low, value + half


def mean_interval(values: Sequence[float] | np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    """A mean with its interval; NaN where no item is known."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return interval(float(known.mean()) if known.size else float("nan"), means(values, draws))


def figure(of: Callable[[np.ndarray], np.ndarray], draws: np.ndarray) -> tuple[float, float, float]:
    """A figure that is a function of how often each item counts: of(weights [samples, count]) -> [samples]."""
    return interval(float(of(np.ones((1, draws.shape[1]), draws.dtype))[0]), of(draws))
