"""A trainer with alerts tells, stops or calls, once, also when it is resumed or runs twice over."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from launch import launch
from test_alerts import CALLED, KEY, NAME, ROW, keep
from trainers import EVERYTHING, PROMPT_FILE, Do, InOrder, logged, make_trainer, make_vectors

from emoreg import boards
from emoreg.alerting import AlertCallback, Alerts
from emoreg.alerts import Alert, Fired, parse
from emoreg.callbacks import DriftCallback
from emoreg.journal import Run
from emoreg.regularizer import EmotionRegularizer


def explode(fired: Fired) -> None:
    raise RuntimeError(f"stopped by hand at {fired.step}")


class Scripted(InOrder):
    """A trainer whose training lines hold given values beside their own."""

    values: dict[int, dict[str, float]] = {}  # noqa: RUF012 - set by every test

    def log(self, logs: dict[str, float], *args: Any) -> None:
        if "loss" in logs:
            logs.update(self.values.get(self.state.global_step, {}))
        super().log(logs, *args)


def scripted(folder: Path, values: list[float | None], **args: Any) -> Any:
    """A trainer that logs one value a step under `KEY`."""
    steps = {i + 1: {} if v is None else {KEY: v} for i, v in enumerate(values)}
    kind = type("Trainer", (Scripted,), {"values": steps})
    return make_trainer(folder, kind=kind, **{"max_steps": len(values), **args})


def watch(trainer: Any, alerts: Any, **more: Any) -> Any:
    trainer.add_callback(AlertCallback(trainer, alerts, **more))
    return trainer


def events(folder: Path) -> list[tuple[int, str, float]]:
    return [(a["step"], a["name"], a["threshold"]) for a in Run.load(folder).alerts]


def test_a_run_that_passes_a_threshold_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Fired] = []
    trainer = scripted(tmp_path, [0.0, 3.0, 2.5, 9.0, 9.0])

    def texts(fired: Fired) -> dict[str, Any]:
        asked.append(fired)
        return ROW

    alerts = {NAME: [{"above": 2.0, "patience": 2}, 50.0]}
    watch(trainer, alerts, texts=texts).train()
    assert trainer.state.global_step == 5
    run = Run.load(tmp_path)
    assert [line.get(KEY) for _, line in run.logs] == [0.0, 3.0, 2.5, 9.0, 9.0, None]
    (found,) = run.alerts
    wanted = Fired(parse(alerts)[0], 3, 2.5, 2, ROW)
    assert found == {"step": 3, **wanted.event()}
    assert found["action"] == "warn"
    assert [(f.step, f.text) for f in asked] == [(3, None)]
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == f"{wanted.message} The text: Nothing works. | I will ␛[31m cheat"


def test_stop_ends_training_in_order_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    ended: list[int] = []
    trainer = scripted(tmp_path, [0.0, 3.0, 3.0, 3.0], save_strategy="steps", save_steps=100)
    trainer.add_callback(Do("on_train_end", lambda **_: ended.append(trainer.state.global_step)))
    watch(trainer, {NAME: {"above": 2.0, "action": "stop"}})
    result = trainer.train()
    assert result.global_step == trainer.state.global_step == 2
    assert ended == [2]
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert Run.load(tmp_path).end["step"] == 2


def test_stop_saves_no_checkpoint_where_none_is_wanted(tmp_path: Path) -> None:
    trainer = watch(scripted(tmp_path, [3.0, 0.0]), {NAME: {"above": 2.0, "action": "stop"}})
    trainer.train()
    assert trainer.state.global_step == 1
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_an_alert_that_goes_off_training_is_the_same(tmp_path: Path) -> None:
    plain, watched = scripted(tmp_path / "a", [3.0] * 3), scripted(tmp_path / "b", [3.0] * 3)
    watch(watched, {NAME: 4.0})
    plain.train()
    watched.train()
    assert logged(plain, "loss") == logged(watched, "loss")
    assert len(logged(plain, "loss")) == 3
    assert events(tmp_path / "b") == []


def test_a_function_is_called_with_what_went_off(tmp_path: Path) -> None:
    CALLED.clear()
    alerts = {NAME: {"above": 2.0, "action": keep}}
    watch(scripted(tmp_path, [3.0, 3.0]), alerts, texts=lambda _: ROW).train()
    (found,) = CALLED
    assert found == Fired(parse(alerts)[0], 1, 3.0, 1, ROW)
    assert Run.load(tmp_path).alerts[0]["action"] == "call"


def test_a_function_that_raises_ends_training_when_all_is_written_down(tmp_path: Path) -> None:
    alerts = {NAME: [{"above": 2.0, "action": explode}, 2.5]}
    trainer = watch(scripted(tmp_path, [0.0, 3.0, 3.0]), alerts)
    with pytest.raises(RuntimeError, match="stopped by hand at 2"):
        trainer.train()
    assert events(tmp_path) == [(2, KEY, 2.0), (2, KEY, 2.5)]


def resumed(folder: Path, values: list[float | None], alerts: Any, again: Any = None) -> Any:
    """A run of four steps that went on from a checkpoint at its second."""
    trainer = watch(scripted(folder, values, save_strategy="steps", save_steps=2), alerts)
    trainer.train()
    trainer = watch(scripted(folder, values), alerts if again is None else again)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return Run.load(folder)


@pytest.mark.parametrize(
    ("values", "patience", "wanted"),
    [
        ([3.0, 3.0, 3.0, 3.0], 1, [1]),  # went off before the checkpoint, and does not again
        ([0.0, 3.0, 3.0, 3.0], 2, [3]),  # the checkpoint is within the patience
        ([0.0, 3.0, 0.0, 3.0], 2, []),
        ([0.0, 3.0, None, 3.0], 2, [4]),
        ([0.0, 0.0, 0.0, 3.0], 1, [4]),  # after the checkpoint, in both of the runs
    ],
)
def test_a_resumed_run_goes_on_counting(
    values: list[float | None], patience: int, wanted: list[int], tmp_path: Path
) -> None:
    run = resumed(tmp_path, values, {NAME: {"above": 2.0, "patience": patience}})
    assert [alert["step"] for alert in run.alerts] == wanted
    whole = Alerts([Alert(NAME, 2.0, patience)])  # the oracle: one run without a break
    lines = [{} if v is None else {KEY: v} for v in values]
    assert [i for i, line in enumerate(lines, 1) if whole.see(i, line)] == wanted


def test_an_alert_that_is_new_on_resuming_goes_off_although_the_past_was_beyond_it(
    tmp_path: Path,
) -> None:
    run = resumed(tmp_path, [3.0] * 4, {NAME: 2.0}, again={NAME: [2.0, 1.0]})
    assert [(a["step"], a["threshold"]) for a in run.alerts] == [(1, 2.0), (3, 1.0)]


def test_a_line_that_another_callback_logs_on_resuming_is_watched(tmp_path: Path) -> None:
    trainer = scripted(tmp_path, [0.0] * 3, save_strategy="steps", save_steps=2)
    watch(trainer, {NAME: 2.0}).train()
    trainer = scripted(tmp_path, [0.0] * 3)
    trainer.add_callback(Do("on_train_begin", lambda **_: trainer.log({KEY: 9.0})))
    watch(trainer, {NAME: [2.0, {"above": 3.0, "patience": 2}]})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert events(tmp_path) == [(2, KEY, 2.0)]


def test_a_second_training_begins_to_count_anew(tmp_path: Path) -> None:
    trainer = scripted(tmp_path, [3.0, 3.0])
    trainer.add_callback(Do("on_train_begin", lambda **_: boards.join(trainer, trainer)))
    trainer.add_callback(Do("on_train_end", lambda **_: boards.leave(trainer, trainer)))
    watch(trainer, {NAME: {"above": 2.0, "patience": 2}})
    trainer.train()
    trainer.train()
    assert events(tmp_path) == [(2, KEY, 2.0)]
    assert events(tmp_path / "emoreg.1.jsonl") == [(2, KEY, 2.0)]


def test_a_training_after_a_crash_begins_to_count_anew(tmp_path: Path) -> None:
    alerts = {NAME: {"above": 2.0, "patience": 2, "action": explode}}
    trainer = watch(scripted(tmp_path, [3.0, 3.0, 3.0]), alerts)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stopped by hand at 2"):
            trainer.train()
    assert events(tmp_path) == [(2, KEY, 2.0)]
    assert events(tmp_path / "emoreg.1.jsonl") == [(2, KEY, 2.0)]


def test_a_name_that_is_not_logged_is_warned_of_at_the_first_line_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = {"reading/desparate": 2.0, NAME: 50.0, "eval_emoreg/reading/desperate": 1.0}
    watch(scripted(tmp_path, [0.0, 0.0, 0.0]), alerts).train()
    (note,) = Run.load(tmp_path).notes
    assert note["step"] == 1
    assert "emoreg/reading/desparate" in note["text"]
    assert f"Nearest that was: {KEY}." in note["text"]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said[0] == note["text"]
    assert [text.split(" was never logged")[0] for text in said[1:]] == [
        "emoreg/reading/desparate",
        "eval_emoreg/reading/desperate",  # there was no evaluation
    ]


def test_an_evaluation_that_does_not_log_a_name_is_warned_of_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = scripted(tmp_path, [0.0, 0.0], eval_rows=None)
    trainer.eval_dataset = trainer.train_dataset
    watch(trainer, {"eval_emoreg/reading/calm": 1.0})
    trainer.add_callback(Do("on_step_end", lambda **_: trainer.evaluate()))
    trainer.train()
    (note,) = Run.load(tmp_path).notes
    assert "eval_emoreg/reading/calm" in note["text"]
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 2


@pytest.mark.parametrize("first", ["alerts", "drift"])
def test_readings_and_drift_of_a_real_run_set_alerts_off(first: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, learning_rate=0.1)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **EVERYTHING))
    alerts = AlertCallback(
        trainer,
        {
            "reading/happy": {"above": -100.0, "patience": 2},
            "drift_mean_abs": {"below": 100.0},
            "drift/calm": {"above": -100.0, "patience": 2},  # of the start and the very end
        },
    )
    drift = DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=0)
    for callback in (alerts, drift) if first == "alerts" else (drift, alerts):
        trainer.add_callback(callback)
    trainer.train()
    run = Run.load(tmp_path)
    assert [(a["step"], a["name"]) for a in run.alerts] == [
        (0, "emoreg/drift_mean_abs"),
        (2, "emoreg/reading/happy"),
        (2, "emoreg/drift/calm"),
    ]
    assert run.alerts[1]["value"] == logged(trainer, "emoreg/reading/happy")[1]
    assert run.alerts[2]["value"] == logged(trainer, "emoreg/drift/calm")[-1]
    assert run.notes == []  # every name was found


def test_outside_of_training_nothing_is_watched(tmp_path: Path) -> None:
    trainer = watch(scripted(tmp_path, [0.0]), {NAME: 2.0})
    trainer.log({KEY: 9.0})
    assert not (tmp_path / "emoreg.jsonl").exists()
    trainer.train()
    trainer.log({KEY: 9.0})
    assert events(tmp_path) == []


@pytest.mark.parametrize("first", ["control", "drift"])
def test_the_alerts_of_a_regularizer_see_drift_from_the_start_to_the_very_end(
    first: str, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, learning_rate=0.1)
    alerts = {"drift/calm": [{"above": -100.0}, {"above": -100.5, "patience": 2}]}
    control = EmotionRegularizer(trainer, make_vectors(), **EVERYTHING, alerts=alerts)
    drift = DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=0)
    for callback in (control, drift) if first == "control" else (drift, control):
        trainer.add_callback(callback)
    trainer.train()
    assert events(tmp_path) == [
        (0, "emoreg/drift/calm", -100.0),
        (2, "emoreg/drift/calm", -100.5),
    ]


@pytest.mark.slow
def test_two_processes_tell_once_and_stop_together(tmp_path: Path) -> None:
    said = launch("alarm.py", str(tmp_path), processes=2, minutes=3)
    found = json.loads((tmp_path / "found.json").read_text()) if said else {}
    assert found["steps"] == [2, 2], said
    assert found["called"] == [[2, 0], [2, 1]]  # in every process
    assert found["resumed"] == [3, 3]  # what went off before the checkpoint does not again
    assert events(tmp_path / "run") == [(2, KEY, 2.0), (3, KEY, 1.0)]
    assert Run.load(tmp_path / "run").alerts[0]["text"]["prompt"] == "text 0 text 1"  # gathered
    assert said.count("above the threshold of 2.") == 2  # once in each of two runs
