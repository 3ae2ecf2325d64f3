"""A run that is killed, terminated or out of room leaves nothing half-written, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launch import launch
from trainers import Do, control, make_trainer

from emoreg import whole
from emoreg.errors import ConfigError
from emoreg.files import sweep, write_atomic
from emoreg.journal import Journal, Run

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "survival.py"
OURS = ["emoreg-control.safetensors", "emoreg-readings.safetensors"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How every run of `kill_worker` ended, and what it left."""
    folder = tmp_path_factory.mktemp("killed")
    said = launch("kill_worker.py", str(folder), minutes=5)
    assert (folder / "found.json").exists(), said
    found = json.loads((folder / "found.json").read_text())
    assert statuses(found, "straight") == [0], found["straight"]["pieces"][0]["said"]
    return found


def statuses(found: Any, name: str) -> list[int]:
    return [piece["status"] for piece in found[name]["pieces"]]


def assert_same(found: Any, name: str) -> None:
    """The outcome of a run is that of the one that was left in peace, to the bit."""
    own, straight = found[name]["outcome"], found["straight"]["outcome"]
    assert own is not None, found[name]["pieces"][-1]["said"]
    for key, wanted in straight.items():
        assert own[key] == wanted, key
    assert len(straight["alerts"]) == 1  # control: there is something to be the same
    assert [d["step"] for d in straight["drifts"]] == [0, 3, 6]
    assert len({str(w) for w in straight["weights"].values()}) > 1


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_that_is_named(found: Any) -> None:
    killed, refused, _ = found["replacing"]["pieces"]
    assert statuses(found, "replacing") == [-9, 1, 0]
    assert killed["checkpoints"] == {
        "checkpoint-2": "", "checkpoint-4": "trainer_state.json is missing",
    }  # fmt: skip
    assert len(killed["left"]) == 1  # control: what was being written has another name
    assert "checkpoint-4 is not whole (trainer_state.json is missing)" in refused["said"]
    assert "checkpoint-2')" in refused["said"]
    assert found["replacing"]["pieces"][2]["left"] == []
    assert_same(found, "replacing")


@pytest.mark.parametrize("name", ["line", "end", "terminated"])
def test_a_run_killed_at_any_other_time_goes_on_from_its_newest_checkpoint(
    name: str, found: Any
) -> None:
    assert statuses(found, name) == [-15 if name == "terminated" else -9, 0]
    killed = found[name]["pieces"][0]
    assert set(killed["checkpoints"].values()) == {""}
    assert len(killed["left"]) == (name == "end")
    assert found[name]["pieces"][1]["left"] == []
    assert_same(found, name)


def test_a_checkpoint_that_is_made_on_sigterm_has_what_emoreg_keeps(found: Any) -> None:
    """The host writes it without telling callbacks that it saves."""
    assert statuses(found, "in time") == [0, 0]
    saved = found["in time"]["pieces"][0]
    assert saved["checkpoints"] == {"checkpoint-3": "", "checkpoint-4": ""}
    assert saved["ours"]["checkpoint-3"] == OURS
    assert found["in time"]["outcome"]["step"] == 6


def test_without_room_for_the_controls_state_training_ends_before_an_older_checkpoint_goes(
    found: Any,
) -> None:
    name = "full for the control"
    ended, refused, _ = found[name]["pieces"]
    assert statuses(found, name) == [1, 1, 0]
    assert "No space left on device" in ended["said"]
    assert "checkpoint-4/emoreg-control.safetensors" in ended["said"]
    assert (ended["left"], ended["checkpoints"]["checkpoint-2"]) == ([], "")
    assert "checkpoint-2')" in refused["said"]
    assert_same(found, name)


def test_without_room_for_anything_the_older_checkpoint_stays_and_training_goes_on_from_it(
    found: Any,
) -> None:
    ended, _ = found["full"]["pieces"]
    assert statuses(found, "full") == [1, 0]
    assert "emoreg.jsonl cannot be written (File too large)" in ended["said"]
    assert (ended["left"], ended["checkpoints"]) == ([], {"checkpoint-2": ""})
    assert_same(found, "full")


def test_where_neither_journal_nor_report_nor_readings_can_be_written_training_goes_on(
    found: Any,
) -> None:
    (ended,) = found["in the way"]["pieces"]
    assert statuses(found, "in the way") == [0]
    own, straight = found["in the way"]["outcome"], found["straight"]["outcome"]
    assert (own["weights"], own["history"]) == (straight["weights"], straight["history"])
    assert ended["said"].count("emoreg.jsonl cannot be written") == 1
    assert ended["said"].count("report.html could not be made") == 1
    assert "emoreg-readings.safetensors cannot be written (No space left" in ended["said"]
    assert ended["left"] == []
    assert set(ended["checkpoints"].values()) == {""}
    assert ended["ours"]["checkpoint-6"] == OURS[:1]


# --- half-written checkpoints ---------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with two checkpoints, without emoreg."""
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(folder, max_steps=2, save_strategy="steps", save_steps=1).train()
    return folder


def writing_to(folder: Path) -> Any:
    """As much of a trainer as is looked at."""
    return SimpleNamespace(args=SimpleNamespace(output_dir=str(folder)))


FILES = ["trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth"]


def test_a_checkpoint_that_the_host_says_is_incomplete_is_refused(saved: Path) -> None:
    sentinel = saved / "checkpoint-2" / "checkpoint-is-incomplete.txt"
    sentinel.write_text("in progress")
    trainer = writing_to(saved)
    with pytest.raises(ConfigError, match=r"incomplete.txt is there.*checkpoint-1'\)"):
        whole.check(trainer, True)
    sentinel.unlink()
    whole.check(trainer, True)  # control


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named_and_so_is_the_checkpoint_before(
    name: str, part: float, saved: Path
) -> None:
    path = saved / "checkpoint-2" / name
    data = path.read_bytes()
    trainer = writing_to(saved)
    assert whole.missing(path.parent) == ""  # control
    whole.check(trainer, True)
    path.write_bytes(data[: int(part * len(data))])
    try:
        for given in (True, str(path.parent)):
            with pytest.raises(ConfigError, match=rf"{name} is cut off.*checkpoint-1'\)"):
                whole.check(trainer, given)
        whole.check(trainer, str(saved / "checkpoint-1"))
        whole.check(trainer, None)
    finally:
        path.write_bytes(data)


def test_where_none_is_whole_the_way_is_to_start_again(tmp_path: Path) -> None:
    for number in (3, 20):
        (tmp_path / f"checkpoint-{number}").mkdir()
    trainer = writing_to(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoint-20 is not whole .* start at step 0"):
        whole.check(trainer, True)
    (tmp_path / "checkpoint-20").rmdir()
    (tmp_path / "checkpoint-3").rmdir()
    whole.check(trainer, True)  # control: the host says that there is none


# --- what a killed run leaves ---------------------------------------------------------------


def test_what_was_being_written_is_swept_away_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    gone = [".emoreg-base.safetensors.ab12_xyz", ".report.html.abcdefgh",
            "checkpoint-2/.emoreg-control.safetensors.abcdefgh"]  # fmt: skip
    stay = [".env", "emoreg.jsonl", ".emoreg", "report.html", "checkpoint-2/.other.abcdefgh"]
    for name in gone + stay:
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    left = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(left) == sorted(stay)


def test_the_pattern_is_that_of_the_files_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: Any) -> None:
        left = [p.name for p in tmp_path.iterdir()]
        assert len(left) == 1
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == []
        raise InterruptedError

    monkeypatch.setattr(os, "replace", stop)
    for name in ("emoreg-control-second.safetensors", "report.html"):
        with pytest.raises(InterruptedError):
            write_atomic(tmp_path / name, b"x")


def test_a_line_that_was_logged_after_the_checkpoint_of_its_step_is_not_kept_twice(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    journal.begin(0, logged=0)
    for loss in (1.0, 2.0, 3.0):
        journal.add("log", 6, logs={"loss": loss})
    again = Journal(tmp_path)
    again.begin(6, logged=1)
    again.add("log", 6, logs={"loss": 2.0})
    for run in (again.run, Run.load(tmp_path)):
        assert [logs["loss"] for _, logs in run.logs] == [1.0, 2.0]
    other = Journal(tmp_path)
    other.begin(6)  # control: as journals of an earlier version were
    assert len(other.run.logs) == 2


def test_a_run_that_goes_on_tells_at_the_steps_at_which_it_would_have_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts ten times in a run, and once that an alert has nothing to watch."""
    monkeypatch.setattr("emoreg.reporting.write_runs", lambda _runs, path: path)
    found = []
    for resume in (None, str(tmp_path / "checkpoint-10")):
        trainer = make_trainer(tmp_path, max_steps=30, save_strategy="steps", save_steps=10)
        control(trainer, alerts={"excess/desperate": 5.0}, reference_steps=0)
        trainer.add_callback(Do("on_step_end", partial(stop_at, trainer, 12)))
        trainer.train(resume_from_checkpoint=resume)
        run = Run.load(tmp_path)
        found.append(([row["step"] for row in run.texts], [row["step"] for row in run.notes]))
    assert found == [([1, 3, 6, 9, 12], [1])] * 2


def stop_at(trainer: Any, step: int, **_kwargs: Any) -> None:
    trainer.control.should_training_stop |= trainer.state.global_step == step


# --- the benchmark --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_a_run_of_the_embedded_model_killed_at_any_moment_ends_as_one_left_in_peace(
    name: str, tmp_path: Path
) -> None:
    out = tmp_path / "survival.json"
    command = [sys.executable, str(BENCHMARK), "--trainers", name, "--kills", "2"]
    done = subprocess.run(
        [*command, "--seed", "1", "--out", str(out)], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())["summary"][name]
    late = set(found["after_the_last_checkpoint"])  # where the host itself trains a step more
    assert set(found["differs"]) <= late
    assert len(late) <= 3
    assert found["kills_at_points"] == 10
    assert found["identical"] + found["identical_at_points"] >= found["kills"] + 10 - len(late)
