"""Alerts go off when, and only when, a value has been beyond its threshold for long enough."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from typing import Any

import pytest

from emoreg.alerting import AlertCallback, Alerts
from emoreg.alerts import Alert, Fired, check, parse
from emoreg.errors import ConfigError, TrainerError

NAME, KEY = "reading/desperate", "emoreg/reading/desperate"
ROW = {
    "emotion": "desperate", "end": "highest", "reading": 2.5, "side": None,
    "prompt": "Nothing works.", "tokens": ["I", " will", "\n\x1b[31m", " cheat"],
    "readings": [0.1, 2.0, 3.0, 4.9],
}  # fmt: skip
HEAVY = ("torch", "transformers", "emoreg.metrics")
CALLED: list[Fired] = []


def keep(fired: Fired) -> None:
    CALLED.append(fired)


def seen(alert: Alert, values: list[float | None]) -> list[int]:
    """The places of a sequence at which an alert goes off."""
    alerts = Alerts([alert])
    return [i for i, v in enumerate(values) if alerts.see(i, {} if v is None else {KEY: v})]


def by_hand(values: list[float | None], threshold: float, patience: int, sign: int) -> list[int]:
    """The first place by definition: the last `patience` values that count are all beyond."""
    for i, value in enumerate(values):
        so_far = [v for v in values[: i + 1] if v is not None and math.isfinite(v)]
        last = so_far[-patience:]
        counts = value is not None and math.isfinite(value)
        if counts and len(last) == patience and all(sign * (v - threshold) > 0 for v in last):
            return [i]
    return []


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_it_goes_off_once_where_the_definition_says(patience: int, below: bool) -> None:
    draw, wentoff = random.Random(patience), 0
    alert = Alert(NAME, 0.2, patience, below=below)
    for _ in range(200):
        values = [draw.choice([*[draw.gauss(0.2, 1)] * 5, None, math.nan, 0.2]) for _ in range(15)]
        wanted = by_hand(values, 0.2, patience, -1 if below else 1)
        assert seen(alert, values) == wanted
        wentoff += len(wanted)
    assert 20 < wentoff <= 200  # control: some do, and those once
    if patience > 1:
        assert wentoff < 200  # control: not all are patient enough


def test_a_line_without_the_value_neither_counts_nor_interrupts() -> None:
    alert = Alert(NAME, 1.0, 3)
    assert seen(alert, [2.0, None, 2.0, math.nan, math.inf, 2.0]) == [5]
    assert seen(alert, [2.0, 2.0, 0.5, 2.0, 2.0]) == []  # control: a value under it does interrupt


def test_what_went_off_knows_its_value_and_since_when() -> None:
    alerts = Alerts([Alert(NAME, 1.0, 2), Alert(NAME, 5.0), Alert("drift/calm", -1.0, below=True)])
    lines = [(10, 0.0), (20, 1.5), (25, 0.5), (30, 2.0), (40, 3.0), (50, 9.0)]
    found = [f for step, v in lines for f in alerts.see(step, {KEY: v})]
    assert [(f.step, f.value, f.since, f.alert.threshold) for f in found] == [
        (40, 3.0, 30, 1.0),
        (50, 9.0, 50, 5.0),
    ]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (NAME, KEY),
        (KEY, KEY),
        ("eval_emoreg/reading/calm", "eval_emoreg/reading/calm"),
        ("eval_hard_emoreg/reading/calm", "eval_hard_emoreg/reading/calm"),
        ("tight/reading/calm", "emoreg/tight/reading/calm"),  # of a regularizer with a name
        ("drift_mean_abs", "emoreg/drift_mean_abs"),
    ],
)
def test_a_name_is_a_logged_key_with_or_without_its_prefix(name: str, key: str) -> None:
    assert Alert(name, 1.0).key == key
    assert Alerts([Alert(name, 1.0)]).see(1, {key: 2.0})
    assert not Alerts([Alert(name, 1.0)]).see(1, {key + "x": 2.0})  # control


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, []),
        ({}, []),
        ({NAME: 2.0}, [Alert(NAME, 2.0)]),
        ({NAME: {"above": 2}}, [Alert(NAME, 2.0)]),
        ({"drift/calm": {"below": -1}}, [Alert("drift/calm", -1.0, below=True)]),
        (
            {NAME: [1.0, {"above": 2.0, "patience": 3, "action": "stop"}]},
            [Alert(NAME, 1.0), Alert(NAME, 2.0, 3, "stop")],
        ),
        ({NAME: {"above": 1, "action": keep}}, [Alert(NAME, 1.0, action=keep)]),
        ([Alert(NAME, 2.0)], [Alert(NAME, 2.0)]),
    ],
)
def test_alerts_are_parsed_from_mappings_and_json_alike(value: Any, wanted: list[Alert]) -> None:
    assert parse(value) == wanted
    assert check(value) == []
    if not isinstance(value, list) and all(a.action is not keep for a in wanted):
        assert parse(json.dumps(value)) == wanted


def test_a_function_of_a_module_is_imported_when_the_alert_is_made() -> None:
    (alert,) = parse({NAME: {"above": 1.0, "action": "test_alerts:keep"}})
    assert alert.call is sys.modules["test_alerts"].keep
    assert Alert(NAME, 1.0).call is Alert(NAME, 1.0, action="stop").call is None


def test_everything_that_is_wrong_is_listed_together() -> None:
    wrong = {
        "readin/desperate": 2.0,
        "reading/calm": {"above": 1, "below": 2},
        "reading/happy": {"patience": 3},
        "reading/afraid": {"above": "high", "patience": 0, "after": 3},
        "top/calm": {"above": 1, "patience": True},
        "max/calm": {"above": math.nan},
        "drift/calm": {"above": 1, "action": "shout"},
        "drift/happy": {"above": 1, "action": "no_such_module:f"},
        "drift/afraid": {"above": 1, "action": "math:no_such_function"},
        "keep": {"above": 1, "action": "math:pi"},
        "loss": [1.0, "one"],
    }
    wanted = [
        "'readin/desperate': no such metric is logged; nearest: reading",
        "'reading/calm' needs `above` or `below`",
        "'reading/happy' needs `above` or `below`",
        "'reading/afraid': unknown 'after'",
        "'top/calm': patience is a whole number of log lines >= 1, got True",
        "'max/calm': the threshold must be a finite number, got nan",
        "'drift/calm': action is 'shout'",
        "'drift/happy': 'no_such_module:f' cannot be imported",
        "'drift/afraid': 'math:no_such_function' cannot be imported",
        "'keep': 'math:pi' is a float, not a function",
        "'loss': the threshold must be a finite number, got 'one'",
    ]
    problems = check(wrong)
    assert len(problems) == len(wanted)
    for problem, part in zip(problems, wanted, strict=True):
        assert part in problem
    with pytest.raises(ConfigError) as raised:
        parse({**wrong, NAME: 2.0})
    assert all(problem in str(raised.value) for problem in problems)
    assert check("{not json")[0].startswith("alerts are not JSON")
    assert check([1.0])[0].startswith("alerts must map names")


def test_an_alert_made_by_hand_is_checked_alike() -> None:
    with pytest.raises(ConfigError, match=r"no such metric(.|\n)*patience"):
        Alert("nonsense", 1.0, patience=0)
    with pytest.raises(TrainerError):
        AlertCallback(object(), {NAME: 1.0})


def test_the_parsing_needs_no_trainer_library() -> None:
    code = f"import sys, emoreg.alerts; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.strip() == "['emoreg.metrics']"  # control: what it does import is found


@pytest.mark.parametrize(
    ("alert", "said"),
    [
        (Alert(NAME, 2.0, 3, "stop"), ["2.5 σ", "in 3 log lines running, since step 20", "stops"]),
        (Alert("drift/calm", -1.0, below=True), ["below the threshold of -1", "base", "goes on"]),
        (Alert("excess/calm", 1.0, action=keep), ["same tokens", "function you gave"]),
        (Alert("norm", 30.0), ["emoreg/norm is 2.5 at step 40, above the threshold of 30. Tr"]),
    ],
)
def test_the_message_says_what_was_seen_what_it_means_and_what_happens(
    alert: Alert, said: list[str]
) -> None:
    message = Fired(alert, 40, 2.5, 20).message
    assert message.startswith(alert.key)
    assert "step 40" in message
    for part in said:
        assert part in message
    assert "text that set it off" not in message  # there is none
    if alert.name == NAME:
        assert "no feeling" in message
        assert "text that set it off" in Fired(alert, 40, 2.5, 20, ROW).message
