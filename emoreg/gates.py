"""A gate: one number, what a control gave, what was asked, and whether that was reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import rankdata

Control = Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """One measurement, and what was asked of it."""

    name: str
    value: float | None  # None: not measured, and the note says why
    control: Control | None  # what the controls gave on the same texts
    bar: float | None
    passed: bool | None  # None: not measured
    note: str = ""

    def row(self) -> dict[str, Any]:
        """As cards keep it."""
        return {**asdict(self), "control": dict(self.control) if self.control else None}


def at_least(
    name: str, value: float, bar: float, control: Control | None = None, note: str = ""
) -> Gate:
    """A gate that is passed from the bar upwards, and only above every control.

    Args:
        name: Of the gate.
        value: What was measured.
        bar: Least value, whatever the controls gave.
        control: What each control gave; the gate's bar is the largest of these and `bar`.
        note: How it was measured.
    """
    value, controls = _short(value), {k: _short(v) for k, v in (control or {}).items()}
    asked = max([bar, *controls.values()])
    passed = value >= bar and all(value > x for x in controls.values())
    return Gate(name, value, controls or None, asked, passed, note)


def below_ceiling(gate: Gate, ceiling: float = 1.0) -> Gate:
    """The gate, or not measured where chance reaches the largest value that there is."""
    chance = [x for name, x in (gate.control or {}).items() if name.endswith("_p95")]
    if max(chance, default=0.0) < ceiling:
        return gate
    return unmeasured(gate.name, f"chance alone reaches {ceiling:g}: too few emotions or texts")


def unmeasured(name: str, why: str) -> Gate:
    """A gate that these texts or this set do not allow."""
    return Gate(name, None, None, None, None, why)


def _short(value: float) -> float:
    return round(float(value), 4)


def separation(high: Sequence[float], low: Sequence[float]) -> float:
    """AUROC: the share of pairs in which the first group's value is the larger; ties count half."""
    ranks = rankdata([*high, *low])[: len(high)]
    u = ranks.sum() - len(high) * (len(high) + 1) / 2
    return float(u / (len(high) * len(low)))
