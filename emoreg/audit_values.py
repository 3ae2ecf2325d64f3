"""Numbers with intervals: the same texts and prompts are drawn again for base and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emoreg.resampling import interval, weights

RESAMPLES = 400
Array = NDArray[np.float64]
Scores = tuple[Array, Array]  # of texts with the emotion, and without it


@dataclass(frozen=True)
class Value:
    """One number with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rows: Array, number: int) -> Value:
        """From the whole sample and its resamples, (1 + resamples,).

        Args:
            rows: One number each.
            number: Of what was resampled, the fewest of it.
        """
        low, high = interval(rows[1:], number)
        return cls(float(rows[0]), float(low), float(high))


@lru_cache(maxsize=32)
def drawn(number: int, seed: int) -> Array:
    """Equal weights, then those of each resample, (1 + resamples, number)."""
    return np.concatenate([np.full((1, number), 1 / number), weights(number, seed)[:RESAMPLES]])


def auroc(scores: Sequence[Scores]) -> Value:
    """Mean over kinds of texts, resampled."""
    rows, fewest = [], min(len(x) for pair in scores for x in pair)
    for own, others in scores:
        wins = (own[:, None] > others) + 0.5 * (own[:, None] == others)
        rows.append(np.einsum("ri,ij,rj->r", drawn(len(own), 5), wins, drawn(len(others), 6)))
    return Value.of(np.mean(rows, 0), fewest)


def kept(before: Sequence[Scores], after: Sequence[Scores]) -> Value:
    """Contrast after in units of that before, mean over kinds: 1 is all kept, 0 is none."""
    rows, fewest = [], min(len(x) for pair in before for x in pair)
    for was, now in zip(before, after, strict=True):
        own, others = drawn(len(was[0]), 5), drawn(len(was[1]), 6)
        change = own @ (now[0] - was[0]) - others @ (now[1] - was[1])
        rows.append(1 + change / (was[0].mean() - was[1].mean()))
    return Value.of(np.mean(rows, 0), fewest)
