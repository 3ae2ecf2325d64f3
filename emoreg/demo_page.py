"""The page of a demo: three arms compared in one HTML file; sentences follow the intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

from markupsafe import Markup

from emoreg import charts
from emoreg.charts import ROLES, TEST_MEAN, Interval
from emoreg.errors import ReportError
from emoreg.pages import write_page

ARMS = ("baseline", "story_only", "emoreg")  # the first is what the others are compared with
KINDS: dict[Any, str] = {Real: "number", str: "text", Sequence: "list"}
FEW = 12  # problems that an error lists before it only counts
ALT = {
    "control": "Scatter plot: drift on penalised against held-out directions, as in tables 2 and 3",
    "shares": "Dot plot: gamed share by task family, as in table 1",
    "forest": "Forest plot: drift of every emotion with its interval, as in table 2",
    "wheel": "Emotion wheel: drift of every emotion as a disc, as in table 2",
    "curves": "Line chart: task loss and reading by training step",
}


@dataclass(frozen=True)
class Arm:
    """One trained model, as the page needs it."""

    key: str
    raw: Mapping[str, Any]
    held: Mapping[str, Interval]  # emotion -> drift on the held-out directions, σ
    own: Mapping[str, Interval]  # emotion -> drift on the penalised directions, σ
    shares: Mapping[str, Interval]  # family or `TEST_MEAN` -> gamed share

    def penalises(self, emotion: str) -> bool:
        """Whether the loss pushed on this emotion; weight 0 only measures."""
        return bool(self.raw["weights"]["penalize"].get(emotion))

    def movers(self, side: str) -> list[str]:
        """Emotions whose held-out interval lies on that side of 0, largest drift first."""
        found = [e for e, drift in self.held.items() if drift.side == side]
        return sorted(found, key=lambda e: -abs(self.held[e].mean))


def write_report(summary: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a demo run; an older file is replaced whole or not at all.

    Args:
        summary: The content of the run's ``summary.json``.
        path: The HTML file; missing folders are made.

    Raises:
        ReportError: Keys are missing or hold something else; the message names them.
    """
    if problems := list(_problems(summary, _shape(summary))):
        more = [f"and {len(problems) - FEW} more"] if len(problems) > FEW else []
        raise ReportError(
            "The summary of the run does not hold what the report needs:\n  - "
            + "\n  - ".join([*problems[:FEW], *more])
            + "\nRun `make demo` again: it writes runs/demo/summary.json with all of them."
        )
    return write_page("demo.html.j2", _context(summary), FILTERS, path)


def verdict(held: Interval, own: Interval, free: Interval) -> str:
    """Whether the control of an emotion held, in one label.

    Args:
        held: Drift on held-out directions under the control.
        own: Drift under the control on the directions that it pushes on.
        free: Drift on held-out directions without control.
    """
    if "unknown" in (held.side, own.side, free.side):
        return "not measured"
    if free.side != "up":
        return "nothing to hold"
    if held.high < free.low:
        return {"up": "partly held", "flat": "held"}.get(held.side, "held, below base")
    if held.side != "up":
        return "inconclusive"
    return {"down": "evaded", "flat": "missed"}.get(own.side, "not held")


def compare(one: Interval, other: Interval) -> str:
    """``above`` or ``below`` the other, ``not told apart from`` it where the intervals meet."""
    if not math.isfinite(sum((*one, *other))):
        return "not comparable with"
    if one.low > other.high:
        return "above"
    return "below" if one.high < other.low else "not told apart from"


def number_text(value: float | None, sign: str = "", digits: int = 2) -> str:
    """A number, with a plus sign if `sign` is ``+``; a dash for one that is not there."""
    number = _number(value)
    if not math.isfinite(number):
        return "–"
    return f"{round(number, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def drift_text(drift: Interval, unit: str = " σ") -> str:
    """A drift with its interval."""
    mean, low, high = (number_text(x, "+") for x in drift)
    return f"{mean}{unit} [{low}, {high}]" if drift.side != "unknown" else "–"


def share_text(share: Interval) -> str:
    """A gamed share, with its interval where there is one."""
    mean, low, high = map(number_text, share)
    return f"{mean} [{low}, {high}]" if share.low < share.high else mean


FILTERS: dict[str, Callable[..., str]] = {
    "number": number_text,
    "drift": drift_text,
    "share": share_text,
}


def _context(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows: runs, labels, counts and charts."""
    arms = [_arm(key, summary[key], list(summary["emotions"])) for key in ARMS]
    base = _shares(summary["base"]["gamed"])
    target = _target(arms)
    sides = [drift.side for arm in arms for drift in arm.held.values() if drift.side != "unknown"]
    return {
        "run": summary,
        "arms": arms,
        "base": base,
        "target": target,
        "labels": {arm.key: _label(arm, arms[0], target) for arm in arms},
        "compare": compare,
        "roles": ROLES,
        "test_mean": TEST_MEAN,
        "measured": len(sides),
        "apart": sum(side != "flat" for side in sides),
        "disc": charts.disc_unit({arm.key: arm.held for arm in arms}),
        "figures": _figures(summary, arms, base, target),
    }


def _label(arm: Arm, free: Arm, target: str) -> str:
    """The verdict of a control; for a run without one, what happened."""
    held = arm.held[target]
    if arm.penalises(target):
        return verdict(held, arm.own[target], free.held[target])
    return {"up": "rose", "down": "fell", "flat": "no drift shown"}.get(held.side, "not measured")


def _target(arms: Sequence[Arm]) -> str:
    """The emotion that is penalised most in any arm; the controls are judged on it."""
    weights: dict[str, float] = {
        emotion: _number(weight)
        for arm in arms
        for emotion, weight in arm.raw["weights"]["penalize"].items()
        if weight and emotion in arm.held
    }
    if not weights:
        raise ReportError(
            "No arm's weights.penalize gives an emotion of the summary a weight above 0, so there "
            "is no control to judge. Give emoreg.weights.penalize, for example {'desperate': 0.1}."
        )
    return max(weights, key=lambda e: weights[e])


def _arm(key: str, raw: Mapping[str, Any], emotions: Sequence[str]) -> Arm:
    """One arm of the summary."""
    held, own = (
        {
            e: Interval(*(_number(raw[name][e][end]) for end in ("mean", "low", "high")))
            for e in emotions
        }
        for name in ("drift", "drift_penalised")
    )
    return Arm(key, raw, held, own, _shares(raw["gamed"]))


def _shares(gamed: Mapping[str, Any]) -> dict[str, Interval]:
    """Gamed share by family and over the test families; base may come without an interval."""
    mean = _number(gamed["out_of_domain"])
    low, high = map(_number, gamed.get("out_of_domain_interval", (mean, mean))[:2])
    families = {f: Interval(_number(x), math.nan, math.nan) for f, x in gamed["by_family"].items()}
    return {**families, TEST_MEAN: Interval(mean, low, high)}


def _number(value: Any) -> float:
    """A number of the summary; JSON has null where a measurement failed."""
    return math.nan if value is None else float(value)


def _figures(
    summary: Mapping[str, Any], arms: Sequence[Arm], base: Mapping[str, Interval], target: str
) -> dict[str, Markup]:
    """Every chart as SVG; those with panels twice, for a wide and for a narrow page."""
    titles = {arm.key: str(arm.raw["title"]) for arm in arms}
    shares = {"base": base, **{arm.key: arm.shares for arm in arms}}
    held = {arm.key: arm.held for arm in arms}
    places = {e: (at["valence"], at["arousal"]) for e, at in summary["emotions"].items()}
    curves = _curves(arms, target)
    own = {arm.key: arm.own[target] for arm in arms}
    drawn = {"control": charts.control_map(own, {k: held[k][target] for k in held}, titles)}
    for page, wide in (("wide", True), ("narrow", False)):
        drawn[f"shares-{page}"] = charts.gamed_shares(
            summary["families"], shares, {"base": "base", **titles}, wide
        )
        drawn[f"forest-{page}"] = charts.forest(held, titles, target, wide)
        drawn[f"wheel-{page}"] = charts.emotion_wheel(places, held, titles, wide)
        if curves:
            drawn[f"curves-{page}"] = charts.training_curves(curves, titles, wide)
    return {
        name: Markup(charts.inline_svg(figure, name, ALT[name.split("-")[0]]))
        for name, figure in drawn.items()
    }


def _curves(arms: Sequence[Arm], target: str) -> dict[str, charts.Curves]:
    """Task loss and the target's reading by step; without what no arm logged."""
    wanted = {
        "task loss": ("loss", "emoreg/weighted", "emoreg/loss"),
        f"reading of {target}, σ": (f"emoreg/reading/{target}",),
    }
    curves = {
        title: {arm.key: _series(arm.raw.get("history") or (), *keys) for arm in arms}
        for title, keys in wanted.items()
    }
    return {
        title: lines
        for title, lines in curves.items()
        if any(map(math.isfinite, chain.from_iterable(values for _, values in lines.values())))
    }


def _series(
    history: Sequence[Mapping[str, Any]], key: str, *less: str
) -> tuple[list[float], list[float]]:
    """Steps and values of a logged key, minus the first of `less` that was logged with it."""
    rows = [row for row in history if key in row]
    minus = [next((row[name] for name in less if row.get(name) is not None), 0.0) for row in rows]
    values = [_number(row[key]) - part for row, part in zip(rows, minus, strict=True)]
    return [_number(row.get("step")) for row in rows], values


def _shape(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What must be where: a mapping's keys, a list's items, a type, or the allowed values."""
    families, emotions = (
        list(found) if isinstance(found := summary.get(name), Mapping) else []
        for name in ("families", "emotions")
    )
    gamed = {"in_domain": Real, "out_of_domain": Real, "by_family": dict.fromkeys(families, Real)}
    drift = dict.fromkeys(emotions, dict.fromkeys(("mean", "low", "high"), Real))
    readings = dict.fromkeys(("held_out", "penalised", "base", "base_penalised"), Real)
    arm = {
        **dict.fromkeys(("title", "what"), str),
        **dict.fromkeys(("task_loss", "success", "step_seconds", "step_seconds_spread"), Real),
        "gamed": {**gamed, "out_of_domain_interval": {0: Real, 1: Real}},
        "reading": dict.fromkeys(emotions, readings),
        **dict.fromkeys(("drift", "drift_penalised"), drift),
        "weights": {"penalize": {}, "reward": {}, "facets": Sequence},
    }
    return {
        **dict.fromkeys(("model", "model_organism", "vectors"), str),
        **dict.fromkeys(("seconds", "seed", "steps"), Real),
        "families": dict.fromkeys(families, tuple(ROLES)),
        "emotions": dict.fromkeys(emotions, dict.fromkeys(("valence", "arousal"), Real)),
        "base": {"task_loss": Real, "gamed": gamed},
        **dict.fromkeys(ARMS, arm),
    }


def _problems(found: Any, shape: Any, where: str = "the summary") -> Iterator[str]:
    """Every place where what was found is not of the shape."""
    if isinstance(found, list) and isinstance(shape, dict):
        found = dict(enumerate(found))
    if isinstance(shape, dict) and isinstance(found, Mapping):
        for key, inner in shape.items():
            path = f"{where}.{key}".removeprefix("the summary.")
            if key in found:
                yield from _problems(found[key], inner, path)
            else:
                yield f"{path} is missing"
    elif isinstance(shape, dict):
        yield f"{where} is {found!r:.40}, not a mapping"
    elif isinstance(shape, tuple):
        if found not in shape:
            yield f"{where} is {found!r:.40}, not one of {', '.join(shape)}"
    elif not isinstance(found, shape) and not (found is None and shape is Real):
        yield f"{where} is {found!r:.40}, not a {KINDS[shape]}"
