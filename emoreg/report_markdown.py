"""The report of runs as Markdown, for a model card: the same words and tables, no pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from emoreg import audit_sentences, report_table
from emoreg.comparison import METHOD, comparison
from emoreg.errors import ReportError
from emoreg.guide import SECTIONS, how_measured, terms
from emoreg.journal import Run
from emoreg.printable import short
from emoreg.run_view import View, views
from emoreg.sentences import caveat, verdict
from emoreg.whole_profile import lines

SPECIAL = re.compile(r"[\\`*_\[\]|~#$^@]")
LINKS = {"://": ":&#47;&#47;", "www.": "www&#46;"}  # hosts turn bare addresses into links


def markdown(runs: Sequence[Run]) -> str:
    """The report of one run, or of one compared with others, as a section of a model card.

    Args:
        runs: The first is what the report is about; the others are compared with it.

    Raises:
        ReportError: No run was given.
    """
    if not runs:
        raise ReportError("A report needs at least one run; none was given.")
    return "\n".join(_lines(views(runs))) + "\n"


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line and inside a table as well."""
    line = " ".join(str(text).split())
    line = SPECIAL.sub(lambda found: "\\" + found[0], escape(line, quote=False))
    return re.sub(r"://|www\.", lambda found: LINKS[found[0].lower()], line, flags=re.IGNORECASE)


def _lines(found: Sequence[View]) -> Iterator[str]:
    yield "## Emotion drift"
    for other in found[1:]:
        yield from ("", plain(" ".join(comparison(found[0], other))))
    for view in found:
        yield from _verdict(view)
    yield from ("", f"*{plain(how_measured(found))}*")
    yield from ("", "### What moved")
    if len(found) > 1:
        yield from ("", f"*{plain(METHOD)}*")
    rows = [
        (row.emotion + (f" ({row.pushed})" if row.pushed else ""), *(c.text for c in row.cells))
        for row in report_table.rows(found)
    ]
    yield from _table(("emotion", *report_table.heads(found)), rows)
    yield from ("", "### Compared with what")
    yield from _how("compared")
    for view in found:
        whole = lines(view)
        yield from ("", f"Of {plain(view.title)}:") if whole else ()
        yield from _table(("number", "value [95 %]", "what it says", "what it is"),
                          [(x.name, x.value, x.said or "–", x.asks) for x in whole])  # fmt: skip
    yield from _audits(found)
    yield from _gates(found)
    yield from _settings(found)
    yield from ("", "### How to read every number", "")
    yield from (f"- **{plain(term)}.** {plain(said)}" for term, said in terms(found).items())


def _verdict(view: View) -> Iterator[str]:
    """One run's verdict, what stands beside it, its alerts and notes."""
    found = verdict(view)
    head = [f"**{plain(view.title)}: {plain(found.head)}.**"]
    yield from ("", " ".join([*head, *(plain(x) for x in (found.most, found.said) if x)]), "")
    yield from (f"- {plain(heading)}: {plain(text)}" for heading, text in found.facts)
    told = [(e, "Alert", e.get("message")) for e in view.run.alerts]
    told += [(e, "Note", e.get("text")) for e in view.run.notes]
    yield from (
        f"- {word} at step {e['step']}: {plain(short(text, 600))}" for e, word, text in told
    )


def _audits(found: Sequence[View]) -> Iterator[str]:
    """The audits of all runs; nothing where none was made or called for."""
    told = audit_sentences.told(found)
    if not told:
        return
    yield from ("", "### Audit")
    yield from _how("audit")
    for its in told:
        yield from ("", f"**{plain(its.title)}: {plain(its.head)}.** {plain(its.meaning)}".rstrip())
        yield from ("", *(f"- {plain(reason)}" for reason in its.reasons)) if its.reasons else ()
        said = " ".join(text for text in (its.course, its.beside) if text)
        yield from ("", plain(said)) if said else ()
        yield from _table(audit_sentences.STEP_HEADS, its.steps)
    yield from ("", plain(said)) if (said := audit_sentences.unlike(found)) else ()
    titles, rows = audit_sentences.measured(found)
    heads = ("measurement", *(titles if len(titles) > 1 else ("value [95 %]",)), "what it is",
             "what it decides")  # fmt: skip
    yield from _table(heads, [(row.name, *row.cells, row.asks, row.bar) for row in rows])


def _gates(found: Sequence[View]) -> Iterator[str]:
    yield from ("", "### Gates of the vectors")
    yield from _how("gates")
    sets = {str(v.get("sha256") or "–"): v for view in found for _, v in view.vector_sets()}
    for mark, vectors in sets.items():
        yield from ("", f"{plain(caveat(vectors))} (sha256 {plain(mark[:16])})")
        heads = ("gate", "value", "controls", "bar", "passed", "what it asks, and how")
        yield from _table(heads, report_table.gates(vectors))


def _settings(found: Sequence[View]) -> Iterator[str]:
    yield from ("", "### Settings")
    for view in found:
        groups = report_table.settings(view)
        rows = [(name, key, value) for name, values in groups for key, value in values]
        yield from ("", f"Of {plain(view.title)}:")
        yield from _table(("of", "setting", "value"), rows)


def _how(section: str) -> Iterator[str]:
    yield from ("", f"*{plain(SECTIONS[section])}*")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table with an empty line above; nothing without rows."""
    if not rows:
        return
    yield ""
    yield _row(heads)
    yield "|" + " --- |" * len(heads)
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"
