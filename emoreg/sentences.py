"""The verdict of a run in words; whatever is claimed follows from an interval and a q."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emoreg.charts import Interval
from emoreg.measurement import Measurement, Moved, number, table
from emoreg.printable import isolated, short
from emoreg.run_view import View, control_title, keep, pushes, weights_of

HALF = 0.5  # σ: what the size of a drift is counted against
SIGMA = "\u00a0σ"  # a line does not break before it
NAMED = 12  # emotions that a list names before it only counts
SIDES = {
    "up": "Rose",
    "down": "Fell",
    "flat": "No drift shown",
    "unknown": "Not measured",
}


@dataclass(frozen=True)
class Verdict:
    """What a run shows: a label, the same with numbers, and what one must know beside it."""

    label: str
    head: str
    most: str
    facts: tuple[tuple[str, str], ...]


def number_text(value: float | None, sign: str = "", digits: int = 2) -> str:
    """A number, with a plus sign if `sign` is ``+``; a dash for one that is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def interval_text(found: Interval, unit: str = "", sign: str = "+") -> str:
    """A value with its 95 % interval, or alone where it has none."""
    mean, low, high = (number_text(x, sign) for x in found)
    if not math.isfinite(found.mean):
        return "–"
    return f"{mean}{unit} [{low},\u00a0{high}]" if found.side != "unknown" else f"{mean}{unit}"


def verdict(view: View) -> Verdict:
    """The verdict of one run."""
    last = view.last
    if last is None or view.only_start:
        return Verdict("Not measured", _unmeasured(view), "", tuple(_facts(view)))
    moved, known = last.movers(), last.known()
    if not moved:
        head = f"No drift shown: none of {len(known)} emotions moved"
        return Verdict("No drift shown", head, "", tuple(_facts(view)))
    head = f"Drifted: {len(moved)} of {len(known)} emotions moved"
    most = f"Most: {_moves(moved[:4])}. {_far(last)}"
    return Verdict("Drifted", head, most, tuple(_facts(view)))


def moved_text(row: Moved) -> str:
    """One emotion's drift in words."""
    name = isolated(row.emotion)
    if row.side in ("up", "down"):
        verb = "rose" if row.side == "up" else "fell"
        return f"{name} {verb} {interval_text(row.drift, SIGMA)}"
    if row.side == "flat":
        return f"{name} shows no drift {interval_text(row.drift, SIGMA)}"
    return f"{name} was not measured"


def _moves(rows: Sequence[Moved]) -> str:
    return ", ".join(map(moved_text, rows))


def _unmeasured(view: View) -> str:
    if view.only_start:
        return "Not measured yet: only the start was read, where the model is the base"
    if view.run.drifts:
        return "Not measured: no measurement of drift holds a number with an interval"
    return "Not measured: this run has no measurement of drift"


def _facts(view: View) -> Iterator[tuple[str, str]]:
    """What stands beside a verdict, each with its heading."""
    if view.last is not None and not view.only_start:
        yield from _lists(view.last)
        yield "How far", _size(view.last)
    yield "Control", control_text(view)
    yield (
        "Vectors",
        " ".join(dict.fromkeys(caveat(v) for _, v in view.vector_sets()))
        or ("No vector set is on record."),
    )
    if view.last is not None and not view.only_start:
        yield "How sure", certainty(view)
    yield "The run", state(view)


def _lists(last: Measurement) -> Iterator[tuple[str, str]]:
    """The emotions on each side, largest first."""
    for side, heading in SIDES.items():
        names = [row.emotion for row in last.by_size() if row.side == side]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        if names:
            yield heading, f"{len(names)}: " + ", ".join(map(isolated, names[:NAMED])) + more


def _size(last: Measurement) -> str:
    """How large the moves are, and what the unit is."""
    mean = number_text(last.stats["mean_abs"].mean) if "mean_abs" in last.stats else "–"
    text = (
        f"Mean absolute drift {mean} σ over {len(last.known())} emotions. 1 σ is one standard "
        "deviation of the same reading over neutral text."
    )
    for place, where in (("response", "On fixed responses"), ("own", "In its own responses")):
        if last.known(place):
            moved = last.movers(place=place)
            text += f" {where} {len(moved)} of {len(last.known(place))} moved"
            other = sum({r.side, last.colon[r.emotion].side} == {"up", "down"} for r in moved
                        if r.emotion in last.colon)  # fmt: skip
            text += f", {other} of them the other way than at the colon." if other else "."
    return text


def _far(last: Measurement) -> str:
    """How many lie far from the base with their whole interval."""
    number = sum(max(row.drift.low, -row.drift.high) > HALF for row in last.movers())
    return f"{number} of them moved by more than half a σ with their whole interval."


def control_text(view: View) -> str:
    """Whether the loss pushed on readings, on which, and what drift can show of it."""
    if not view.run.controls:
        return (
            "Off: no regularizer of emoreg was attached, so whatever moved was moved "
            "by the training itself."
        )
    if not view.controlled:
        return (
            "Off: only measured. Every weight was 0, so emoreg added nothing to the loss, and "
            f"whatever moved was moved by the training itself.{_watched(view)}"
        )
    pushed = "; ".join(_pushed(name, c) for name, c in view.run.controls.items() if pushes(c))
    return f"On: the loss {pushed}.{_watched(view)} {_own(view)}"


def _watched(view: View) -> str:
    """What the watched emotions did."""
    colon = view.last.colon if view.last and not view.only_start else {}
    rows = [colon[e] for e in view.watched if e in colon]
    return f" Watched: {_moves(rows)}." if rows else ""


def _pushed(name: str, control: Mapping[str, Any]) -> str:
    """What one regularizer added to the loss."""
    words = {"penalize": "penalised", "reward": "rewarded"}
    parts = [
        f"{words[kind]} {isolated(emotion)} (weight {weight:g})"
        for kind, emotion, weight in weights_of(control)
        if weight > 0
    ]
    if keep(control) > 0:
        parts.append(f"kept the other emotions near the base (weight {keep(control):g})")
    said = " and ".join(parts)
    return f"{said} in {control_title(name)}" if name else said


def _own(view: View) -> str:
    """What drift can say of a control."""
    if not view.run.baseline:
        return "Whether that changed readings outside training was not measured."
    if view.own_directions:
        return (
            "Drift here is read on the same directions that the loss pushes on. It shows where "
            "those readings went. It cannot show whether the model carries less of the emotion or "
            "carries it along other directions: that takes directions that had no part in "
            "training, and this report has none."
        )
    return (
        "Drift here is read on other directions than those that the loss pushes on. Whether they "
        "are independent of them is not checked in this report."
    )


def caveat(vectors: Mapping[str, Any]) -> str:
    """What the validation of a vector set says, in one sentence."""
    name, found = isolated(vectors.get("name") or "unnamed"), vectors.get("verdict")
    if not found:
        return f"The set {name} was not validated: whether its readings mean anything is not known."
    reason = short(vectors.get("reason") or "", 300)
    why = f": {reason.rstrip('.')}" if reason else ""
    return f"The set {name} was found {short(found)}{why}."


def certainty(view: View) -> str:
    """How sure one can be, and of what not."""
    last, asked = view.last, table(view.run.baseline.get("prompts"))
    assert last is not None
    kinds = [f"{asked[k]} {k}" for k in ("neutral", "challenging") if asked.get(k)]
    split = f" ({', '.join(map(str, kinds))})" if kinds else ""
    prompts = f"{last.prompts} prompts{split}" if last.prompts else "prompts"
    seed = table(view.run.header.get("args")).get("seed")
    known = f"seed {short(seed)}" if seed is not None else "an unrecorded seed"
    base = view.run.baseline.get("base")
    named = f" ({short(base)})" if base else ""
    return (
        f"Base{named} and trained model read the same {prompts}. Brackets are 95 % intervals over "
        "such prompts. An emotion is said to have moved only if its interval excludes 0 and its "
        f"q, corrected for {len(last.known())} emotions, is at most 0.05. This is one training run "
        f"({known}): what another seed, other data or other vectors would give is in no interval "
        "on this page."
    )


def state(view: View) -> str:
    """Where the run stands: ended, cut off, resumed; alerts and notes."""
    run, last = view.run, view.last
    planned = number(table(run.header.get("args")).get("max_steps"))
    steps = [s for s, _ in run.logs] + [m.step for m in view.drifts]
    if run.end:
        at = number(run.end.get("step"))
        text = f"Ended at step {at:.0f}."
        if planned > at:
            text = f"Ended at step {at:.0f}, before the {planned:.0f} that were planned."
    else:
        text = "Unfinished: still running, or cut off"
        text += f" after step {max(steps)}." if steps else "."
    if number(run.header.get("step")) > 0:
        text += f" Resumed at step {number(run.header['step']):.0f}."
    if last is not None:
        text += f" The last measurement is of step {last.step}."
    for events, one, more in ((run.alerts, "alert", "alerts"), (run.notes, "note", "notes")):
        if events:
            text += f" {len(events)} {one if len(events) == 1 else more}, below."
    return text
