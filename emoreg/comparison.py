"""What a drift is compared with: other runs, the whole profile, a published shift, chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from emoreg.charts import Interval
from emoreg.measurement import GONE, Measurement, table
from emoreg.printable import isolated, listed, short
from emoreg.run_view import View
from emoreg.sentences import NAMED, SIGMA, interval_text, number_text


class Line(NamedTuple):
    """One number about a whole profile."""

    name: str
    value: str
    said: str  # what may be claimed
    asks: str  # what it is


def further(one: Interval, other: Interval) -> int:
    """1 if the first lies further from 0 with its whole interval, −1 if the other, else 0."""
    (low, high), (other_low, other_high) = _distance(one), _distance(other)
    return int(low > other_high) - int(high < other_low)


def _distance(found: Interval) -> tuple[float, float]:
    """The interval of the size of a drift."""
    ends = sorted((abs(found.low), abs(found.high)))
    return (0.0, ends[1]) if found.low <= 0 <= found.high else (ends[0], ends[1])


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


def comparison(one: View, other: View) -> str:
    """Who drifted more, in which emotions; only where intervals are apart."""
    names = f"{isolated(one.title)} and {isolated(other.title)}"
    if one.last is None or other.last is None:
        return f"Not compared: {names} were not both measured."
    if why := differences(one, other):
        return (
            f"Not comparable: {names} were measured with {listed(why)}. A σ of one need not be a σ "
            "of the other, so their numbers stand side by side and no difference is claimed."
        )
    shared = [
        (row.drift, other.last.colon[row.emotion].drift, row.emotion)
        for row in one.last.known()
        if other.last.colon.get(row.emotion) in other.last.known()
    ]
    if not shared:
        return f"Not compared: {names} share no measured emotion."
    more = {s: [e for a, b, e in shared if further(a, b) == s] for s in (1, -1, 0)}
    text = f"Of {len(shared)} emotions in both, "
    text += "; ".join(
        f"{isolated(v.title)} lies further from base in {_some(more[s])}"
        for v, s in ((one, 1), (other, -1))
    )
    verb = "is" if len(more[0]) == 1 else "are"
    return f"{text}; {len(more[0])} {verb} not told apart, as their intervals meet."


def _some(names: Sequence[str]) -> str:
    if not names:
        return "0"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(map(isolated, names[:NAMED]))}{more})"


def lines(last: Measurement) -> list[Line]:
    """Every number about the whole profile that was measured, with what it lets one say."""
    return [line for make in (_correlations, _centroid, _published, _span) for line in make(last)]


def _correlations(last: Measurement) -> list[Line]:
    structure = "correlation of base and trained profile over emotions, {}; 1 is unchanged"
    rows = [
        ("structure", "structure", structure.format("all prompts"), _kept),
        ("structure, neutral", "structure_neutral", structure.format("neutral prompts"), _kept),
        (
            "structure, challenging",
            "structure_challenging",
            structure.format("challenging prompts"),
            _kept,
        ),
        (
            "neutral against challenging",
            "agreement",
            "correlation over emotions of the drift on either kind of prompt",
            _alike,
        ),
    ]
    return [
        Line(name, interval_text(found, "", ""), say(found), asks)
        for name, key, asks, say in rows
        if math.isfinite((found := last.stats.get(key, GONE)).mean)
    ]


def _kept(found: Interval) -> str:
    says = {
        "up": "The trained profile is related to the base’s.",
        "down": "The trained profile is the base’s turned around.",
        "flat": "No relation to the base’s profile is shown.",
    }
    return says.get(found.side, "")


def _alike(found: Interval) -> str:
    says = {
        "up": "Both kinds of prompt moved alike.",
        "down": "The two kinds of prompt moved against each other.",
        "flat": "Whether both kinds of prompt moved alike is not shown.",
    }
    return says.get(found.side, "")


def _centroid(last: Measurement) -> list[Line]:
    sides = {"valence": ("pleasant", "unpleasant"), "arousal": ("agitated", "still")}
    out = []
    for name, (high, low) in sides.items():
        found = last.stats.get(name, GONE)
        says = {
            "up": f"On the whole, towards {high} emotions.",
            "down": f"On the whole, towards {low} emotions.",
            "flat": f"No move towards {high} or {low} emotions is shown.",
        }
        if math.isfinite(found.mean):
            asks = f"mean drift, weighted by how {high} each emotion is rated"
            out.append(Line(name, interval_text(found, SIGMA), says.get(found.side, ""), asks))
    return out


def _published(last: Measurement) -> list[Line]:
    found = last.stats.get("sonnet", GONE)
    if not math.isfinite(found.mean):
        return []
    says = {
        "up": "The emotions moved in a like pattern.",
        "down": "The emotions moved in the opposite pattern.",
        "flat": "No likeness is shown.",
    }
    asks = (
        "correlation over emotions with what post-training did to Claude Sonnet 4.5 "
        "(arXiv:2604.07729, Table 16); interval over emotions. Another model, other vectors, "
        "other units: only the pattern can be alike, never the size"
    )
    name = f"Sonnet 4.5’s published shift, {last.shared} emotions"
    return [Line(name, interval_text(found), says.get(found.side, ""), asks)]


def _span(last: Measurement) -> list[Line]:
    """Whether the emotions moved, or the whole residual stream."""
    share, moved = last.stats.get("span", GONE).mean, last.stats.get("moved", GONE).mean
    out = []
    if math.isfinite(moved):
        asks = "length of the activation’s mean move at the colon, as a share of its own length"
        out.append(
            Line("whole activation moved by", f"{number_text(100 * moved, '', 1)} %", "", asks)
        )
    if math.isfinite(share) and math.isfinite(last.chance):
        times = share / last.chance if last.chance > 0 else math.inf
        said = (
            f"{number_text(times, '', 1)} times what a move in a random direction would have there."
            if share > last.chance
            else "No more than a move in a random direction would have there."
        )
        asks = (
            "squared share of that move that lies in the span of the emotion directions; the rest "
            f"is something else. By chance {number_text(100 * last.chance, '', 1)} %; no interval"
        )
        value = f"{number_text(100 * share, '', 1)} %"
        out.append(Line("of that, along emotions", value, said, asks))
    return out
