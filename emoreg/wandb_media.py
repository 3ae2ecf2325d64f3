"""A run's events as tables, pictures and pages of wandb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from emoreg.audit_bars import BARS, NONE
from emoreg.chart_parts import spaced
from emoreg.charts import INK
from emoreg.measurement import Moved
from emoreg.printable import short
from emoreg.run_charts import block_steps, drift_forest, emotion_steps, wheel
from emoreg.run_view import View
from emoreg.shades import DARK_INK, shade
from emoreg.token_text import Example, example, scale
from emoreg.wandb_charts import charts

ROWS = 10_000  # of a table: more slow the browser down
FOREST = 60  # rows of the still picture
DRIFT = ("step", "place", "emotion", "drift", "low", "high", "q")
AUDIT = ("step", "verdict", "measurement", "value", "low", "high", "decides")
TEXTS = ("step", "emotion", "end", "reading", "side", "prompt", "completion")
PAGE = "color-scheme:light dark;background:Canvas;color:CanvasText;font:15px/1.6 sans-serif"


def drift_table(view: View) -> Any:
    """Every measurement of a run, the newest first; of very many the older ones are thinned out."""
    import wandb

    size = max([1, *(sum(map(len, m.places.values())) for m in view.drifts)])
    kept = spaced(view.drifts, max(2, ROWS // size))
    rows = [
        [m.step, place, *_cells(row)]
        for m in reversed(kept)
        for place, found in m.places.items()
        for row in found.values()
    ]
    return wandb.Table(list(DRIFT), rows)


def audit_table(view: View) -> Any:
    """Every measurement of every audit, the newest first, with its verdict and what it decides."""
    import wandb

    size = max([1, *(len(audit.facts) for audit in view.audits)])
    rows = [
        [audit.step, audit.word, name, *map(_or_none, found), BARS.get(name, NONE)]
        for audit in reversed(spaced(view.audits, max(2, ROWS // size)))
        for name, found in audit.facts.items()
    ]
    return wandb.Table(list(AUDIT), rows)


def drift_charts(view: View) -> dict[str, Any]:
    """Charts of a run with at least one measurement, to point at.

    Raises:
        ModuleNotFoundError: plotly is not installed.
    """
    import wandb

    return {name: wandb.Plotly(figure) for name, figure in charts(view).items()}


def drift_pictures(view: View) -> dict[str, Any]:
    """The same as still pictures."""
    found = {"emotion_steps": picture(emotion_steps(view)), "wheel": picture(wheel(view))}
    if any(m.blocks for m in view.drifts):
        found["block_steps"] = picture(block_steps(view))
    return found


def drift_picture(view: View) -> Any:
    """The last measurement, with intervals, as a still picture."""
    assert view.last is not None
    return picture(drift_forest(view, most=FOREST), f"drift from base, step {view.last.step}")


def picture(figure: Figure, caption: str | None = None) -> Any:
    """A figure as wandb's image."""
    import wandb

    png = BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return wandb.Image(Image.open(png), caption=caption)


def texts_table(step: int, rows: list[Mapping[str, Any]]) -> Any:
    """Completions whole, to search and to sort."""
    import wandb

    data = [
        [
            *(step, row["emotion"], row["end"], row["reading"], row.get("side")),
            *(row.get("prompt") or "", "".join(map(str, row.get("tokens") or ()))),
        ]
        for row in rows
    ]
    return wandb.Table(list(TEXTS), data, dtype=_types(TEXTS))


def texts_page(view: View, step: int, rows: list[Mapping[str, Any]]) -> Any:
    """Completions with their tokens shaded by their readings, in a page without anything active."""
    import wandb

    limit = scale(view)
    body = "".join(_completion(example(row, step, limit)) for row in rows)
    key = f"Shades: amber above 0 σ, blue below; the deepest is {limit:.1f} σ. Point at a token."
    page = f'<!doctype html><meta charset="utf-8"><body style="{PAGE}"><p>{key}</p>{body}'
    return wandb.Html(page, inject=False)


def _cells(row: Moved) -> list[Any]:
    return [row.emotion, *map(_or_none, (*row.drift, row.q))]


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _types(columns: tuple[str, ...]) -> list[Any]:
    numbers = {"step": int, "reading": float}
    return [numbers.get(column, str) for column in columns]


def _completion(found: Example) -> str:
    return "".join(
        [
            f"<h3>{escape(found.title)}</h3>",
            f'<p style="opacity:.75;white-space:pre-wrap">{escape(found.prompt)}</p>',
            '<p style="white-space:pre-wrap;overflow-wrap:anywhere">',
            *_tokens(found),
            f" … {found.left_out} more tokens" if found.left_out else "",
            f"</p><p>{escape(found.ends)}</p>",
        ]
    )


def _tokens(found: Example) -> Iterator[str]:
    """Each shaded for a light page and a dark one; browsers that know one only take the first."""
    for piece in found.pieces:
        side, _, depth = piece.shade.partition("-")
        style = ""
        if depth:
            light, dark = (shade(side, int(depth), theme) for theme in (False, True))
            style = (
                f' style="background:{light};color:{INK};'
                f'background:light-dark({light},{dark});color:light-dark({INK},{DARK_INK})"'
            )
        yield f'<span title="{escape(piece.reading)} σ"{style}>{escape(piece.text)}</span>'


def artifact_name(*parts: Any) -> str:
    """A name as wandb allows it."""
    text = "-".join(short(part, 60) for part in parts if part)
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text)
