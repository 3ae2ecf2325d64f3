"""Two runs beside each other: where they differ, as far as their intervals say so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emoreg.charts import Interval
from emoreg.measurement import Moved, further, table
from emoreg.printable import isolated, joined, listed, short
from emoreg.run_view import View
from emoreg.wording import NAMED, SIGMA, interval_text, number_text

LARGEST = 3  # differences that a sentence names
WHERE = {"colon": "at the colon", "response": "on fixed responses", "own": "in own responses"}
METHOD = (
    "Difference: the other run’s drift minus the first’s. The journals hold no readings of single "
    "prompts, so its bracket adds the half-widths of both intervals: the widest that there can be, "
    "however the two runs go together."
)


def difference(one: Interval, other: Interval) -> Interval:
    """The other minus the first, with the widest bracket that the two intervals allow.

    The drifts are paired over prompts but only their own intervals are known. Whatever their
    correlation, the spread of a difference is at most the sum of both spreads.
    """
    return Interval(other.mean - one.mean, other.low - one.high, other.high - one.low)


def differences(one: View, other: View) -> list[str]:
    """Why the drifts of two runs are not comparable; empty if they are."""
    a, b = one.run.baseline, other.run.baseline
    found = []
    marks = [str(table(r.get("vectors")).get("sha256") or "")[:8] for r in (a, b)]
    if not all(marks):
        found.append("vectors that are not both on record")
    elif marks[0] != marks[1]:
        found.append(f"other vectors ({short(marks[0])} and {short(marks[1])})")
    models = [table(v.run.header.get("model")).get("config") for v in (one, other)]
    if models[0] != models[1]:
        found.append("other models")
    if table(a.get("prompts")).get("hash") != table(b.get("prompts")).get("hash"):
        found.append("other prompts")
    found += [f"other {key}" for key in ("facets", "blocks") if a.get(key) != b.get(key)]
    return found


def comparison(one: View, other: View) -> list[str]:
    """Who drifted more, in which emotions, in sentences; only where intervals are apart."""
    names = f"{isolated(one.title)} and {isolated(other.title)}"
    if one.last is None or other.last is None:
        return [f"Not compared: {names} were not both measured."]
    if why := differences(one, other):
        return [
            f"Not comparable: {names} were measured with {listed(why)}. A σ of one need not be a σ "
            "of the other, so their numbers stand side by side and no difference is claimed."
        ]
    shared = _shared(one, other)
    if not shared:
        return [f"Not compared: {names} share no measured emotion."]
    more = {s: [a.emotion for a, b in shared if further(a.drift, b.drift) == s] for s in (1, -1, 0)}
    text = f"At the colon, of {len(shared)} emotion{'s' * (len(shared) != 1)} in both, "
    text += "; ".join(
        f"{isolated(v.title)} lies further from base in {_some(more[s])}"
        for v, s in ((one, 1), (other, -1))
    )
    verb = "is" if len(more[0]) == 1 else "are"
    text += f"; {len(more[0])} {verb} not told apart, as their intervals meet."
    return [text, _largest(one, other, shared), *_sizes(one, other)]


def _shared(one: View, other: View) -> list[tuple[Moved, Moved]]:
    """The emotions that both runs measured at the colon."""
    assert one.last is not None
    assert other.last is not None
    known = {row.emotion: row for row in other.last.known()}
    return [(row, known[row.emotion]) for row in one.last.known() if row.emotion in known]


def _largest(one: View, other: View, shared: Sequence[tuple[Moved, Moved]]) -> str:
    """The largest differences that are shown, in words."""
    found = [(a.emotion, difference(a.drift, b.drift)) for a, b in shared]
    shown = sorted(
        (pair for pair in found if pair[1].side in ("up", "down")), key=lambda p: -abs(p[1].mean)
    )
    of = f"{isolated(other.title)} minus {isolated(one.title)}"
    if not shown:
        return f"A difference, {of}, is shown for none of them."
    said = ", ".join(f"{isolated(e)} {interval_text(d, SIGMA)}" for e, d in shown[:LARGEST])
    return f"A difference, {of}, is shown for {len(shown)} of {len(found)}; the largest: {said}."


def _sizes(one: View, other: View) -> list[str]:
    """How far either moved on the whole, at each place."""
    found = [
        f"{number_text(sizes[0])} and {number_text(sizes[1])}{SIGMA} {where}"
        for place, where in WHERE.items()
        for sizes in [[v.last.size(place) if v.last else math.nan for v in (one, other)]]
        if all(map(math.isfinite, sizes))
    ]
    names = f"{isolated(one.title)} and {isolated(other.title)}"
    return [f"On average {names} moved by {joined(found)}."] if found else []


def _some(names: Sequence[str]) -> str:
    if not names:
        return "0"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(map(isolated, names[:NAMED]))}{more})"
