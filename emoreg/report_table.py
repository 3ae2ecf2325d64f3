"""The tables of a report: every emotion of every run, gates, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emoreg.comparison import differences, further
from emoreg.measurement import GONE, Moved, number, table
from emoreg.printable import short
from emoreg.run_view import View, control_title
from emoreg.sentences import interval_text, number_text
from emoreg.validation_page import MEANING

MARKS = {"up": "▲ ", "down": "▼ ", "flat": "○ ", "unknown": ""}
ELSEWHERE = {"response": "on fixed responses [95 %]", "own": "in own responses [95 %]"}
OUTCOMES: Mapping[Any, str] = {True: "pass", False: "FAIL"}
VALUE = 300  # letters of a setting
ELSE = ("emotions", "gates", "watched", "verdict", "reason", "model")  # shown in other places


class Cell(NamedTuple):
    """What a cell shows, what it is sorted by, and how it looks."""

    text: str
    sort: float | str = ""
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """One emotion."""

    emotion: str
    moved: bool  # in any of the runs
    pushed: str
    cells: tuple[Cell, ...]


def heads(views: Sequence[View]) -> list[str]:
    """The headings of the drift table, without the first, which is the emotion."""
    subject, *others = views
    found = [f"{subject.title}: drift [95 %]" if others else "drift [95 %]"]
    for view in others:
        found += [f"{view.title}: drift [95 %]", "further from base"]
    return [*found, "q", *(ELSEWHERE[p] for p in _measured(subject)), "since last [95 %]"]


def rows(views: Sequence[View]) -> list[Row]:
    """Every emotion of any run, by the first run's drift."""
    subject = views[0]
    names = [row.emotion for row in subject.last.by_size()] if subject.last else []
    for view in views[1:]:
        names += [e for e in (view.last.colon if view.last else ()) if e not in names]
    return [_row(name, views) for name in names]


def _row(name: str, views: Sequence[View]) -> Row:
    found = [view.last.colon.get(name) if view.last else None for view in views]
    pushed = {view.pushed[name] for view in views if name in view.pushed}
    cells = [_drift(found[0])]
    for view, row in zip(views[1:], found[1:], strict=True):
        cells += [_drift(row), _further(views[0], view, found[0], row)]
    moved = any(_side(row) in ("up", "down") for row in found)
    return Row(name, moved, ", ".join(sorted(pushed)), (*cells, *_own(views[0], name, found[0])))


def _own(view: View, name: str, row: Moved | None) -> Iterator[Cell]:
    """What else is known of the run that the report is about."""
    q = row.q if row else math.nan
    yield Cell(q_text(q), _sort(q))
    for place in _measured(view):
        yield _drift(view.last.places[place].get(name) if view.last else None)
    change = row.change if row else GONE
    yield Cell(interval_text(change), _sort(change.mean))


def _drift(row: Moved | None) -> Cell:
    """A drift with its interval and a mark that does without colour."""
    found, side = row.drift if row else GONE, _side(row)
    return Cell(MARKS[side] + interval_text(found), _sort(found.mean), side)


def _further(one: View, other: View, a: Moved | None, b: Moved | None) -> Cell:
    """Which of two runs lies further from base, where their intervals say so."""
    if differences(one, other):
        return Cell("not comparable")
    if a is None or b is None or "unknown" in (a.side, b.side):
        return Cell("–")
    ahead = further(a.drift, b.drift)
    return Cell({1: one.title, -1: other.title, 0: "not told apart"}[ahead], ahead)


def q_text(q: float) -> str:
    """A q; very small ones only by their bound."""
    return "< 0.001" if q < 0.001 else number_text(q, "", 3)


def _side(row: Moved | None) -> str:
    return row.side if row else "unknown"


def _sort(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _measured(view: View) -> list[str]:
    """Places other than the colon that have a number."""
    return [p for p in ELSEWHERE if view.last and view.last.known(p)]


def gates(vectors: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, value, controls, bar, outcome and meaning of each gate."""
    return [
        (
            short(gate.get("name")).replace("_", " "),
            number_text(number(gate.get("value"))),
            ", ".join(
                f"{short(name).replace('_', ' ')} {number_text(number(value))}"
                for name, value in table(gate.get("control")).items()
            )
            or "–",
            number_text(number(gate.get("bar"))),
            OUTCOMES.get(gate.get("passed"), "not measured"),
            _asks(gate),
        )
        for gate in map(table, vectors.get("gates") or ())
    ]


def _asks(gate: Mapping[str, Any]) -> str:
    """What a gate asks, and its note."""
    meaning = MEANING.get(str(gate.get("name")), "")
    return f"{meaning} {short(gate.get('note') or '', VALUE)}".strip()


def settings(view: View) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of settings, each a heading with names and values."""
    header, run = view.run.header, view.run
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("run", {k: header.get(k) for k in ("name", "trainer", "time", "step", "wandb")}),
        ("model", table(header.get("model"))),
        ("adapter", table(header.get("adapter"))),
        *((control_title(name), control) for name, control in run.controls.items()),
        ("drift", run.baseline),
        ("training arguments", table(header.get("args"))),
        ("versions", table(header.get("versions"))),
        ("end", run.end),
    ]
    found = [(name, list(_flat(values))) for name, values in groups]
    return [(name, values) for name, values in found if values]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names and values, without what is null or stands elsewhere."""
    for name, value in values.items():
        path = f"{above}{short(name)}"
        if name in ELSE or value is None or value == {}:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        else:
            listed = isinstance(value, list | tuple)
            yield path, short(", ".join(map(str, value)) if listed else value, VALUE)
