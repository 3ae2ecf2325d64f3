"""Figures that set runs side by side, or one number against another: curves, pairs, forests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from emoreg.chart_parts import (
    COLOURS,
    LEGEND,
    MARKS,
    ROW,
    WIDTH,
    Box,
    canvas,
    label_width,
    reach,
)
from emoreg.charts import FAINT, INK, MUTED, PAPER, STYLE
from emoreg.measurement import GONE, PLACES, Moved
from emoreg.printable import short
from emoreg.run_view import View
from emoreg.shades import DASHES, LINES, SHAPES

DRAWN = 4  # runs in one chart
EMOTIONS = 5  # curves in one panel
POINTS = 300  # of a curve
LEAST = 0.5  # σ either way that a chart of drift by step shows: what is small looks small
TITLES = {"colon": "at the colon", "response": "on fixed responses", "own": "in own responses"}
Curve = tuple[Sequence[float], Sequence[float]]


def colour(at: int) -> str:
    """Of the run or emotion at that place."""
    return LINES[at % len(LINES)][0]


def key(figure: Figure, names: Sequence[str], marks: bool = True) -> None:
    """One legend above all panels, in as many columns as have room."""
    shown = [short(name, 24) for name in names]
    handles = [
        Line2D([], [], color=colour(i), ls=DASHES[i], marker=SHAPES[i] if marks else "", ms=5,
               label=name)
        for i, name in enumerate(shown)
    ]  # fmt: skip
    width = figure.get_figwidth() * 72
    columns = int(width // (80 + 8 * max(map(len, shown), default=0)))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, min(len(names), columns)),
        handlelength=3.2,
    )


@rc_context(STYLE)
def forests(views: Sequence[View], emotions: Sequence[str], wide: bool) -> Figure:
    """Drift with 95 % intervals, a panel for each place on one scale; hollow where none is shown.

    One run is marked by the side that it moved to, several by their colours and shapes.
    """
    views = [view for view in views if view.last][:DRAWN]
    names = [short(e, 24) + _stars(views, e) for e in emotions]
    tall = ROW if len(views) == 1 else 8 + 13 * len(views)
    keys = 0 if len(views) == 1 else 1 if wide else len(views)
    box = Box(label_width(names), (30 if wide else 44) + 22 * keys, 10, 46 if wide else 62)
    figure, axes = _panels(_places(views), names, box, tall, wide)
    for place, ax in axes.items():
        ax.axvline(0, color=MUTED, lw=0.9)
        for i, view in enumerate(views):
            rows = view.last.places.get(place, {}) if view.last else {}
            for y, emotion in enumerate(emotions):
                track = y + (i - (len(views) - 1) / 2) * 13 / tall
                _mark(ax, track, rows.get(emotion), i if len(views) > 1 else None)
    found = [x for view in views for p in axes for e in emotions for x in _drift(view, p, e)]
    for ax in axes.values():
        reach(found, ax, 7 if wide else 4)
    star = "* pushed on by the loss" * any(name.endswith("*") for name in names)
    of_one = "" if len(views) > 1 else LEGEND
    _meaning(figure, box, ("drift from base, σ", of_one, star), wide)
    if len(views) > 1:
        handles = [
            Line2D([], [], color=colour(i), marker=SHAPES[i], ms=6, label=short(view.title, 30))
            for i, view in enumerate(views)
        ]
        figure.legend(handles=handles, loc="upper left", ncols=len(views) if wide else 1)
    return figure


def _places(views: Sequence[View]) -> list[str]:
    """Where any of the runs was measured."""
    return [p for p in PLACES if any(view.last and view.last.known(p) for view in views)]


def _stars(views: Sequence[View], emotion: str) -> str:
    return " *" * any(emotion in view.pushed for view in views)


def _panels(
    places: Sequence[str], names: Sequence[str], box: Box, tall: float, wide: bool
) -> tuple[Figure, dict[str, Axes]]:
    """Axes side by side whose rows are the emotions, named at the first."""
    width, height = WIDTH[wide], tall * len(names) + box.top + box.bottom
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    between = 24 if wide else 12
    room = (width - box.left - box.right + between) / len(places)
    axes = {}
    for i, place in enumerate(places):
        left, inner = (box.left + i * room) / width, (room - between) / width
        ax = figure.add_axes((left, box.bottom / height, inner, tall * len(names) / height))
        ax.set_yticks(range(len(names)), [] if i else names, color=INK)
        ax.set_ylim(len(names) - 0.5, -0.5)
        for y in range(1, len(names)):
            ax.axhline(y - 0.5, color=FAINT, lw=0.5)
        ax.set_title(TITLES[place] if wide else "\n".join(TITLES[place].rsplit(" ", 1)), pad=6)
        axes[place] = ax
    return figure, axes


def _meaning(figure: Figure, box: Box, parts: Sequence[str], wide: bool) -> None:
    """What is drawn, below all panels."""
    width, height = figure.get_size_inches() * 72
    said = (";   " if wide else "\n").join(filter(None, parts))
    figure.text(box.left / width, 4 / height, said, color=MUTED, va="bottom", linespacing=1.5)


def _mark(ax: Axes, y: float, row: Moved | None, run: int | None) -> None:
    """One drift in its track, of the only run or of that run."""
    if row is None or row.side == "unknown":
        return
    hue = COLOURS[row.side] if run is None else colour(run)
    shape = MARKS[row.side] if run is None else SHAPES[run]
    face = hue if row.side in ("up", "down") else PAPER
    ax.plot([row.drift.low, row.drift.high], [y, y], color=hue, lw=1.8)
    ax.plot(row.drift.mean, y, shape, color=hue, mfc=face, ms=6)


def _drift(view: View, place: str, emotion: str) -> Sequence[float]:
    row = view.last.places.get(place, {}).get(emotion) if view.last else None
    return row.drift if row else GONE


@rc_context(STYLE)
def drift_curves(views: Sequence[View], emotions: Sequence[str], wide: bool) -> Figure:
    """Drift over steps with interval bands, a panel for each run; alerts are dotted lines."""
    views = [v for v in views if v.last][:DRAWN]
    columns = 2 if wide and len(views) > 1 else 1
    figure = _grid(len(views), columns, 300 if wide else 270, wide)
    axes = figure.axes
    for ax, view in zip(axes, views, strict=True):
        ax.axhline(0, color=MUTED, lw=0.9)
        for i, emotion in enumerate(emotions):
            found = [(m.step, *m.colon[emotion].drift) for m in view.drifts if emotion in m.colon]
            if found:
                steps, means, low, high = zip(*found, strict=True)
                ax.fill_between(steps, low, high, color=colour(i), alpha=0.16, lw=0)
                ax.plot(steps, means, color=colour(i), ls=DASHES[i], marker=SHAPES[i], ms=4.5)
        _alerts(ax, view)
        ax.set_title(short(view.title, 40) if len(views) > 1 else "", pad=8)
        ax.set(xlabel="step", ylabel="drift from base, σ")
        ax.grid(axis="y")
        ax.locator_params("x", integer=True)
    ends = [-LEAST, LEAST, *(limit for ax in axes for limit in ax.get_ylim())]
    for ax in axes:
        ax.set_ylim(min(ends), max(ends))  # the same scale for every run
    key(figure, emotions)
    return figure


def _alerts(ax: Axes, view: View) -> None:
    """A dotted line where an alert went off."""
    for i, step in enumerate(sorted({int(alert["step"]) for alert in view.run.alerts})):
        ax.axvline(step, color=INK, lw=1.1, ls=(0, (1, 2)))
        if i == 0:
            ax.annotate(
                "alert", (step, 1), (4, -4), xycoords=("data", "axes fraction"), va="top",
                textcoords="offset points", color=MUTED, size=11,
            )  # fmt: skip


def training(views: Sequence[View], emotions: Sequence[str]) -> dict[str, list[Curve]]:
    """Task loss, and the reading of each emotion on the texts trained on; what was logged."""
    wanted = {"task loss": ("loss", "loss"), "evaluation loss": ("eval_loss", "")}
    wanted |= {f"reading of {short(e, 24)}, σ": (f"reading/{e}", "") for e in emotions}
    found: dict[str, list[Curve]] = {
        title: [v.series(*keys) for v in views[:DRAWN]] for title, keys in wanted.items()
    }
    return {
        title: curves
        for title, curves in found.items()
        if any(math.isfinite(y) for _, values in curves for y in values)
    }


def thinned(steps: Sequence[float], values: Sequence[float]) -> Curve:
    """The same curve, or means of neighbours where it has more than `POINTS`."""
    if len(steps) <= POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), POINTS)
    means = [[float(np.mean([found[i] for i in at])) for at in parts] for found in (steps, values)]
    return means[0], means[1]


@rc_context(STYLE)
def training_curves(
    views: Sequence[View], curves: Mapping[str, Sequence[Curve]], wide: bool
) -> Figure:
    """Logged scalars over steps, a panel each and a line for each run."""
    columns = 3 if wide and len(curves) in (3, 5, 6) else min(2, len(curves))
    figure = _grid(len(curves), columns, 190 if wide else 165, wide)
    for ax, (title, lines) in zip(figure.axes, curves.items(), strict=True):
        for i, line in enumerate(lines):
            ls, shape = ("", SHAPES[i]) if _few(line) else (DASHES[i], "")
            ax.plot(*thinned(*line), color=colour(i), ms=6, ls=ls, marker=shape)
        ax.set_title(title, pad=6, size=12.5 if wide else 10)
        ax.set_xlabel("step", size=11)
        ax.grid(axis="y")
        ax.tick_params(labelsize=11)
        ax.locator_params("x", integer=True, nbins=7 if wide else 4)
        ax.locator_params("y", nbins=5)
    titles = [view.title for view in views[:DRAWN]]
    if len(titles) > 1:
        key(figure, titles, marks=any(map(_few, chain(*curves.values()))))
    return figure


def _few(line: Curve) -> bool:
    """Whether that is points, and no curve."""
    return len(line[0]) < 3


def _grid(count: int, columns: int, height: int, wide: bool) -> Figure:
    """Panels in rows of so many columns; `height` is that of one row."""
    rows = math.ceil(count / columns)
    size = (WIDTH[wide] / 72, rows * height / 72)
    figure = Figure(figsize=size, dpi=72, layout="constrained")
    for at in range(1, count + 1):
        figure.add_subplot(rows, columns, at)
    return figure


@rc_context(STYLE)
def kinds(view: View, emotions: Sequence[str], wide: bool) -> Figure:
    """Drift on each kind of prompt, joined by a line."""
    assert view.last is not None
    found = list(view.last.kinds.items())[:DRAWN]
    names, rows = [short(e, 24) for e in emotions], range(len(emotions))
    box = Box(label_width(names), 16 + 20 * (1 if wide else len(found)), 16, 46)
    figure, ax = canvas(WIDTH[wide], ROW * len(names) + box.top + box.bottom, box)
    ax.axvline(0, color=MUTED, lw=0.9)
    values = [[drifts.get(e, math.nan) for e in emotions] for _, drifts in found]
    for y, ends in enumerate(zip(*values, strict=True)):
        ax.plot(ends, [y] * len(ends), color=FAINT, lw=3, zorder=0)
    handles = [
        ax.plot(drifts, rows, SHAPES[i], color=colour(i), mfc=colour(i) if i else PAPER, ms=6,
                label=f"{short(kind, 20)} prompts")[0]
        for i, ((kind, _), drifts) in enumerate(zip(found, values, strict=True))
    ]  # fmt: skip
    ax.set_yticks(rows, names, color=INK)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="drift from base at the colon, σ")
    reach([x for drifts in values for x in drifts], ax)
    figure.legend(handles=handles, loc="upper left", ncols=len(found) if wide else 1)
    return figure
