"""What a run's audits say, in words: the verdict, what it rests on, and how it went over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from emoreg.audit_bars import BARS, NONE
from emoreg.audit_page import MEANING, MEASURES
from emoreg.audited import Audited
from emoreg.chart_parts import spaced
from emoreg.measurement import number, table
from emoreg.printable import isolated, joined, listed, short
from emoreg.run_view import View, pushes
from emoreg.wording import interval_text, number_text

MISSING = "No audit in this run; add AuditCallback"
FIRST = 2  # reasons that stand in a run's facts; its section has all
CHANGES = 6  # of the verdict that a sentence names
LISTED = 3  # steps that it lists
STEPS = 24  # audits in the table by step
BY_STEP = ("lean", "refit", "held_out", "own_colon")
STEP_HEADS = ("step", "verdict", "lean of next words", "refitted, share", "held-out, share",
              "penalised, at the colon, σ")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement of the last audits.

    Attributes:
        name: As the journal and the trainer's log have it.
        asks: What it is.
        bar: What it decides.
        cells: Its value in each run that was audited.
    """

    name: str
    asks: str
    bar: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """The audits of one run in words.

    Attributes:
        title: Of the run.
        head: The last verdict.
        meaning: What its word says.
        reasons: What it rests on.
        beside: What one must know beside it.
        course: How it went over steps; empty for a single audit.
        steps: The audits as a table, of very many only some.
    """

    title: str
    head: str
    meaning: str = ""
    reasons: tuple[str, ...] = ()
    beside: str = ""
    course: str = ""
    steps: tuple[tuple[str, ...], ...] = ()


def fact(view: View) -> str:
    """The verdict and its first reasons in a line; empty where nothing calls for an audit."""
    last = view.audit
    if last is None:
        return f"{MISSING}: drift alone cannot tell what a control did." if view.controlled else ""
    why = "; ".join(isolated(reason, 300) for reason in last.reasons[:FIRST])
    more = [course(view.audits)] if len(view.audits) > 1 else []
    said = [_head(last) + (f": {why}" if why else ""), *more, *_caveats(view, last)]
    return " ".join(f"{text.rstrip('.')}." for text in said)


def told(found: Sequence[View]) -> list[Told]:
    """Every run that was audited, or had a control that an audit would be of."""
    return [_told(view) for view in found if view.audit or view.controlled]


def _told(view: View) -> Told:
    last = view.audit
    if last is None:
        return Told(view.title, MISSING)
    several = len(view.audits) > 1
    return Told(
        view.title,
        _head(last),
        MEANING.get(last.word, ""),
        last.reasons,
        " ".join(f"{text}." for text in (*_caveats(view, last), *_cost(last))),
        f"{course(view.audits)}." if several else "",
        tuple(map(_step, spaced(view.audits, STEPS))) if several else (),
    )


def measured(found: Sequence[View]) -> tuple[list[str], list[Row]]:
    """Titles of the runs that were audited, and every measurement of their last audits."""
    lasts = [(view.title, view.audit) for view in found if view.audit]
    names = dict.fromkeys(name for _, last in lasts for name in last.facts)
    order = [name for name in MEASURES if name in names]
    order += [name for name in names if name not in MEASURES]
    rows = [
        Row(
            short(name),
            MEASURES.get(name, "of another version of emoreg"),
            BARS.get(name, NONE),
            tuple(interval_text(last.fact(name), "", "") for _, last in lasts),
        )
        for name in order
    ]
    return [title for title, _ in lasts], rows


def unlike(found: Sequence[View]) -> str:
    """Why the audits of several runs are not comparable; empty if they are."""
    lasts = [dict(view.audit.texts()) for view in found if view.audit]
    differ = [key for key in (lasts[0] if lasts else ()) if any(x[key] != lasts[0][key]
              for x in lasts)]  # fmt: skip
    if not differ:
        return ""
    return (
        f"These audits differ in {joined(differ)}: their numbers stand side by side and are not "
        "to be compared."
    )


def course(audits: Sequence[Audited]) -> str:
    """How the verdict went over steps: each word with the audits in a row that said it."""
    said = []
    for word, group in groupby(audits, lambda audit: audit.word):
        steps = [audit.step for audit in group]
        at = f"at step{'s' * (len(steps) > 1)} {joined(map(str, steps))}"
        many = f"{len(steps)} times, from step {steps[0]} to {steps[-1]}"
        said.append(f"{isolated(word)} {at if len(steps) <= LISTED else many}")
    left = len(said) - CHANGES
    earlier = f"{left} earlier, then " if left > 0 else ""
    return f"Over {len(audits)} audits: {earlier}{', '.join(said[-CHANGES:])}"


def _head(last: Audited) -> str:
    word = last.word.capitalize() if last.known else f"Not a known verdict ({isolated(last.word)})"
    return f"{word} at step {last.step}, of {isolated(last.emotion)}"


def _caveats(view: View, last: Audited) -> Iterator[str]:
    """What the verdict is not of."""
    if not last.final or number(view.run.end.get("step")) > last.step:
        yield "This is not the end of training"
    acting = [control for control in view.run.controls.values() if pushes(control)]
    if not acting:
        yield "No control acted: it is of what training alone did"
        return
    punished = [e for e, word in view.pushed.items() if word == "penalised"]
    if last.emotion not in map(short, punished):
        what = f"penalised {listed(punished)}" if punished else "penalised no emotion"
        yield f"The loss {what}, which is not what was audited"
    used = {table(control.get("vectors")).get("sha256") for control in acting}
    if dict(last.texts())["vectors"] not in used:
        yield "It was audited with other vectors than those of the control"


def _cost(last: Audited) -> Iterator[str]:
    """What the audit took."""
    tokens, seconds = number_text(last.tokens, digits=0), number_text(last.seconds, digits=1)
    if (tokens, seconds) != ("–", "–"):
        yield f"It took {tokens} tokens forward and {seconds}\u00a0s"


def _step(audit: Audited) -> tuple[str, ...]:
    values = (interval_text(audit.fact(name), "", "") for name in BY_STEP)
    return (str(audit.step), audit.word, *values)
