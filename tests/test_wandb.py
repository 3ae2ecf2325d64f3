"""What reaches wandb from training, read back from the file of an offline run; and life without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from trainers import (
    EMOTIONS,
    PROMPT_FILE,
    control,
    logged,
    make_rows,
    make_trainer,
    make_vectors,
)
from wandb_files import Stored, opened

from emoreg.callbacks import DriftCallback
from emoreg.journal import Run

ALERTS = {"reading/desperate": {"above": -100.0, "patience": 2}}


def train(folder: Path, **args: Any) -> Any:
    settings = {
        **{"max_steps": 3, "learning_rate": 0.1, "eval_strategy": "steps", "eval_steps": 3},
        "eval_rows": make_rows(2),
    }
    trainer = make_trainer(folder, **{**settings, **args})
    control(trainer, alerts=ALERTS)
    trainer.add_callback(DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=1))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Stored]:
    """A trainer that reported to wandb offline, and the run's file."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    with opened(folder) as (_, stored):
        trainer = train(folder, report_to=["wandb"])
    return trainer, stored


def folder_of(trainer: Any) -> Path:
    return Path(trainer.args.output_dir)


def test_every_scalar_is_in_the_run_as_it_is_in_the_trainers_log(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    names = sorted({k for row in trainer.state.log_history for k in row if "emoreg/" in k})
    assert len(names) > 80
    for name in names:
        kind, key = ("eval", name[5:]) if name.startswith("eval_") else ("train", name)
        rows = stored.rows(f"{kind}/{key}")
        assert [row[f"{kind}/{key}"] for row in rows] == pytest.approx(logged(trainer, name))
        steps = [row["step"] for row in trainer.state.log_history if name in row]
        assert [row["train/global_step"] for row in rows] == steps
    assert {n.split("/")[1] for n in names if n.startswith("eval_")} >= {"reading", "top", "max"}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("reading/desperate", {"min": min, "max": max}),
        ("max/desperate", {"max": max}),
        ("over_margin/calm", {"max": max}),
        ("penalty/desperate", {"max": max}),
        ("drift_structure", {"min": min}),
        ("drift_mean_abs", {"max": max}),
    ],
)
def test_summaries_are_of_all_values_from_the_first_on(
    name: str, kept: dict[str, Any], run: tuple[Any, Stored]
) -> None:
    trainer, stored = run
    values = logged(trainer, f"emoreg/{name}")
    assert len(values) >= 3
    wanted = {key: of(values) for key, of in kept.items()} | {"last": values[-1]}
    assert stored.summary[f"train/emoreg/{name}"] == pytest.approx(wanted)
    assert stored.summaries[f"train/emoreg/{name}"] == set(wanted)


def test_what_needs_no_extremes_keeps_its_last_value(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    wanted = logged(trainer, "emoreg/drift/calm")[-1]
    assert stored.summary["train/emoreg/drift/calm"] == pytest.approx(wanted)


def test_every_defined_metric_has_training_steps_below_it(run: tuple[Any, Stored]) -> None:
    own = [m for m in run[1].kind("metric") if "emoreg/" in m.name]
    assert len(own) > 30
    assert {m.step_metric for m in own} == {"train/global_step"}
    assert len({m.name for m in own}) == len(own)  # each is defined once


def test_tables_charts_texts_and_pictures_arrive_with_every_measurement(
    run: tuple[Any, Stored],
) -> None:
    trainer, stored = run
    for key in ("drift_table", "drift_plot", "emotion_steps", "block_steps", "wheel"):
        rows = stored.rows(f"emoreg/{key}")
        assert [row["train/global_step"] for row in rows] == [0, 1, 2, 3]
        assert all(stored.file(row, f"emoreg/{key}") for row in rows)
    steps = [row["train/global_step"] for row in stored.rows("emoreg/texts")]
    assert steps == [event["step"] for event in Run.load(folder_of(trainer)).texts]
    assert steps == [row["train/global_step"] for row in stored.rows("emoreg/texts_table")]
    assert steps


def test_the_table_of_drift_has_what_was_logged(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    row = stored.rows("emoreg/drift_table")[-1]
    rows = json.loads(stored.file(row, "emoreg/drift_table"))["data"]
    found = {(step, emotion): drift for step, place, emotion, drift, *_ in rows if place == "colon"}
    assert {place for _, place, *_ in rows} == {"colon", "response", "own"}
    for emotion in EMOTIONS:
        wanted = logged(trainer, f"emoreg/drift/{emotion}")
        assert [found[step, emotion] for step in range(4)] == pytest.approx(wanted)


def test_knobs_vectors_and_prompts_are_in_the_config(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    found, journal = stored.config["emoreg"], Run.load(folder_of(trainer))
    assert found["control"]["config"] == journal.controls[""]["config"]
    assert found["control"]["config"]["emoreg_penalize"] == {"desperate": 0.1, "afraid": 0.05}
    assert found["control"]["vectors"] == journal.controls[""]["vectors"]
    assert found["drift"]["prompts"]["hash"] == journal.baseline["prompts"]["hash"]
    assert stored.config["learning_rate"] == 0.1  # the host's own is still there


def test_artifacts_are_the_vectors_the_base_and_the_report(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    own = [a for a in stored.kind("artifact") if a.type != "run_table"]
    assert [(a.type, a.use_after_commit) for a in own] == [
        ("emotion-vectors", True), ("base-readings", False), ("emoreg-report", False),
    ]  # fmt: skip
    report = stored.contents("emoreg-report")
    assert {name: len(text) for name, text in report.items()} == {
        name: (folder_of(trainer) / name).stat().st_size for name in ("report.html", "emoreg.jsonl")
    }
    assert b"<html" in report["report.html"]


def test_an_alert_that_goes_off_is_sent_once(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    (alert,) = stored.kind("alert")
    (event,) = Run.load(folder_of(trainer)).alerts
    assert alert.title == "emoreg/reading/desperate above -100"
    assert alert.text.startswith(event["message"])
    assert "The text that set it off:" in alert.text
    assert alert.level == "WARN"


def test_the_journal_knows_its_run(run: tuple[Any, Stored]) -> None:
    trainer, stored = run
    journal = Run.load(folder_of(trainer))
    (record,) = stored.kind("run")
    assert journal.header["wandb"]["id"] == record.run_id
    assert journal.header["wandb"]["project"] == "emoreg"
    assert journal.header["wandb"]["mode"] == "offline"
    assert journal.notes == []


def test_without_a_report_to_wandb_nothing_is_sent_there(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with opened(tmp_path) as (_, stored):  # a run that the user opened for something else
        trainer = train(tmp_path)
    assert len(logged(trainer, "emoreg/drift/calm")) == 4
    assert [stored.kind(k) for k in ("history", "artifact", "alert", "config")] == [[]] * 4
    assert Run.load(tmp_path).header["wandb"] is None


def test_a_run_that_is_disabled_is_left_alone(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.init(mode="disabled", dir=str(tmp_path))
    try:
        train(tmp_path, report_to=["wandb"])
    finally:
        wandb.finish()
    journal = Run.load(tmp_path)
    assert journal.header["wandb"]["mode"] == "disabled"
    assert (journal.end["step"], journal.notes) == (3, [])


def test_everything_works_where_wandb_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        import wandb  # noqa: F401
    trainer = train(tmp_path)
    assert len(logged(trainer, "emoreg/drift/calm")) == 4
    assert len(logged(trainer, "emoreg/reading/calm")) == 3
    assert Run.load(tmp_path).end["step"] == 3
