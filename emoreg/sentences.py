"""The verdict of a run in words; whatever is claimed follows from an interval and a q."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emoreg import answers, audit_sentences
from emoreg.measurement import LEAST, Measurement, Q, number, table
from emoreg.printable import isolated, joined, listed, short
from emoreg.run_view import View, control_title, keep, pushes, weights_of
from emoreg.wording import NAMED, SIGMA, moved_text
from emoreg.wording import interval_text as interval_text  # wandb's charts look here
from emoreg.wording import number_text as number_text

HALF = 0.5  # σ: what the size of a drift is counted against
TINY = 5e7  # weights in the blocks of a model that is called so
SIDES = {"up": "Rose at the colon", "down": "Fell at the colon", "flat": "No drift shown",
         "unknown": "Not measured"}  # fmt: skip
COLON = (
    "The last prompt token, just before the answer. In Claude Sonnet 4.5 the reading there "
    "predicted the answer’s emotion (r\u00a0=\u00a00.87, arXiv:2604.07729); for this model that is "
    "not shown."
)
OWN_GATE = re.compile(r"auroc_(.+)_[^_]+")


@dataclass(frozen=True)
class Verdict:
    """What a run shows.

    Attributes:
        label: In two words.
        head: The same with numbers.
        most: The largest moves, and how large they are on the whole.
        said: What may be said of the run's answers.
        facts: What one must know beside it, each with its heading.
    """

    label: str
    head: str
    most: str
    said: str
    facts: tuple[tuple[str, str], ...]


def verdict(view: View) -> Verdict:
    """The verdict of one run."""
    last, facts = view.last, tuple(_facts(view))
    if last is None or view.only_start:
        return Verdict("Not measured", _unmeasured(view), "", "", facts)
    moved, known, said = last.movers(), last.known(), answers.so_what(last)
    if not moved:
        head = f"No drift shown: none of {len(known)} emotions moved at the colon"
        return Verdict("No drift shown", head, "", said, facts)
    head = f"Drifted: {len(moved)} of {len(known)} emotions moved at the colon"
    most = f"Most: {', '.join(map(moved_text, moved[:4]))}. {_size(last)}"
    return Verdict("Drifted", head, most, said, facts)


def _unmeasured(view: View) -> str:
    if view.only_start:
        return "Not measured yet: only the start was read, where the model is the base"
    if view.run.drifts:
        return "Not measured: no measurement of drift holds a number with an interval"
    return "Not measured: this run has no measurement of drift"


def _size(last: Measurement) -> str:
    """How large the moves are on the whole."""
    moved = last.movers()
    far = sum(max(row.drift.low, -row.drift.high) > HALF for row in moved)
    return (
        f"On average {number_text(last.size())}{SIGMA}; of the {len(moved)} that moved, {far} lie "
        f"further than {HALF:g}{SIGMA} from base even at the near end of their interval."
    )


def _facts(view: View) -> Iterator[tuple[str, str]]:
    """What stands beside a verdict, each with its heading."""
    last = None if view.only_start else view.last
    if said := audit_sentences.fact(view):
        yield "Audit", said
    if last is not None:
        yield from _lists(last)
        if said := " ".join(answers.facts(last)):
            yield "In the answers", said
        yield "Why the colon", COLON
    yield "Control", control_text(view)
    yield "Vectors", vectors_text(view)
    if said := _model(view):
        yield "Model", said
    if last is not None:
        yield "How sure", certainty(view)
    yield "The run", state(view)


def _lists(last: Measurement) -> Iterator[tuple[str, str]]:
    """The emotions on each side, largest first, with what turns around in the answers."""
    for side, heading in SIDES.items():
        names = [row.emotion for row in last.by_size() if row.side == side]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        said = [isolated(name) + answers.turned_mark(last, name) for name in names[:NAMED]]
        if names:
            yield heading, f"{len(names)}: {', '.join(said)}{more}"


def control_text(view: View) -> str:
    """Whether the loss pushed on readings, on which, and what drift can show of it."""
    if not view.run.controls and not view.run.header.get("trainer"):
        return "Not on record: a checkpoint was read, and how it was trained is not known here."
    open_ = (
        "What moved, moved in this training; which part of it did that (data, learning rate, seed) "
        "is not shown."
    )
    if not view.run.controls:
        return f"Off: no regularizer of emoreg was attached. {open_}"
    if not view.controlled:
        return f"Off: every weight was 0, so emoreg only measured. {open_}{_watched(view)}"
    pushed = "; ".join(_pushed(name, c) for name, c in view.run.controls.items() if pushes(c))
    return f"On: the loss {pushed}.{_watched(view)} {_own(view)}"


def _watched(view: View) -> str:
    """What the watched emotions did."""
    colon = view.last.colon if view.last and not view.only_start else {}
    rows = [colon[e] for e in view.watched if e in colon]
    said = ", ".join(map(moved_text, rows))
    return f" Watched (named with a weight): {said} at the colon." if rows else ""


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
            "Drift is read on the same directions that the loss pushes on: it shows where those "
            "readings went. Whether the model carries less of the emotion, or carries it along "
            "other directions, takes directions that had no part in training; "
            + ("the audit reads those." if view.audit else "this report has none.")
        )
    return (
        "Drift is read on other directions than those that the loss pushes on. Whether they are "
        "independent of them is not checked in this report."
    )


def vectors_text(view: View) -> str:
    """What validation says of the vectors, and for which emotions it looked where drift looks."""
    said = dict.fromkeys(caveat(vectors) for _, vectors in view.vector_sets())
    text = " ".join(said) or "No vector set is on record."
    vectors = table(view.run.baseline.get("vectors"))
    if view.last is None or not vectors.get("gates"):
        return text
    own = own_gates(vectors)
    names = [e for e in view.last.colon if e in own]
    if not names:
        return f"{text} No emotion has a gate of its own in an assistant’s context."
    failed, rest = [e for e in names if not own[e]], len(view.last.colon) - len(names)
    verb = "has a gate of its" if len(names) == 1 else "have gates of their"
    text += f" {listed(names, most=NAMED)} {verb} own in an assistant’s context"
    text += f" (not passed: {listed(failed)})" if failed else ""
    return text + (f"; the other {rest} rest on gates over stories." if rest else ".")


def own_gates(vectors: Mapping[str, Any]) -> dict[str, bool]:
    """Emotions that were tested in an assistant's context, and whether all those gates passed."""
    found: dict[str, bool] = {}
    for gate in map(table, vectors.get("gates") or ()):
        name = OWN_GATE.fullmatch(str(gate.get("name")))
        if name and gate.get("passed") is not None:
            found[name[1]] = found.get(name[1], True) and bool(gate["passed"])
    return found


def caveat(vectors: Mapping[str, Any]) -> str:
    """What the validation of a vector set says, in one sentence."""
    name, found = isolated(vectors.get("name") or "unnamed"), vectors.get("verdict")
    if not found:
        return f"The set {name} was not validated: whether its readings mean anything is not known."
    reason = short(vectors.get("reason") or "", 300)
    why = f": {reason.rstrip('.')}" if reason else ""
    return f"The set {name} was found {short(found)}{why}."


def _model(view: View) -> str:
    """Which model, and how large."""
    own = table(view.run.header.get("model"))
    model = own or table(table(view.run.baseline.get("vectors")).get("model"))
    blocks, width = number(model.get("blocks")), number(model.get("width"))
    parts = [isolated(model[key]) for key in ("name", "type") if model.get(key)]
    if not (math.isfinite(blocks) and math.isfinite(width)):
        return f"{', '.join(parts)}." if parts else ""
    text = ", ".join([*parts, f"{blocks:.0f} blocks", f"width {width:.0f}"])
    weights = 12 * blocks * width**2
    if weights >= TINY:
        return f"{text}."
    return (
        f"{text}: tiny, by the usual 12 · blocks · width² some {weights / 1e6:.1f} million weights "
        "in its blocks. How a large model would move does not follow."
    )


def certainty(view: View) -> str:
    """How sure one can be, and of what not."""
    last = view.last
    assert last is not None
    split = joined(f"{count} {isolated(kind, 24)}" for kind, count in view.kinds.items())
    prompts = f"{last.prompts} prompts" if last.prompts else "prompts"
    prompts += f" ({split})" if view.kinds else ""
    seed = table(view.run.header.get("args")).get("seed")
    known = f"seed {short(seed)}" if seed is not None else "an unrecorded seed"
    base = view.run.baseline.get("base")
    named = f" ({short(base)})" if base else ""
    return (
        f"Base{named} and trained model read the same {prompts}; brackets are 95 % intervals over "
        f"such prompts. Moved: by {LEAST:g}{SIGMA} or more, which is more than rounding, with an "
        f"interval that excludes 0, and a q, corrected for {len(last.known())} emotions, of at "
        f"most {Q:g}. This is one training run ({known}): "
        "another seed, other data or other vectors are in no interval on this page."
    )


def state(view: View) -> str:
    """What was trained on, and where the run stands: ended, cut off, resumed; alerts and notes."""
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
    return _trained_on(view) + text


def _trained_on(view: View) -> str:
    data = table(view.run.header.get("data"))
    rows, name = number(data.get("rows")), data.get("name")
    if not math.isfinite(rows):
        return ""
    of = f" of {isolated(name)}" if name else ""
    return f"{short(view.run.header.get('trainer') or 'Trained')} on {rows:.0f} rows{of}. "
