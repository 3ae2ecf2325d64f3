"""Charts of one run's drift that can be pointed at, for wandb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from emoreg.chart_parts import spaced
from emoreg.charts import FALL
from emoreg.measurement import Moved, number, table
from emoreg.printable import short
from emoreg.run_view import View
from emoreg.sentences import interval_text, number_text
from emoreg.shades import RISE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LEGIBLE = "#7b838b"  # of text and lines: on a white page and on a dark one
SCALE = [[0.0, FALL], [0.5, "#efefec"], [1.0, RISE]]
SIZES = [[0.0, "#efefec"], [1.0, "#0f766e"]]
LOOK: dict[str, Any] = {  # takes the colour of the page it stands on
    **dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), "rgba(0,0,0,0)"),
    **{"template": "none", "font": {"color": LEGIBLE}, "margin": {"t": 30, "r": 20}},
}
STEPS = 200  # columns of a heat map
SYMBOLS = {"up": "triangle-up", "down": "triangle-down", "flat": "circle"}
LABELS = ("top center", "bottom center", "middle right", "middle left")
NEAR = 0.4  # on the scale of 1 to 7: labels of nearer emotions get out of each other's way
SAID = {"up": "rose", "down": "fell", "flat": "no drift shown"}


def charts(view: View) -> dict[str, Figure]:
    """Every chart of a run with at least one measurement, by its name.

    Args:
        view: The run.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    found = {"emotion_steps": emotion_steps(view), "wheel": wheel(view)}
    if any(m.blocks for m in view.drifts):
        found["block_steps"] = block_steps(view)
    return found


def emotion_steps(view: View) -> Figure:
    """Heat map, emotion × step: drift at the colon; the largest movers on top."""
    assert view.last is not None
    at = spaced([m for m in view.drifts if m.colon], STEPS)
    names = [row.emotion for row in view.last.by_size()]
    rows = [[m.colon.get(e) for m in at] for e in names]
    values = [[_or_none(cell.drift.mean) if cell else None for cell in row] for row in rows]
    words = [[interval_text(cell.drift, " σ") if cell else "–" for cell in row] for row in rows]
    labels = [_name(e, view) for e in names]
    return _heat(labels, [m.step for m in at], values, words, "drift, σ")


def block_steps(view: View) -> Figure:
    """Heat map, block × step: mean absolute drift over emotions at the colon; deepest on top."""
    at = spaced([m for m in view.drifts if m.blocks], STEPS)
    blocks = sorted({b for m in at for b in m.blocks}, key=lambda b: (len(b), b), reverse=True)
    sizes = [[_mean_size(m.blocks.get(b, {}).values()) for m in at] for b in blocks]
    values = [[_or_none(x) for x in row] for row in sizes]
    words = [[f"{number_text(x)} σ" for x in row] for row in sizes]
    labels = [f"block {escape(b)}" for b in blocks]
    return _heat(labels, [m.step for m in at], values, words, "mean absolute drift, σ", SIZES)


def wheel(view: View) -> Figure:
    """Emotions on the plane of valence and arousal; colour and size of a mark are the drift."""
    from plotly import graph_objects as go

    assert view.last is not None
    rated = _rated(view, view.last.by_size())
    drifts = [row.drift.mean for row, _, _ in rated]
    limit = max([1.0, *map(abs, drifts)])
    marks = {
        "color": drifts, "colorscale": SCALE, "cmin": -limit, "cmax": limit,
        "size": [8 + 32 * math.sqrt(abs(x) / limit) for x in drifts],
        "symbol": [SYMBOLS[row.side] for row, _, _ in rated],
        "line": {"color": LEGIBLE, "width": 1}, "colorbar": {"title": {"text": "drift, σ"}},
    }  # fmt: skip
    words = [
        f"<b>{escape(row.emotion)}</b>, {SAID[row.side]}<br>drift {interval_text(row.drift, ' σ')}"
        f"<br>q {number_text(row.q, digits=3)}, step {view.last.step}"
        for row, _, _ in rated
    ]
    points = go.Scatter(
        x=[x for _, x, _ in rated], y=[y for _, _, y in rated], mode="markers+text", marker=marks,
        text=[escape(short(row.emotion, 24)) for row, _, _ in rated], textposition=_sides(rated),
        hovertext=words, hoverinfo="text", textfont={"color": LEGIBLE}, cliponaxis=False,
    )  # fmt: skip
    axis = {"range": [0.5, 7.5], "zeroline": False, "showticklabels": False}
    figure = go.Figure(points)
    figure.update_layout(
        **LOOK,
        xaxis={**axis, "title": {"text": "unpleasant ← valence → pleasant"}, "gridcolor": LEGIBLE,
               "tickvals": [4]},
        yaxis={**axis, "title": {"text": "still ← arousal → agitated"}, "gridcolor": LEGIBLE,
               "tickvals": [4]},
    )  # fmt: skip
    return figure


def _heat(
    rows: Sequence[str],
    steps: Sequence[int],
    values: Sequence[Sequence[float | None]],
    words: Sequence[Sequence[str]],
    meaning: str,
    scale: Sequence[Any] = SCALE,
) -> Figure:
    """Cells by row, from the top, and step; `words` are what a cell says when pointed at."""
    from plotly import graph_objects as go

    limit = max([1.0, *(abs(x) for row in values for x in row if x is not None)])
    figure = go.Figure(
        go.Heatmap(
            z=values, x=[str(s) for s in steps], y=list(rows), customdata=words, colorscale=scale,
            zmin=-limit if scale is SCALE else 0.0, zmax=limit, xgap=1, ygap=1,
            hovertemplate="%{y}, step %{x}<br>%{customdata}<extra></extra>",
            colorbar={"title": {"text": meaning}},
        )
    )  # fmt: skip
    figure.update_layout(
        **LOOK,
        xaxis={"title": {"text": "step"}, "type": "category"},
        yaxis={"autorange": "reversed", "type": "category", "automargin": True},
    )
    return figure


def _rated(view: View, rows: Sequence[Moved]) -> list[tuple[Moved, float, float]]:
    """Measured emotions with their valence and arousal."""
    places = table(view.run.baseline.get("emotions"))
    at = [(row, table(places.get(row.emotion))) for row in rows if row.side in SYMBOLS]
    found = [(row, number(p.get("valence")), number(p.get("arousal"))) for row, p in at]
    return [f for f in found if all(map(math.isfinite, (f[0].drift.mean, *f[1:])))]


def _sides(rated: Sequence[tuple[Moved, float, float]]) -> list[str]:
    """Where the labels stand."""
    found: list[str] = []
    for i, (_, x, y) in enumerate(rated):
        near = sum(math.dist((x, y), at) < NEAR for _, *at in rated[:i])
        found.append(LABELS[near % len(LABELS)])
    return found


def _name(emotion: str, view: View) -> str:
    pushed = view.pushed.get(emotion)
    return escape(f"{emotion}, {pushed}" if pushed else emotion)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean_size(values: Any) -> float:
    known = [abs(x) for x in values if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan
