"""Drift: how far readings on the same prompts moved, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoreg.resampling import Array, correlation, discoveries, interval, paired_p, weights
from emoreg.snapshot import Snapshot

Q = 0.05  # share of false finds that is accepted among the emotions that are said to have moved
LEAST = 0.05  # σ: weights rounded to bfloat16 move a reading by up to a fifth of it


@dataclass(frozen=True)
class Drift:
    """Movement of one set of readings from base to now, in σ."""

    emotions: tuple[str, ...]
    base: Array  # (emotions,), mean reading of the base
    now: Array  # (emotions,)
    low: Array  # (emotions,), 95 % bootstrap interval of the drift over prompts
    high: Array
    p: Array  # (emotions,), paired t-test over prompts
    q: Array  # after correction for the number of emotions

    @property
    def mean(self) -> Array:
        """Drift, (emotions,)."""
        return self.now - self.base

    @property
    def structure(self) -> float:
        """Correlation of the emotions' profile, base to now; NaN for fewer than three emotions."""
        if len(self.emotions) < 3:
            return float("nan")
        return float(correlation(self.base, self.now))

    @property
    def rose(self) -> list[str]:
        """Emotions whose rise is more than chance and rounding, largest first."""
        return [e for e, mean, low, _ in self._moved() if mean > 0 and low > 0]

    @property
    def fell(self) -> list[str]:
        """Emotions whose fall is more than chance and rounding, largest first."""
        return [e for e, mean, _, high in self._moved() if mean < 0 and high < 0][::-1]

    def _moved(self) -> list[tuple[str, float, float, float]]:
        sizes = zip(self.emotions, self.q, np.abs(self.mean), strict=True)
        found = {e for e, q, size in sizes if q <= Q and size >= LEAST}
        return [row for row in self.sorted() if row[0] in found]

    def sorted(self) -> list[tuple[str, float, float, float]]:
        """Emotion, drift, low, high: risers first."""
        columns = (self.mean.tolist(), self.low.tolist(), self.high.tolist())
        return sorted(zip(self.emotions, *columns, strict=True), key=lambda row: -row[1])


def drift(base: NDArray[Any], now: NDArray[Any], emotions: Sequence[str], seed: int = 0) -> Drift:
    """Drift of each emotion, with the 95 % bootstrap over prompts (paired).

    Args:
        base: Readings of the base, (prompts, emotions).
        now: Readings of the current model on the same prompts, (prompts, emotions).
        emotions: Names of the columns.
        seed: Of the bootstrap, which has its own generator.
    """
    before, after = (np.asarray(x, dtype=np.float64) for x in (base, now))
    low, high = interval(weights(len(before), seed) @ (after - before), len(before))
    p = paired_p(after - before)
    return Drift(tuple(emotions), before.mean(0), after.mean(0), low, high, p, discoveries(p))


@dataclass(frozen=True)
class Move:
    """From the base to a model, at every place that both were read at, and since earlier reads.

    Args:
        emotions: The last axis of all readings.
        blocks: Their middle axis.
        kinds: The kind of each prompt.
        base: What the base reads.
        now: What the model reads.
        previous: What it read at the measurement before, if there was one.
        start: What it read at step 0, if that was before.
    """

    emotions: tuple[str, ...]
    blocks: tuple[int, ...]
    kinds: Sequence[str]
    base: Snapshot
    now: Snapshot
    previous: Snapshot | None = None
    start: Snapshot | None = None

    @cached_property
    def places(self) -> dict[str, Drift]:
        """Place -> drift, mean over blocks."""
        found = ((place, *self.pair(place)) for place in self.now.places)
        return {place: drift(a.mean(1), b.mean(1), self.emotions) for place, a, b in found}

    def pair(self, place: str) -> tuple[Array, Array]:
        """Readings of base and model at a place, (prompts, blocks, emotions), float64.

        The base's *own* responses are those that it is read on anyway.
        """
        base = self.base.places["response" if place == "own" else place]
        return base.astype(np.float64), self.now.places[place].astype(np.float64)

    def event(self) -> dict[str, Any]:
        """Every place as the journal keeps it."""
        return {place: self._place(place, found) for place, found in self.places.items()}

    def _place(self, place: str, found: Drift) -> dict[str, Any]:
        change, start = (self._since(place, s) for s in (self.previous, self.start))
        base, now = self.pair(place)
        shift = now - base
        columns = (found.base, found.now, found.mean, found.low, found.high, found.p, found.q)
        names = ("base", "now", "drift", "low", "high", "p", "q")
        return {
            "emotions": {
                e: {
                    **{name: float(c[i]) for name, c in zip(names, columns, strict=True)},
                    "change": change and change[e],
                    "start": start and start[e],
                }
                for i, e in enumerate(self.emotions)
            },
            "blocks": {str(b): self._named(shift[:, i].mean(0)) for i, b in enumerate(self.blocks)},
            "kinds": {
                kind: self._named(shift[[k == kind for k in self.kinds]].mean((0, 1)))
                for kind in dict.fromkeys(self.kinds)
            },
        }

    def _named(self, values: Array) -> dict[str, float]:
        return dict(zip(self.emotions, values.tolist(), strict=True))

    def _since(self, place: str, before: Snapshot | None) -> dict[str, dict[str, float]] | None:
        """Emotion -> movement since an earlier read at that place, with its interval."""
        if before is None or place not in before.places:
            return None
        then, now = (s.places[place].mean(1) for s in (before, self.now))
        found = drift(then, now, self.emotions)
        return {e: {"drift": m, "low": low, "high": high} for e, m, low, high in found.sorted()}


def scalars(places: Mapping[str, Drift], stats: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of a measurement: everything of it that is a finite number.

    Args:
        places: Place -> drift.
        stats: Of the colon, as `emoreg.shape.statistics` gives them.
    """
    logs = dict(_scalars(places, stats))
    return {f"emoreg/drift{k}": float(v) for k, v in logs.items() if np.isfinite(v)}


def _scalars(places: Mapping[str, Drift], stats: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for place, prefix in (("colon", ""), ("response", "_response"), ("own", "_own")):
        if place in places:
            for emotion, mean, low, high in places[place].sorted():
                yield f"{prefix}/{emotion}", mean
                if place == "colon":
                    yield f"_low/{emotion}", low
                    yield f"_high/{emotion}", high
    yield "_rose", len(places["colon"].rose)
    yield "_fell", len(places["colon"].fell)
    yield "_mean_abs", stats["mean_abs"]
    yield "_moved", stats["moved"]
    for name in ("structure", "agreement", "valence", "arousal", "sonnet", "span"):
        if stats[name] is not None:
            yield f"_{name}", stats[name]["value"]
