"""What the figures of a run are put together from: axes in pixels, heat maps, their keys.

Figures are measured in pixels of their SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

from emoreg.charts import FALL, INK, MUTED, PAPER, STYLE
from emoreg.errors import ReportError
from emoreg.journal import Run
from emoreg.measurement import Measurement
from emoreg.run_view import View
from emoreg.shades import LEVELS, RISE, colour, rounded
from emoreg.wording import number_text

WIDTH = {True: 860, False: 380}  # of a wide and of a narrow page
MARKS = {"up": "^", "down": "v", "flat": "o", "unknown": "x"}
COLOURS = {"up": RISE, "down": FALL, "flat": MUTED, "unknown": MUTED}
LEGEND = "▲ rose,  ▼ fell,  ○ no drift shown"
ROW = 22  # height of a row
T = TypeVar("T")


class Box(NamedTuple):
    """Margins around the axes."""

    left: float
    top: float
    right: float
    bottom: float


def measured(run: Run | View) -> tuple[View, Measurement]:
    """A run's view and its last measurement.

    Raises:
        ReportError: No drift was measured.
    """
    view = run if isinstance(run, View) else View.of(run)
    if view.last is None:
        raise ReportError(
            f"{view.title}: no measurement of drift holds a number, so there is nothing to draw. "
            "Train with emoreg's DriftCallback."
        )
    return view, view.last


def canvas(width: float, height: float, box: Box) -> tuple[Figure, Axes]:
    """A figure and its axes inside the margins, in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    x, y = box.left / width, box.bottom / height
    inner = (1 - x - box.right / width, 1 - y - box.top / height)
    return figure, figure.add_axes((x, y, *inner))


def reach(values: Sequence[float], ax: Axes, ticks: int = 7) -> None:
    """Make the axis hold all values, by whole σ and at least 1 σ either way."""
    known = [x for x in values if math.isfinite(x)]
    low, high = math.floor(min([-1.0, *known])), math.ceil(max([1.0, *known]))
    room = 0.03 * (high - low)
    ax.set_xlim(low - room, high + room)
    ax.grid(axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))


@rc_context(STYLE)
def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    about: tuple[str, str],
    wide: bool,
    kind: str = "",
) -> Figure:
    """Cells shaded by their numbers, which stand in them; a key below.

    Args:
        rows: Labels, from the top.
        columns: Labels, from the left.
        values: By row and column; NaN leaves a cell empty.
        about: What the columns are, and what the numbers are.
        wide: For a wide page.
        kind: One kind of shade for numbers without a sign; a rise and a fall by default.
    """
    box = Box(label_width(rows), 10, 12, 92)
    cell = min(64.0, (WIDTH[wide] - box.left - box.right) / max(len(columns), 1))
    width = max(box.left + box.right + cell * len(columns), 340)
    figure, ax = canvas(width, ROW * max(len(rows), 1) + box.top + box.bottom, box)
    ax.set_xlim(0, max(len(columns), (width - box.left - box.right) / cell))
    ax.set(ylim=(len(rows), 0), xlabel=about[0])
    if not rows or not columns:
        ax.text(0.5, 0.5, "nothing was recorded", color=MUTED, transform=ax.transAxes, ha="center")
    numbers = [x for row in values for x in row if math.isfinite(x)]
    limit = rounded(max(map(abs, numbers), default=0.0))
    _cells(ax, values, limit, kind)
    size = 11.5 if cell >= 40 else 9.5
    sign = "" if kind else "+"
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            said = "0" if abs(value) < 0.05 else number_text(value, sign, 1)
            ax.text(x + 0.5, y + 0.5, said, ha="center", va="center", size=size)
    ax.set_yticks([y + 0.5 for y in range(len(rows))], rows, color=INK)
    ax.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    ax.spines["bottom"].set_visible(False)
    _key(figure, box.left, (about[1], limit), kind)
    return figure


def _cells(ax: Axes, values: Sequence[Sequence[float]], limit: float, kind: str) -> None:
    """All cells of one colour as one shape."""
    shapes: dict[str, list[Outline]] = {}
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            corners = [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)]
            shapes.setdefault(colour(value, limit, kind), []).append(Outline(corners, closed=True))
    for hue, outlines in shapes.items():
        path = Outline.make_compound_path(*outlines)
        ax.add_patch(PathPatch(path, fc=hue, ec=PAPER, lw=1))


def _key(figure: Figure, left: float, about: tuple[str, float], kind: str) -> None:
    """What the shades stand for."""
    name, limit = about
    width, height = figure.get_size_inches() * 72
    levels = range(0 if kind else -LEVELS, LEVELS + 1)
    ax = figure.add_axes((left / width, 22 / height, 11 * len(levels) / width, 11 / height))
    _cells(ax, [[limit * at / LEVELS for at in levels]], limit, kind)
    ax.set(xlim=(0, len(levels)), ylim=(0, 1), yticks=[])
    low, high = number_text(-limit, "", 0), number_text(limit, "" if kind else "+", 0)
    ends = ([0.5, len(levels) - 0.5], ["0", high]) if kind else (
        [0.5, LEVELS + 0.5, len(levels) - 0.5], [low, "0", high]
    )  # fmt: skip
    ax.set_xticks(*ends, size=11)
    ax.set_title(name, color=MUTED, size=11.5, pad=4)


def spaced(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, most)]


def label_width(names: Iterable[str], least: float = 40) -> float:
    """Room for labels beside an axis."""
    return max([least, *(12 + 7.3 * len(name) for name in names)])
