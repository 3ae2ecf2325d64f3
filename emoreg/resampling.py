"""Intervals by the bootstrap, as one matrix product for all emotions; p and q beside them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm, t

Array = NDArray[np.float64]
RESAMPLES = 2000
SHARE = 0.95  # that an interval covers
NOISE = 1e-9  # of the largest value: what varies less is constant


@lru_cache(maxsize=8)
def weights(number: int, seed: int = 0) -> Array:
    """Share of each of `number` prompts in each resample, (resamples, prompts).

    ``weights(len(x)) @ x`` are the resampled means. The generator is its own; no other is touched.
    """
    drawn = np.random.default_rng(seed).multinomial(number, [1 / number] * number, RESAMPLES)
    found: Array = drawn / number
    found.setflags(write=False)
    return found


def interval(samples: NDArray[Any], number: int = 0) -> tuple[Array, Array]:
    """Percentile interval over resamples: (resamples, ...) -> low and high, (...).

    Args:
        samples: Of a mean, in each resample.
        number: Of values that were resampled: the percentiles lie further out, as far as Student's
            t does, since resamples of few values spread too little. 0 takes them as they are.
    """
    tail = float(norm.sf(_reach(number))) if number else (1 - SHARE) / 2
    low, high = np.quantile(samples, (tail, 1 - tail), axis=0)
    return low, high


def _reach(number: int) -> float:
    """Standard deviations of a resampled mean that an interval reaches to either side."""
    if number < 2:
        return np.inf
    return float(t.ppf((1 + SHARE) / 2, number - 1) * np.sqrt(number / (number - 1)))


def of_mean(value: float, samples: Array, number: int) -> dict[str, float]:
    """A mean, or a weighted one, with its percentile interval; samples are (resamples,)."""
    low, high = interval(samples, number)
    return {"value": float(value), "low": float(low), "high": float(high)}


def of_correlation(value: float, samples: Array, number: int) -> dict[str, float]:
    """A correlation with its interval: on Fisher's scale, from the spread over resamples.

    The percentiles themselves would not do: drawn again, noise that both sides share raises a
    correlation and noise of their own lowers it, so that they may leave the value itself out.

    Args:
        value: Of the whole sample.
        samples: Of each resample, (resamples,); those in which it is not defined are left out.
        number: Of values that were resampled.

    Returns:
        ``value``, ``low`` and ``high``; NaN where it is not defined.
    """
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or len(defined) < len(samples) / 2:
        return {"value": float(value), "low": np.nan, "high": np.nan}
    half = _reach(number) * _fisher(defined).std()
    low, high = np.tanh(_fisher(value) - half), np.tanh(_fisher(value) + half)
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}


def _fisher(correlations: Any) -> Array:
    found: Array = np.arctanh(np.clip(correlations, NOISE - 1, 1 - NOISE))
    return found


def correlation(a: Array, b: Array, share: Array | None = None) -> Array:
    """Correlation over the last axis: (..., n) -> (...); NaN where either side is constant.

    Args:
        a: (..., n) or (n,).
        b: The same.
        share: Weights over the last axis that sum to 1, (..., n); equal ones if None.
    """
    share = np.full(a.shape[-1:], 1 / a.shape[-1]) if share is None else share
    da, db = (x - (share * x).sum(-1, keepdims=True) for x in (a, b))
    va, vb = ((share * d * d).sum(-1) for d in (da, db))
    limits = (np.square(NOISE * np.abs(x).max(-1)) for x in (a, b))
    varies = np.logical_and(*(v > limit for v, limit in zip((va, vb), limits, strict=True)))
    found = np.full(np.shape(varies), np.nan)
    product = (share * da * db).sum(-1)
    np.divide(product, np.sqrt(va) * np.sqrt(vb), out=found, where=varies)
    return np.clip(found, -1, 1)


def paired_p(shift: Array) -> Array:
    """Two-sided p of the paired t-test that the mean shift is 0: (prompts, emotions) -> (emotions).

    A shift that is the same for every prompt has p 0, one that is 0 for every prompt has p 1.
    """
    number, mean = len(shift), shift.mean(0)
    error = shift.std(0, ddof=1) / np.sqrt(number) if number > 1 else np.zeros_like(mean)
    found = np.where(mean == 0, 1.0, 0.0) if number > 1 else np.ones_like(mean)
    size = np.divide(np.abs(mean), error, out=np.zeros_like(mean), where=error > 0)
    return np.where(error > 0, 2 * t.sf(size, max(number - 1, 1)), found)


def discoveries(p: Array) -> Array:
    """The q of Benjamini and Hochberg: the share of false finds among all of no larger p."""
    found: Array = false_discovery_control(p, method="bh")
    return found
