"""Figures of one run's drift, as matplotlib objects for any logger and for the report.

Without `wide` a figure fits a phone; `most` cuts it to the emotions that moved most. Figures are
measured in pixels of their SVG. Nothing here uses pyplot or a global figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emoreg.chart_parts import (
    COLOURS,
    LEGEND,
    MARKS,
    ROW,
    WIDTH,
    Box,
    canvas,
    heat,
    label_width,
    measured,
    reach,
    spaced,
)
from emoreg.charts import INK, MUTED, PAPER, STYLE
from emoreg.journal import Run
from emoreg.measurement import Measurement, Moved
from emoreg.printable import short
from emoreg.run_view import View
from emoreg.wheel import wheel as wheel  # to be found beside the others
from emoreg.wording import interval_text

COLUMNS = {True: 16, False: 6}  # of a heat map


@rc_context(STYLE)
def drift_forest(run: Run | View, wide: bool = True, most: int = 0) -> Figure:
    """Every emotion's drift at the colon with its 95 % interval, risers on top.

    Args:
        run: With at least one measurement of drift.
        wide: With the numbers beside the rows.
        most: Only so many emotions, the largest movers; 0 for all.

    Raises:
        ReportError: No drift was measured.
    """
    view, last = measured(run)
    rows = sorted(last.by_size()[: most or None], key=lambda r: _or_lowest(r.drift.mean))
    names = [_name(row.emotion, view) for row in rows]
    box = Box(label_width(names), 10, 190 if wide else 16, 62 if wide else 78)
    figure, ax = canvas(WIDTH[wide], ROW * len(rows) + box.top + box.bottom, box)
    ax.axvline(0, color=MUTED, lw=0.9)
    for y, row in enumerate(rows):
        forest_row(ax, y, row)
        if wide and row.side != "unknown":
            ax.annotate(
                interval_text(row.drift),
                (1, y),
                (8, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                size=11.5,
                annotation_clip=False,
                color=COLOURS[row.side],
            )
    ax.set_yticks(range(len(rows)), names, color=INK)
    ax.set(
        ylim=(-0.7, len(rows) - 0.3),
        xlabel=f"drift from base at the colon, σ\n{_legend(view, wide)}",
    )
    reach([x for row in rows for x in row.drift], ax)
    return figure


def emotion_steps(run: Run | View, wide: bool = True, most: int = 0) -> Figure:
    """Heat map, emotion × step: drift at the colon.

    Args:
        run: With at least one measurement of drift.
        wide: With room for more steps.
        most: Only so many emotions, the largest movers; 0 for all.

    Raises:
        ReportError: No drift was measured.
    """
    view, last = measured(run)
    at = spaced([m for m in view.drifts if m.colon], COLUMNS[wide])
    names = [row.emotion for row in last.by_size()[: most or None]]
    values = [[_drift(m, e) for m in at] for e in names]
    labels = [_name(e, view) for e in names]
    return heat(labels, [str(m.step) for m in at], values, ("step", "drift, σ"), wide)


def block_emotions(run: Run | View, wide: bool = True, most: int = 0) -> Figure:
    """Heat map, emotion × block: drift at the colon in the last measurement.

    Args:
        run: With at least one measurement of drift.
        wide: With room for more blocks.
        most: Only so many emotions, the largest movers; 0 for all.

    Raises:
        ReportError: No drift was measured.
    """
    view, last = measured(run)
    blocks = spaced(_blocks(last), COLUMNS[wide])
    names = [row.emotion for row in last.by_size()[: most or None]]
    values = [[last.blocks[b].get(e, math.nan) for b in blocks] for e in names]
    labels = [_name(e, view) for e in names]
    return heat(labels, blocks, values, ("block", "drift, σ"), wide)


def block_steps(run: Run | View, wide: bool = True) -> Figure:
    """Heat map, block × step: mean absolute drift over emotions at the colon, deepest on top.

    Args:
        run: With at least one measurement of drift.
        wide: With room for more steps.

    Raises:
        ReportError: No drift was measured.
    """
    view, last = measured(run)
    at = spaced([m for m in view.drifts if m.blocks], COLUMNS[wide])
    blocks = _blocks(last)[::-1]
    values = [[_mean_size(m.blocks.get(b, {}).values()) for m in at] for b in blocks]
    labels = [f"block {b}" for b in blocks]
    about = ("step", "mean absolute drift, σ")
    return heat(labels, [str(m.step) for m in at], values, about, wide, kind="some")


def forest_row(ax: Axes, y: float, row: Moved) -> None:
    """A mark with its interval: a triangle where a move is shown, else a hollow disc."""
    (mean, low, high), hue = row.drift, COLOURS[row.side]
    hollow = row.side in ("flat", "unknown")
    ax.plot([low, high], [y, y], color=hue, lw=1.8)
    ax.plot(mean, y, MARKS[row.side], color=hue, ms=6.5, mfc=PAPER if hollow else hue)


def _name(emotion: str, view: View) -> str:
    """An emotion's label, starred if the loss pushed on it."""
    return short(emotion, 24) + " *" * (emotion in view.pushed)


def _legend(view: View, wide: bool) -> str:
    """What the marks and the star mean."""
    return LEGEND + f"{',  ' if wide else chr(10)}* pushed on by the loss" * bool(view.pushed)


def _drift(measurement: Measurement, emotion: str) -> float:
    row = measurement.colon.get(emotion)
    return row.drift.mean if row else math.nan


def _blocks(last: Measurement) -> list[str]:
    """Blocks in their order."""
    return sorted(last.blocks, key=lambda b: (len(b), b))


def _mean_size(values: Iterable[float]) -> float:
    known = [abs(x) for x in values if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def _or_lowest(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
