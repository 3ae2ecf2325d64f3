"""Thresholds on what is logged, and what is said when one is passed."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeGuard

from emoreg.errors import ConfigError
from emoreg.files import parse_json
from emoreg.knobs import told
from emoreg.metrics import METRICS, metric_of
from emoreg.printable import short, shown

ACTIONS = ("warn", "stop")
SHOWN = 300  # characters of a text that is quoted
KNOBS = ("above", "below", "patience", "action")
EXAMPLE = '{"reading/desperate": {"above": 2.0, "patience": 3, "action": "stop"}}'
CLAUSES = {  # by the beginning of a metric's name: what it does and does not say, and what to do
    ("drift",): (
        "Drift compares the model with its base on the drift prompts: the report's interval says "
        "how sure the difference is, and nothing here says why.",
        "Compare with the other emotions and with a run of weight 0; then lower the learning rate, "
        "give the emotion a weight, or go back to an earlier checkpoint.",
    ),
    ("excess",): (
        "Excess compares the model with its base on the same tokens, so training did this and not "
        "the data; what the model will do is another matter.",
        "Read {text}; then lower the learning rate or give the emotion a weight.",
    ),
    ("reading", "top", "max", "over_margin"): (
        "A reading says which way the activations point; it is no feeling, and no proof of what "
        "the model does.",
        "Read {text}; then look at excess and drift: if they have not moved, the data are like "
        "this; if they have, the model is changing.",
    ),
}


@dataclass(frozen=True)
class Alert:
    """One threshold, on one logged value; it goes off once in a run.

    Attributes:
        name: A logged key, with or without ``emoreg/``: ``reading/desperate``, ``drift/calm`` …
        threshold: In the metric's own unit, mostly σ.
        patience: How many log lines that hold the name, one after the other, must be beyond the
            threshold. A line without the name, or with a value that is not finite, neither counts
            nor interrupts.
        action: ``warn`` only tells; ``stop`` also ends training in order; a function, or
            ``package.module:function``, is also called, with what went off, in every process.
        below: Whether it goes off under the threshold instead of above it.

    Raises:
        ConfigError: The message lists everything that is wrong.
    """

    name: str
    threshold: float
    patience: int = 1
    action: str | Callable[[Fired], object] = "warn"
    below: bool = False

    def __post_init__(self) -> None:
        found = list(_flaws(self.name, self.threshold, self.patience, self.action))
        if found:
            raise ConfigError("Alert:\n  - " + "\n  - ".join(found))

    @property
    def key(self) -> str:
        """The name as it is logged."""
        return _key(self.name)

    @property
    def call(self) -> Callable[[Fired], object] | None:
        """The function to call, if the action is one."""
        if self.action in ACTIONS:
            return None
        function: Callable[[Fired], object] = (
            pkgutil.resolve_name(self.action) if isinstance(self.action, str) else self.action
        )
        return function

    def beyond(self, value: float) -> bool:
        """Whether a value is beyond the threshold."""
        return value < self.threshold if self.below else value > self.threshold


@dataclass(frozen=True)
class Fired:
    """An alert that went off.

    Attributes:
        alert: Which.
        step: When.
        value: What was logged then.
        since: Step of the first of the lines beyond the threshold.
        text: The completion that set it off, as a row of the journal's ``texts``; None if no text
            is at hand.
    """

    alert: Alert
    step: int
    value: float
    since: int
    text: Mapping[str, Any] | None = None

    @property
    def message(self) -> str:
        """What was seen, since when, what that does and does not mean, and what to do."""
        alert, (metric, unit) = self.alert, metric_of(self.alert.key) or ("", "")
        side, lines = "below" if alert.below else "above", ""
        if alert.patience > 1:
            lines = f" in {alert.patience} log lines running, since step {self.since}"
        ends = {"warn": "Training goes on.", "stop": "Training stops here."}
        words = [
            f"{alert.key} is {self.value:.3g}{' ' + unit if 'σ' in unit else ''} at step "
            f"{self.step},",
            f"{side} the threshold of {alert.threshold:g}{lines}.",
            *(s for kinds, said in CLAUSES.items() if _of(metric, kinds) for s in said),
            ends.get(str(alert.action), "The function you gave is called."),
        ]
        text = "the text that set it off" if self.text else "the run's texts"
        return " ".join(words).replace("{text}", text)

    def event(self) -> dict[str, Any]:
        """The fields of the journal's event, beside its step."""
        return {
            "name": self.alert.key,
            "value": self.value,
            "threshold": self.alert.threshold,
            "above": not self.alert.below,
            "patience": self.alert.patience,
            "since": self.since,
            "action": self.alert.action if self.alert.action in ACTIONS else "call",
            "message": self.message,
            "text": self.text,
        }


def parse(value: Any) -> list[Alert]:
    """Alerts from a configuration.

    Args:
        value: A mapping of names, or the same as JSON, or nothing. Each name has a threshold (to be
            above), or a mapping of `above` or `below`, `patience` and `action`, or a list of such.
            A sequence of alerts is taken as it is.

    Raises:
        ConfigError: The message lists everything that is wrong.
    """
    alerts, problems = _read(value)
    if problems:
        raise ConfigError("Alerts:\n  - " + "\n  - ".join(problems))
    return alerts


def check(value: Any) -> list[str]:
    """Everything that is wrong with alerts from a configuration; see `parse`."""
    return _read(value)[1]


def _read(value: Any) -> tuple[list[Alert], list[str]]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return [], [f"alerts are not JSON: {told(value)}; write them like {EXAMPLE}"]
    if isinstance(value, list | tuple) and all(isinstance(v, Alert) for v in value):
        return list(value), []
    if value is not None and not isinstance(value, Mapping):
        return [], [f"alerts must map names to thresholds, like {EXAMPLE}; got {told(value)}"]
    alerts: list[Alert] = []
    problems: list[str] = []
    for name, given in (value or {}).items():
        for one in given if isinstance(given, list | tuple) else [given]:
            knobs = dict(one) if isinstance(one, Mapping) else {"above": one}
            found = list(_misfits(name, knobs))
            if not found:
                below = "below" in knobs
                threshold = knobs["below" if below else "above"]
                rest = knobs.get("patience", 1), knobs.get("action", "warn")
                found = list(_flaws(name, threshold, *rest))
            if not found:
                alerts.append(Alert(name, float(threshold), *rest, below))
            problems += found
    return alerts, problems


def _misfits(name: Any, knobs: Mapping[str, Any]) -> Iterator[str]:
    unknown = [k for k in knobs if k not in KNOBS]
    if unknown:
        named = ", ".join(map(told, unknown))
        yield f"alert {told(name)}: unknown {named}; known: {', '.join(KNOBS)}"
    if ("above" in knobs) == ("below" in knobs):
        yield f"alert {told(name)} needs `above` or `below`; for both give a list of two"


def _flaws(name: Any, threshold: Any, patience: Any, action: Any) -> Iterator[str]:
    if not isinstance(name, str) or metric_of(_key(name)) is None:
        kinds = sorted({re.split(r"[/{]", m)[1] for m in METRICS})
        sought = _key(str(name)).split("emoreg/")[-1].split("/")[0]
        near = get_close_matches(sought, kinds, n=3) or kinds
        yield f"alert {told(name)}: no such metric is logged; nearest: {', '.join(near)}"
    if not finite(threshold):
        yield f"alert {told(name)}: the threshold must be a finite number, got {told(threshold)}"
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        found = told(patience)
        yield f"alert {told(name)}: patience is a whole number of log lines >= 1, got {found}"
    yield from _action_flaws(name, action)


def _action_flaws(name: Any, action: Any) -> Iterator[str]:
    if action in ACTIONS or callable(action):
        return
    wanted = f"wanted {', '.join(ACTIONS)}, a function, or 'package.module:function'"
    if not isinstance(action, str) or ":" not in action:
        yield f"alert {told(name)}: action is {told(action)}; {wanted}"
        return
    try:
        found = pkgutil.resolve_name(action)
    except (ImportError, AttributeError, ValueError) as e:
        yield f"alert {name!r}: {action!r} cannot be imported ({e}); its folder on PYTHONPATH?"
        return
    if not callable(found):
        yield f"alert {name!r}: {action!r} is a {type(found).__name__}, not a function"


def _key(name: str) -> str:
    return name if re.match(r"(eval_(.+_)?)?emoreg/", name) else f"emoreg/{name}"


def _of(metric: str, kinds: tuple[str, ...]) -> bool:
    return metric.startswith(tuple(f"emoreg/{kind}" for kind in kinds))


def finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, and neither infinite nor NaN."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)


def quoted(row: Mapping[str, Any] | None) -> str:
    """A row of the journal's ``texts`` in one line, to be said after a message; "" for None."""
    if row is None:
        return ""
    text = f"{row.get('prompt') or ''} | {''.join(map(str, row.get('tokens') or ()))}"
    return f" The text: {short(shown(text), SHOWN)}"
