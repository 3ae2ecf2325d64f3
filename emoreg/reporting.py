"""The report of runs as one HTML file without network in it; its words follow the intervals."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from emoreg import chart_parts, report_table, run_charts, run_lines, shades
from emoreg.charts import inline_svg
from emoreg.comparison import comparison, lines
from emoreg.errors import ReportError
from emoreg.guide import SECTIONS, TERMS
from emoreg.journal import Run
from emoreg.pages import write_page
from emoreg.printable import isolated, short
from emoreg.report_markdown import markdown as markdown  # the same content, from here as well
from emoreg.run_view import View, views
from emoreg.sentences import Verdict, caveat, moved_text, number_text, verdict
from emoreg.token_text import Example, example, examples, scale

MOST = 40  # emotions in a chart; tables hold all
TEXTS = 6  # completions of a run on the page, and as many of earlier steps
READ = 2  # emotions whose training readings are drawn
SCRIPT = Markup((files("emoreg") / "templates" / "report.js").read_text(encoding="utf-8"))


class Chart(NamedTuple):
    """One chart of the page, for a wide and for a narrow screen."""

    number: int
    wide: Markup
    narrow: Markup
    width: int  # in pixels, of the wide one


def write_runs(runs: Sequence[Run], path: Path) -> Path:
    """Write the report of one run, or of one compared with others.

    Args:
        runs: The first is what the report is about; the others are compared with it.
        path: The HTML file, which is replaced whole or not at all; missing folders are made.

    Raises:
        ReportError: No run was given.
    """
    if not runs:
        raise ReportError("A report needs at least one run; none was given.")
    return write_page("report.html.j2", _context(views(runs)), FILTERS, path)


def _context(found: Sequence[View]) -> dict[str, Any]:
    """Everything that the template shows."""
    subject, verdicts = found[0], [verdict(view) for view in found]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode()
    return {
        "views": found,
        "subject": subject,
        "verdicts": verdicts,
        "shared": _shared(found, verdicts),
        "comparisons": [comparison(subject, other) for other in found[1:]],
        "heads": report_table.heads(found),
        "rows": report_table.rows(found),
        "lines": [(v, lines(v.last)) for v in found if v.last and lines(v.last)],
        "figures": _figures(found),
        "most": MOST,
        "points": run_lines.POINTS,
        "texts": [(v, examples(v, TEXTS), scale(v)) for v in found if v.run.texts],
        "alerts": [(v, a, _alert_text(v, a)) for v in found for a in v.run.alerts],
        "notes": [(v, note) for v in found for note in v.run.notes],
        "gates": _gates(found),
        "settings": [(v, report_table.settings(v)) for v in found],
        "guide": SECTIONS,
        "terms": TERMS,
        "levels": shades.LEVELS,
        "shades": Markup(shades.css()),
        "script": SCRIPT,
        "script_hash": digest,
    }


def _shared(found: Sequence[View], verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """What stands below the cards of several runs: once if it is the same for all."""
    out: list[tuple[str, str]] = []
    for heading in ("Vectors", "How sure"):
        said = [(v.title, dict(d.facts).get(heading)) for v, d in zip(found, verdicts, strict=True)]
        texts = dict.fromkeys(text for _, text in said if text)
        for text in texts:
            of = [isolated(title) for title, its in said if its == text]
            name = heading if len(texts) == 1 else f"{heading}: {', '.join(of)}"
            out.append((name, str(text)))
    return out


def _alert_text(view: View, alert: dict[str, Any]) -> Example | None:
    """The text that set an alert off."""
    text = alert.get("text")
    return example(text, int(alert["step"]), scale(view)) if text else None


def _gates(found: Sequence[View]) -> list[tuple[str, str, str, list[tuple[str, ...]]]]:
    """Of every vector set once: its use, what is said of it, where it is from, and its gates."""
    sets: dict[str, tuple[list[str], Any]] = {}
    for view in found:
        for use, vectors in view.vector_sets():
            named = f"{isolated(view.title)}: {use}" if len(found) > 1 else use
            sets.setdefault(str(vectors.get("sha256") or "–"), ([], vectors))[0].append(named)
    return [
        (
            "; ".join(uses),
            caveat(vectors),
            f"sha256 {short(mark, 16)}, bank {short(vectors.get('bank'), 20)}, "
            f"source: {short(vectors.get('source'), 40)}",
            report_table.gates(vectors),
        )
        for mark, (uses, vectors) in sets.items()
    ]


def _figures(found: Sequence[View]) -> dict[str, Chart]:
    """Every chart that the runs have numbers for, in the order of the page."""
    return {
        name: _chart(number, name, label, draw)
        for number, (name, label, draw) in enumerate(_plan(found), 1)
    }


def _plan(found: Sequence[View]) -> Iterator[tuple[str, str, Callable[[bool], Figure]]]:
    """Name, words for who cannot see it, and how to draw it wide or narrow."""
    subject = found[0]
    last, emotions = subject.last, subject.leading(run_lines.EMOTIONS)
    curves = run_lines.training(found, subject.watched[:READ] or emotions[:READ])
    if last:
        shown = [row.emotion for row in last.by_size()[:MOST]]
        most = ", ".join(map(moved_text, last.by_size()[:4]))
        told = f"{most}. All numbers are in table 1."
        yield (
            "forest",
            f"Forest plot of drift: {told}",
            lambda wide: (
                run_charts.drift_forest(subject, wide, MOST)
                if len(found) == 1
                else run_lines.forests(found, shown, wide)
            ),
        )
        names = ", ".join(isolated(e) for e in emotions)
        yield (
            "drift",
            f"Line chart: drift by step of {names}.",
            lambda wide: run_lines.drift_curves(found, emotions, wide),
        )
    if curves:
        yield (
            "training",
            f"Line charts by step: {', '.join(curves)}.",
            lambda wide: run_lines.training_curves(found, curves, wide),
        )
    if last:
        yield (
            "steps",
            "Heat map: drift by emotion and step.",
            lambda wide: run_charts.emotion_steps(subject, wide, MOST),
        )
        if last.blocks:
            yield from _blocks(subject)
        if len(last.kinds) > 1:
            yield (
                "kinds",
                "Dot plot: drift by kind of prompt.",
                lambda wide: run_lines.kinds(subject, shown[:12], wide),
            )
        yield (
            "wheel",
            "Scatter plot: emotions by valence and arousal, marked by drift.",
            (lambda wide: run_charts.wheel(subject, wide)),
        )


def _blocks(subject: View) -> Iterator[tuple[str, str, Callable[[bool], Figure]]]:
    yield (
        "blocks",
        "Heat map: drift by emotion and decoder block.",
        lambda wide: run_charts.block_emotions(subject, wide, MOST),
    )
    yield (
        "block-steps",
        "Heat map: mean absolute drift by decoder block and step.",
        lambda wide: run_charts.block_steps(subject, wide),
    )


def _chart(number: int, name: str, label: str, draw: Callable[[bool], Figure]) -> Chart:
    wide, narrow = (
        Markup(inline_svg(draw(w), f"{name}-{'wide' if w else 'narrow'}", label, shades.THEME))
        for w in (True, False)
    )
    box = re.search(r'viewBox="0 0 ([\d.]+)', wide)
    return Chart(number, wide, narrow, math.ceil(float(box[1])) if box else chart_parts.WIDTH[True])


FILTERS: dict[str, Callable[..., str]] = {
    "short": short,
    "number": lambda value, digits, sign="": number_text(value, sign, digits),
}
