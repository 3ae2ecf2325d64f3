"""One measurement of drift with its intervals; NaN where the journal has nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from emoreg.charts import Interval
from emoreg.printable import shown

# The same as in emoreg.drift, which loads torch; a test compares them.
Q = 0.05  # share of false finds that is accepted among the emotions that are said to have moved
LEAST = 0.05  # σ: less may be rounding
GONE = Interval(math.nan, math.nan, math.nan)
PLACES = ("colon", "response", "own")


@dataclass(frozen=True)
class Moved:
    """One emotion at one place of a measurement, in σ."""

    emotion: str
    drift: Interval  # from the base
    q: float
    change: Interval  # from the measurement before
    base: float
    now: float

    @property
    def side(self) -> str:
        """``up`` or ``down`` where a move is shown, ``flat`` where none is, ``unknown`` else."""
        side = self.drift.side
        if side in ("up", "down") and not (self.q <= Q and abs(self.drift.mean) >= LEAST):
            return "unknown" if math.isnan(self.q) else "flat"
        return side


@dataclass(frozen=True)
class Measurement:
    """One measurement of drift."""

    step: int
    final: bool
    prompts: int
    places: Mapping[str, Mapping[str, Moved]]  # place -> emotion
    blocks: Mapping[str, Mapping[str, float]]  # block -> emotion -> drift at the colon
    kinds: Mapping[str, Mapping[str, float]]  # kind of prompt -> emotion -> drift at the colon
    stats: Mapping[str, Interval]
    chance: float  # share of a random move that would lie in the span of the directions
    shared: int  # emotions that the published shift has too

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Measurement:
        """Read a journal's event."""
        places, stats = table(event.get("places")), table(event.get("stats"))
        colon = table(places.get("colon"))
        return cls(
            step=int(event["step"]),
            final=bool(event.get("final")),
            prompts=int(value) if math.isfinite(value := number(event.get("prompts"))) else 0,
            places={p: _rows(table(places[p]).get("emotions")) for p in PLACES if p in places},
            blocks=_numbers(colon.get("blocks")),
            kinds=_numbers(colon.get("kinds")),
            stats={name: statistic(found) for name, found in stats.items()},
            chance=number(table(stats.get("span")).get("chance")),
            shared=int(n) if math.isfinite(n := number(table(stats.get("sonnet")).get("emotions")))
            else 0,
        )  # fmt: skip

    @property
    def colon(self) -> Mapping[str, Moved]:
        """Every emotion at the colon, on which verdicts rest."""
        return self.places.get("colon", {})

    def known(self, place: str = "colon") -> list[Moved]:
        """The emotions that were measured there."""
        return [row for row in self.places.get(place, {}).values() if row.side != "unknown"]

    def movers(self, side: str = "", place: str = "colon") -> list[Moved]:
        """Emotions that moved, to that side or at all, largest drift first."""
        wanted = (side,) if side else ("up", "down")
        found = [row for row in self.known(place) if row.side in wanted]
        return sorted(found, key=lambda row: -abs(row.drift.mean))

    def size(self, place: str = "colon") -> float:
        """Mean absolute drift over the emotions that were measured there, σ."""
        found = [abs(row.drift.mean) for row in self.known(place)]
        return sum(found) / len(found) if found else math.nan

    def by_size(self) -> list[Moved]:
        """All emotions: those that moved, then the others, then the unknown, each by size."""
        rank = {"up": 0, "down": 0, "flat": 1, "unknown": 2}
        return sorted(
            self.colon.values(), key=lambda r: (rank[r.side], -abs(or_zero(r.drift.mean)))
        )


def further(one: Interval, other: Interval) -> int:
    """1 if the first lies further from 0 with its whole interval, −1 if the other, else 0."""
    (low, high), (other_low, other_high) = _distance(one), _distance(other)
    return int(low > other_high) - int(high < other_low)


def _distance(found: Interval) -> tuple[float, float]:
    """The interval of the size of a drift."""
    ends = sorted((abs(found.low), abs(found.high)))
    return (0.0, ends[1]) if found.low <= 0 <= found.high else (ends[0], ends[1])


def table(value: Any) -> Mapping[str, Any]:
    """A mapping, empty if there is none."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """A number; NaN for null and for what is none."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if real else math.nan


def or_zero(value: float) -> float:
    """The same, 0 for NaN."""
    return value if math.isfinite(value) else 0.0


def statistic(found: Any) -> Interval:
    """A statistic with its interval, or without one."""
    if not isinstance(found, Mapping):
        return Interval(number(found), math.nan, math.nan)
    return Interval(*(number(found.get(end)) for end in ("value", "low", "high")))


def _interval(found: Any) -> Interval:
    return Interval(*(number(table(found).get(end)) for end in ("drift", "low", "high")))


def _rows(found: Any) -> dict[str, Moved]:
    return {
        (name := shown(emotion)): Moved(
            name,
            _interval(row),
            number(table(row).get("q")),
            _interval(table(row).get("change")),
            number(table(row).get("base")),
            number(table(row).get("now")),
        )
        for emotion, row in table(found).items()
    }


def _numbers(found: Any) -> dict[str, dict[str, float]]:
    return {
        shown(str(name)): {shown(emotion): number(value) for emotion, value in table(row).items()}
        for name, row in table(found).items()
    }
