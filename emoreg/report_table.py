"""The tables of a report: every emotion of every run, gates, settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from emoreg.comparison import difference, differences
from emoreg.guide import GATES, KNOBS
from emoreg.measurement import GONE, PLACES, Moved, number, table
from emoreg.printable import short
from emoreg.run_view import View, control_title
from emoreg.validation_page import MEANING
from emoreg.wording import interval_text, number_text

MARKS = {"up": "▲\u00a0", "down": "▼\u00a0", "flat": "○\u00a0", "unknown": ""}
WHERE = {"colon": "at the colon", "response": "on fixed responses", "own": "in own responses"}
OUTCOMES: Mapping[Any, str] = {True: "pass", False: "FAIL"}
VALUE = 300  # letters of a setting
PROMPTS = 3  # of each kind that are shown
# Shown in other places.
ELSE = ("emotions", "gates", "watched", "verdict", "reason", "model", "prompts", "data")


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
    if others:
        found = [f"{view.title}, {WHERE['colon']}" for view in views]
        found += [f"{other.title} minus {subject.title}" for other in others]
        return found + [f"{v.title}, {WHERE[p]}" for p in _measured(views) for v in views]
    found = [WHERE[p] for p in ("colon", *_measured(views))]
    since = [] if subject.before is None else [f"change since step {subject.before}"]
    return [*found, "q at the colon", *since]


def rows(views: Sequence[View]) -> list[Row]:
    """Every emotion of any run, by the first run's drift."""
    subject = views[0]
    names = [row.emotion for row in subject.last.by_size()] if subject.last else []
    for view in views[1:]:
        names += [e for e in (view.last.colon if view.last else ()) if e not in names]
    return [_row(name, views) for name in names]


def _row(name: str, views: Sequence[View]) -> Row:
    found = [_at(view, "colon", name) for view in views]
    pushed = {view.pushed[name] for view in views if name in view.pushed}
    cells = [_drift(row) for row in found]
    for view, row in zip(views[1:], found[1:], strict=True):
        cells.append(_difference(views[0], view, found[0], row))
    cells += [_drift(_at(view, p, name)) for p in _measured(views) for view in views]
    if len(views) == 1:
        cells += _beside(views[0], found[0])
    moved = any(_side(row) in ("up", "down") for row in found)
    return Row(name, moved, ", ".join(sorted(pushed)), tuple(cells))


def _at(view: View, place: str, emotion: str) -> Moved | None:
    return view.last.places.get(place, {}).get(emotion) if view.last else None


def _beside(view: View, row: Moved | None) -> Iterator[Cell]:
    """What else is known of an emotion at the colon."""
    q, change = (row.q, row.change) if row else (math.nan, GONE)
    yield Cell(q_text(q), _sort(q))
    if view.before is not None:
        yield Cell(interval_text(change), _sort(change.mean))


def _drift(row: Moved | None) -> Cell:
    """A drift with its interval and a mark that does without colour."""
    found, side = row.drift if row else GONE, _side(row)
    return Cell(MARKS[side] + interval_text(found), _sort(found.mean), side)


def _difference(one: View, other: View, a: Moved | None, b: Moved | None) -> Cell:
    """The other run's drift minus the first's, where they are comparable."""
    if differences(one, other):
        return Cell("not comparable")
    if a is None or b is None or "unknown" in (a.side, b.side):
        return Cell("–")
    found = difference(a.drift, b.drift)
    kind = "apart" if found.side in ("up", "down") else "flat"
    return Cell(interval_text(found), found.mean, kind)


def q_text(q: float) -> str:
    """A q; very small ones only by their bound."""
    return "< 0.001" if q < 0.001 else number_text(q, "", 3)


def _side(row: Moved | None) -> str:
    return row.side if row else "unknown"


def _sort(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _measured(views: Sequence[View]) -> list[str]:
    """Places other than the colon that have a number in any run."""
    return [p for p in PLACES[1:] if any(view.last and view.last.known(p) for view in views)]


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
    name, note = str(gate.get("name")), short(gate.get("note") or "", VALUE)
    said = (MEANING.get(name, ""), GATES.get(name, ""), f"Note: {note}." if note else "")
    return " ".join(filter(None, said))


def settings(view: View) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of settings, each a heading with names and values."""
    header, run = view.run.header, view.run
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("run", {k: header.get(k) for k in ("name", "trainer", "time", "wandb")} | _times(view)),
        ("data", _data(view)),
        ("model", table(header.get("model"))),
        ("adapter", table(header.get("adapter"))),
        *((control_title(name), _unstepped(control)) for name, control in run.controls.items()),
        ("drift", _unstepped(run.baseline)),
        ("audit", view.audit.about if view.audit else {}),
        ("training arguments", table(header.get("args"))),
        ("versions", table(header.get("versions"))),
    ]
    found = [(name, list(_flat(values))) for name, values in groups]
    return [(name, values) for name, values in found if values]


def _times(view: View) -> dict[str, Any]:
    """Where the run began and ended."""
    start, end = view.run.header.get("step"), view.run.end
    return {
        "resumed at step": start or None,
        "ended at step": end.get("step"),
        "seconds": end.get("seconds"),
        "task loss, mean over the run": end.get("loss"),
    }


def _data(view: View) -> dict[str, Any]:
    """What was trained on, and what drift was measured on."""
    data, asked = table(view.run.header.get("data")), table(view.run.baseline.get("prompts"))
    names = {"rows": "rows trained on", "eval_rows": "rows evaluated on"}
    found = {names.get(key, key): value for key, value in data.items()}
    found |= {f"drift prompts: {k}": asked.get(k) for k in ("file", "hash", "number")}
    examples = table(asked.get("examples"))
    for kind, count in view.kinds.items():
        shown = [f"“{short(text, 160)}”" for text in list(examples.get(kind) or ())[:PROMPTS]]
        such_as = f", such as {' '.join(shown)}" if shown else ""
        found[f"{short(kind, 24)} prompts"] = f"{count}{such_as}"
    return found


def _unstepped(event: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the step at which it was written."""
    return {key: value for key, value in event.items() if key != "step"}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names and values, without what is null or stands elsewhere."""
    for name, value in values.items():
        path = f"{above}{short(name)}"
        if name in ELSE or value is None or value in ({}, []):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        else:
            listed = isinstance(value, list | tuple)
            said = KNOBS.get(name.removeprefix("emoreg_"), "")
            limit = VALUE if not path.endswith(" prompts") else 4 * VALUE
            text = short(", ".join(map(str, value)) if listed else value, limit)
            yield f"{path} ({said})" if said else path, text
