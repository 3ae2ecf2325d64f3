"""Every number about a whole profile of emotions: what it is, and what it lets one say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy.special import betaincinv

from emoreg.charts import Interval
from emoreg.measurement import GONE, Measurement, number, table
from emoreg.printable import joined
from emoreg.run_view import View
from emoreg.wording import SIGMA, interval_text, number_text, strength

AXES = {"valence": ("pleasant", "unpleasant"), "arousal": ("agitated", "still")}
KEPT = {
    **{"very strong": "nearly unchanged", "strong": "largely kept"},
    **{"moderate": "partly kept", "weak": "little kept"},
}


class Line(NamedTuple):
    """One number about a whole profile."""

    name: str
    value: str
    said: str  # what may be claimed
    asks: str  # what it is


def lines(view: View) -> list[Line]:
    """Every number about the whole profile that was measured, with what it lets one say."""
    if view.last is None:
        return []
    return [
        *_span(view, view.last),
        *_correlations(view.last),
        *_centroid(view, view.last),
        *_published(view.last),
    ]


def _correlations(last: Measurement) -> list[Line]:
    structure = "correlation of base’s and trained readings over emotions{}; 1 is unchanged"
    rows = [
        ("profile kept", "structure", structure.format(""), _kept),
        *(
            (f"profile kept, {kind}", f"structure_{kind}", structure.format(f", {kind} prompts"),
             _kept)
            for kind in ("neutral", "challenging")
        ),
        (
            "neutral against challenging",
            "agreement",
            "correlation over emotions of the drift on either kind of prompt",
            _alike,
        ),
    ]  # fmt: skip
    return [
        Line(name, interval_text(found, "", ""), say(found), asks)
        for name, key, asks, say in rows
        if math.isfinite((found := last.stats.get(key, GONE)).mean)
    ]


def _kept(found: Interval) -> str:
    says = {
        "up": f"The base’s profile is {joined((KEPT[w] for w in strength(found)), ' to ')}."
        if found.side == "up"
        else "",
        "down": "The trained profile is the base’s turned around.",
        "flat": "No relation to the base’s profile is shown.",
    }
    return says.get(found.side, "")


def _alike(found: Interval) -> str:
    says = {
        "up": f"Both kinds of prompt moved alike: {_strong(found)}.",
        "down": f"The two kinds of prompt moved against each other: {_strong(found)}.",
        "flat": "Whether both kinds of prompt moved alike is not shown.",
    }
    return says.get(found.side, "")


def _strong(found: Interval) -> str:
    if found.side not in ("up", "down"):
        return ""
    return f"a {joined(strength(found), ' to ')} correlation"


def _centroid(view: View, last: Measurement) -> list[Line]:
    out = []
    for name, (high, low) in AXES.items():
        found = last.stats.get(name, GONE)
        says = {
            "up": f"On the whole, towards {high} emotions{_but(view, name)}.",
            "down": f"On the whole, towards {low} emotions{_but(view, name)}.",
            "flat": f"No move towards {high} or {low} emotions is shown.",
        }
        if math.isfinite(found.mean):
            asks = f"mean drift, weighted by how {high} each emotion’s word is rated"
            out.append(Line(name, interval_text(found, SIGMA), says.get(found.side, ""), asks))
    return out


def _but(view: View, axis: str) -> str:
    """What stands behind a move along an axis that the vectors were not shown to have."""
    passed = gate(table(view.run.baseline.get("vectors")), f"{axis}_correlation")
    if passed:
        return ""
    why = "were not tested for" if passed is None else "failed the gate for"
    return f", by the ratings alone: these vectors {why} {axis}"


def axes_caveat(view: View) -> str:
    """What to know of the axes of valence and arousal; empty if the vectors passed both gates."""
    vectors = table(view.run.baseline.get("vectors"))
    found = {axis: gate(vectors, f"{axis}_correlation") for axis in AXES}
    words = {False: "failed the gate for", None: "were not tested for"}
    said = [
        f"{why} {joined(at)}"
        for status, why in words.items()
        if (at := [axis for axis, passed in found.items() if passed is status])
    ]
    if not said:
        return ""
    return (
        f"These vectors {joined(said)}: the axes are ratings of words, and no finding about this "
        "model."
    )


def gate(vectors: Mapping[str, Any], name: str) -> bool | None:
    """Whether a vector set passed a gate; None if that was not measured."""
    rows = map(table, vectors.get("gates") or ())
    passed = next((row.get("passed") for row in rows if row.get("name") == name), None)
    return passed if isinstance(passed, bool) else None


def _published(last: Measurement) -> list[Line]:
    found = last.stats.get("sonnet", GONE)
    if not math.isfinite(found.mean):
        return []
    says = {
        "up": f"The emotions moved in a like pattern: {_strong(found)}.",
        "down": f"The emotions moved in the opposite pattern: {_strong(found)}.",
        "flat": "No likeness is shown.",
    }
    asks = (
        "correlation over emotions with what post-training did to Claude Sonnet 4.5 "
        "(arXiv:2604.07729, Table 16); interval over emotions. Other vectors and units: only the "
        "pattern can be alike"
    )
    name = f"Sonnet 4.5’s published shift, {last.shared} emotions"
    return [Line(name, interval_text(found), says.get(found.side, ""), asks)]


def _span(view: View, last: Measurement) -> list[Line]:
    """Whether the emotions moved, or the whole residual stream."""
    share, moved = last.stats.get("span", GONE), last.stats.get("moved", GONE).mean
    out = []
    if math.isfinite(moved):
        asks = "length of its mean move at the colon, as a share of its own length"
        said = "For scale: two activations of one length at a right angle are 141 % of it apart."
        value = f"{number_text(100 * moved, '', 1)} %"
        out.append(Line("the whole activation moved by", value, said, asks))
    if math.isfinite(share.mean) and math.isfinite(last.chance):
        range_ = chance_range(last.chance, _width(view))
        asks = (
            "share of the squared length of that move. A random direction has "
            f"{_percent(last.chance)} there"
        )
        if range_.side != "unknown":
            asks += f" (95 % of them {_percent(range_.low)} to {_percent(range_.high)})"
        said = _mostly(share, range_)
        out.append(Line("of that, along emotions", _percent(share.mean), said, asks))
    return out


def _mostly(share: Interval, chance: Interval) -> str:
    """The emotions, or the whole stream; from the share and what random directions have."""
    if chance.side == "unknown":
        return ""
    low, high = (share.low, share.high) if share.side != "unknown" else (share.mean, share.mean)
    if high < chance.low:
        return "Elsewhere: less along emotions than a random move would be."
    if low <= chance.high:
        return "Not told apart from a random move: the stream moved, and readings with it."
    if low > 0.5:
        return "Mostly along emotions, and more than a random move would be."
    return "Mostly elsewhere, but more along emotions than a random move would be."


def chance_range(share: float, width: float) -> Interval:
    """Share of a random direction inside a subspace: its mean, and where 95 % of shares lie.

    The squared length inside is distributed as Beta(rows / 2, (width − rows) / 2). A mean over
    blocks varies less, so the range is, if anything, too wide.

    Args:
        share: Rows of the subspace over the width.
        width: Of the residual stream; NaN gives a range that is not known.
    """
    rows = share * width
    if not 0 < rows < width:
        return Interval(share, math.nan, math.nan)
    low, high = (float(betaincinv(rows / 2, (width - rows) / 2, p)) for p in (0.025, 0.975))
    return Interval(share, low, high)


def _width(view: View) -> float:
    """Of the residual stream."""
    vectors = table(view.run.baseline.get("vectors"))
    models = (vectors.get("model"), view.run.header.get("model"))
    widths = (number(table(model).get("width")) for model in models)
    return next((width for width in widths if math.isfinite(width)), math.nan)


def _percent(share: float) -> str:
    return f"{number_text(100 * share, '', 1)} %"
