"""The emotion wheel: emotions on the plane of valence and arousal, marked by their drift."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emoreg.chart_parts import COLOURS, LEGEND, MARKS, Box, canvas, measured
from emoreg.charts import FAINT, MUTED, PAPER, STYLE
from emoreg.journal import Run
from emoreg.labels import Area, Mark, Spot, apart, place
from emoreg.measurement import Measurement, Moved, number, table
from emoreg.printable import short
from emoreg.run_view import View
from emoreg.shades import rounded

LOW, HIGH = 0.4, 7.6  # of both axes; ratings go from 1 to 7
NAMED = 40  # emotions that are shown, the largest drifts
SIZE = 11.0  # of letters
CORNER = 1.3  # a triangle's corners reach further than a disc
Rated = tuple[Moved, float, float]  # with valence and arousal


@rc_context(STYLE)
def wheel(run: Run | View, wide: bool = True) -> Figure:
    """Emotions on the plane of valence and arousal; mark, colour and size are their drift.

    Marks of like ratings are set side by side. Names stand beside their marks, or at the end of a
    line; where they do not all find room, every one is a number, with the names in a key below.

    Args:
        run: With at least one measurement of drift.
        wide: For a wide page.

    Raises:
        ReportError: No drift was measured.
    """
    rated = _rated(*measured(run))[:NAMED]
    width, height = (720.0, 400.0 + 4 * max(0, len(rated) - 20)) if wide else (380.0, 330.0)
    inner = Area(26, 0, width - 12, height)
    marks = apart([_mark(found, rated, inner, wide) for found in rated])
    around = [mark._replace(radius=CORNER * mark.radius) for mark in marks]
    names, spots = _labels([short(row.emotion, 18) for row, _, _ in rated], around, inner)
    lines = -(-len(names) // _columns(width)) if names else 0
    box = Box(26, 12, 12, 44 + (14 * lines + 10 if lines else 0))
    figure, ax = canvas(width, height + box.top + box.bottom, box)
    _axes(ax)
    if not rated:
        ax.text(4, 4, "no emotion of this set is rated", color=MUTED, ha="center")
    for (row, _, _), mark in zip(rated, marks, strict=True):
        face, edge = COLOURS[row.side], PAPER
        if row.side == "flat":
            face, edge = edge, face
        at, area = _data(mark[:2], inner), (2 * mark.radius) ** 2
        ax.scatter(*at, area, marker=MARKS[row.side], fc=face, ec=edge, lw=1)
    for label, spot, mark in spots:
        _write(ax, label, spot, mark, inner)
    _key(figure, names, box)
    return figure


def _axes(ax: Axes) -> None:
    ax.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH), xticks=[], yticks=[])
    ax.axhline(4, color=FAINT, lw=0.9, zorder=0)
    ax.axvline(4, color=FAINT, lw=0.9, zorder=0)
    ax.set_xlabel(f"unpleasant  ←  valence  →  pleasant\n{LEGEND}")
    ax.set_ylabel("still  ←  arousal  →  agitated")


def _mark(found: Rated, rated: Sequence[Rated], inner: Area, wide: bool) -> Mark:
    """Where a mark is, and how large: its area is the drift."""
    largest = rounded(max(abs(row.drift.mean) for row, _, _ in rated))
    row, x, y = found
    share = math.sqrt(abs(row.drift.mean) / largest)
    return Mark(*_pixels(x, y, inner), max(2.5, (12.0 if wide else 8.0) * share))


def _pixels(x: float, y: float, inner: Area) -> tuple[float, float]:
    unit = HIGH - LOW
    return (
        inner.left + (x - LOW) / unit * (inner.right - inner.left),
        inner.low + (y - LOW) / unit * (inner.high - inner.low),
    )


def _data(at: tuple[float, float], inner: Area) -> tuple[float, float]:
    """The inverse of `_pixels`."""
    unit = HIGH - LOW
    return (
        LOW + unit * (at[0] - inner.left) / (inner.right - inner.left),
        LOW + unit * (at[1] - inner.low) / (inner.high - inner.low),
    )


def _labels(
    names: Sequence[str], marks: Sequence[Mark], inner: Area
) -> tuple[list[str], list[tuple[str, Spot, Mark]]]:
    """The names of a key, if there must be one, and each label with its place and its mark."""
    labels = list(names)
    spots = place(marks, [(_width(label), 1.15 * SIZE) for label in labels], inner)
    numbered = not all(spots)
    if numbered:
        labels = [str(i) for i, _ in enumerate(names, 1)]
        spots = place(marks, [(_width(label), 1.15 * SIZE) for label in labels], inner)
    rows = [row for row in zip(names, labels, spots, marks, strict=True) if row[2]]
    key = [f"{label}  {name}" for name, label, _, _ in rows] if numbered else []
    return key, [(label, spot, mark) for _, label, spot, mark in rows if spot]


def _width(name: str) -> float:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in name)
    return SIZE * (0.62 * len(name) + 0.42 * wide)


def _write(ax: Axes, label: str, spot: Spot, mark: Mark, inner: Area) -> None:
    """A label at its spot, close to the side of its mark, with its line."""
    if spot.line:
        ends = zip(*(_data(end, inner) for end in spot.line), strict=True)
        ax.plot(*ends, color=MUTED, lw=0.7, solid_capstyle="round")
    left, low, right, high = spot.area
    # Letters are narrower than was reckoned, so they stand at the end that is next to the mark.
    along = (mark.x - left) / (right - left)
    x, side = (left, "left") if along < 1 / 3 else (right, "right")
    if 1 / 3 <= along <= 2 / 3:
        x, side = (left + right) / 2, "center"
    ax.text(*_data((x, (low + high) / 2), inner), label, ha=side, va="center", size=SIZE)


def _columns(width: float) -> int:
    return int((width - 26) // 118)


def _key(figure: Figure, names: Sequence[str], box: Box) -> None:
    """The names of the numbers, below the axes, by columns."""
    width, height = figure.get_size_inches() * 72
    columns = _columns(width)
    rows = -(-len(names) // columns)
    for i, name in enumerate(names):
        column, row = divmod(i, rows)
        x, y = (box.left + 118 * column) / width, (box.bottom - 44 - 14 * (row + 1)) / height
        figure.text(x, y, name, size=SIZE, va="bottom")


def _rated(view: View, last: Measurement) -> list[Rated]:
    """Measured emotions with their valence and arousal, largest drift first."""
    places = table(view.run.baseline.get("emotions"))
    found = [
        (row, number(table(places.get(row.emotion)).get("valence")),
         number(table(places.get(row.emotion)).get("arousal")))
        for row in last.known()
    ]  # fmt: skip
    rated = [at for at in found if math.isfinite(at[1]) and math.isfinite(at[2])]
    return sorted(rated, key=lambda at: -abs(at[0].drift.mean))
