"""Numbers as readers see them: signs, intervals, strengths, one emotion's drift."""

from __future__ import annotations

import math

from emoreg.charts import Interval
from emoreg.measurement import Moved
from emoreg.printable import isolated

SIGMA = "\u00a0σ"  # a line does not break before it
NAMED = 12  # emotions that a list names before it only counts
STRENGTHS = ((0.9, "very strong"), (0.7, "strong"), (0.4, "moderate"), (0.0, "weak"))


def number_text(value: float | None, sign: str = "", digits: int = 2) -> str:
    """A number, with a plus sign if `sign` is ``+``; a dash for one that is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def interval_text(found: Interval, unit: str = "", sign: str = "+") -> str:
    """A value with its 95 % interval, or alone where it has none."""
    mean, low, high = (number_text(x, sign) for x in found)
    if not math.isfinite(found.mean):
        return "–"
    return f"{mean}{unit} [{low},\u00a0{high}]" if found.side != "unknown" else f"{mean}{unit}"


def moved_text(row: Moved) -> str:
    """One emotion's drift in words."""
    name, found = isolated(row.emotion), interval_text(row.drift, SIGMA)
    if row.side == "unknown":
        return f"{name} was not measured"
    return f"{name} {found}" + " (no drift shown)" * (row.side == "flat")


def strength(found: Interval) -> tuple[str, ...]:
    """In words how large a correlation is whose interval excludes 0: one word, or its two ends."""
    ends = sorted((abs(found.low), abs(found.high)))
    words = [next(word for least, word in STRENGTHS if end >= least) for end in ends]
    return tuple(dict.fromkeys(words))
