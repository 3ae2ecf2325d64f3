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

from emoreg import (
    audit_sentences,
    chart_parts,
    guide,
    report_table,
    run_charts,
    run_lines,
    shades,
    whole_profile,
)
from emoreg.charts import inline_svg
from emoreg.comparison import METHOD, comparison
from emoreg.errors import ReportError
from emoreg.journal import Run
from emoreg.pages import write_page
from emoreg.printable import isolated, joined, short
from emoreg.report_markdown import markdown as markdown  # the same content, from here as well
from emoreg.run_view import View, views
from emoreg.sentences import Verdict, verdict
from emoreg.token_text import Example, example, examples, scale
from emoreg.wheel import NAMED
from emoreg.wording import moved_text, number_text

MOST = 40  # emotions in a chart; tables hold all
KINDS = 12  # emotions by kind of prompt
TEXTS = 6  # completions of a run on the page, and as many of earlier steps
READ = 2  # emotions whose training readings are drawn
BELOW = ("Why the colon", "Vectors", "Model", "How sure")  # facts that stand below several cards
SCRIPT = Markup((files("emoreg") / "templates" / "report.js").read_text(encoding="utf-8"))


Plan = tuple[str, str, Callable[[bool], Figure]]


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
    subject, verdicts, limit = found[0], [verdict(view) for view in found], scale(*found)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode()
    return {
        "views": found,
        "subject": subject,
        "verdicts": verdicts,
        "below": BELOW,
        "shared": _shared(found, verdicts),
        "comparisons": [said for other in found[1:] for said in comparison(subject, other)],
        "method": METHOD,
        "measured": guide.how_measured(found),
        "heads": report_table.heads(found),
        "rows": report_table.rows(found),
        "whole": _whole(found),
        "audits": audit_sentences.told(found),
        "audited": audit_sentences.measured(found),
        "unlike": audit_sentences.unlike(found),
        "step_heads": audit_sentences.STEP_HEADS,
        "figures": _figures(found),
        "most": {"drift": MOST, "kinds": KINDS, "wheel": NAMED, "runs": run_lines.DRAWN},
        "thinned": run_lines.POINTS if _thinned(found) else 0,
        "kinds": _kinds(subject),
        "axes": whole_profile.axes_caveat(subject),
        "texts": [(v, examples(v, TEXTS, limit)) for v in found if v.run.texts],
        "limit": limit,
        "zero": limit / shades.LEVELS / 2,
        "alerts": [(v, a, _alert_text(a, limit)) for v in found for a in v.run.alerts],
        "notes": [(v, note) for v in found for note in v.run.notes],
        "gates": _gates(found),
        "settings": [(v, report_table.settings(v)) for v in found],
        "guide": guide.SECTIONS,
        "terms": guide.terms(found),
        "levels": shades.LEVELS,
        "shades": Markup(shades.css()),
        "script": SCRIPT,
        "script_hash": digest,
    }


def _shared(found: Sequence[View], verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """What stands below the cards of several runs: once if it is the same for all."""
    out: list[tuple[str, str]] = []
    for heading in BELOW:
        said = [(v.title, dict(d.facts).get(heading)) for v, d in zip(found, verdicts, strict=True)]
        texts = dict.fromkeys(text for _, text in said if text)
        for text in texts:
            of = [isolated(title) for title, its in said if its == text]
            name = heading if len(texts) == 1 else f"{heading}: {', '.join(of)}"
            out.append((name, str(text)))
    return out


def _whole(found: Sequence[View]) -> list[tuple[whole_profile.Line, list[Any]]]:
    """Every number about a whole profile, described once, with what each run has of it."""
    tables = [{line.name: line for line in whole_profile.lines(view)} for view in found]
    first = {name: line for lines in reversed(tables) for name, line in lines.items()}
    order = dict.fromkeys(name for lines in tables for name in lines)
    return [(first[name], [lines.get(name) for lines in tables]) for name in order]


def _kinds(view: View) -> str:
    """How many prompts there are of each kind."""
    named = (f"{isolated(kind, 24)} ({count})" for kind, count in view.kinds.items())
    return joined(named) if view.kinds else ""


def _thinned(found: Sequence[View]) -> bool:
    curves = run_lines.training(found, _read(found[0])).values()
    return any(len(steps) > run_lines.POINTS for lines in curves for steps, _ in lines)


def _read(subject: View) -> list[str]:
    """The emotions whose readings in training are drawn."""
    return (subject.watched or subject.leading(READ))[:READ]


def _alert_text(alert: dict[str, Any], limit: float) -> Example | None:
    """The text that set an alert off."""
    text = alert.get("text")
    return example(text, int(alert["step"]), limit) if text else None


def _gates(found: Sequence[View]) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Of every vector set once: its use, where it is from, and its gates."""
    sets: dict[str, tuple[list[str], Any]] = {}
    for view in found:
        for use, vectors in view.vector_sets():
            named = f"{isolated(view.title)}: {use}" if len(found) > 1 else use
            sets.setdefault(str(vectors.get("sha256") or "–"), ([], vectors))[0].append(named)
    return [
        (
            "; ".join(uses),
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


def _plan(found: Sequence[View]) -> Iterator[Plan]:
    """Name, words for who cannot see it, and how to draw it wide or narrow."""
    subject = found[0]
    last, emotions = subject.last, subject.leading(run_lines.EMOTIONS)
    if last:
        largest = last.by_size()[:MOST]
        rows = [row.emotion for row in sorted(largest, key=lambda row: -_or_low(row.drift.mean))]
        most = ", ".join(map(moved_text, largest[:4]))
        yield (
            "forest",
            f"Forest plot of drift at the colon: {most}. All numbers are in table 1.",
            lambda wide: run_lines.forests(found, rows, wide),
        )
    if any(len(view.drifts) > 1 for view in found if view.last):
        names = ", ".join(isolated(e) for e in emotions)
        yield (
            "drift",
            f"Line chart: drift by step of {names}.",
            lambda wide: run_lines.drift_curves(found, emotions, wide),
        )
    if curves := run_lines.training(found, _read(subject)):
        yield (
            "training",
            f"Charts by step: {', '.join(curves)}.",
            lambda wide: run_lines.training_curves(found, curves, wide),
        )
    if last:
        yield from _profiles(subject, [row.emotion for row in largest])


def _profiles(subject: View, largest: Sequence[str]) -> Iterator[Plan]:
    """Where the emotions of one run moved: by block, by kind of prompt, by valence and arousal."""
    assert subject.last is not None
    if subject.last.blocks:
        yield (
            "blocks",
            "Heat map: drift by emotion and decoder block.",
            lambda wide: run_charts.block_emotions(subject, wide, MOST),
        )
    if len(subject.last.kinds) > 1:
        yield (
            "kinds",
            "Dot plot: drift by kind of prompt.",
            lambda wide: run_lines.kinds(subject, largest[:KINDS], wide),
        )
    yield (
        "wheel",
        "Scatter plot: emotions by valence and arousal, marked by drift.",
        lambda wide: run_charts.wheel(subject, wide),
    )


def _or_low(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


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
