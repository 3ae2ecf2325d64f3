"""The journal of a run: written whatever happens, read back as it was."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runs
from emoreg.errors import ReportError
from emoreg.journal import FILE, Journal, Run


def lines(folder: Path, name: str = FILE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def begun(folder: Path, step: int = 0) -> Journal:
    journal = Journal(folder)
    journal.begin(step, name="mine")
    return journal


def test_a_run_read_back_is_the_run_that_was_written(tmp_path: Path) -> None:
    found = runs.write_run(tmp_path, "mine", weight=0.1)
    steps = {"logs": [s for s, _ in found.logs], "drifts": [d["step"] for d in found.drifts]}
    assert steps == {"logs": list(range(5, 61, 5)), "drifts": list(range(0, 61, 10))}
    assert (found.name, found.end["step"], len(found.texts), len(found.alerts)) == (
        "mine",
        60,
        2,
        1,
    )
    assert found.controls[""]["watched"]["penalize"] == {"desperate": 0.1}
    assert Run.load(tmp_path) == Run.load(tmp_path / FILE) == found
    cut = runs.write_run(tmp_path / "cut", whole=False)
    assert cut.end == {}  # control: the end is in the file, not made up


def test_the_run_in_memory_is_the_run_on_the_disk(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.add("log", 1, logs={"loss": float("nan"), "n": np.int64(3), "x": torch.tensor(0.5)})
    journal.add("note", 1, text="x")
    assert journal.run == Run.load(tmp_path)
    (step, logs), wanted = journal.run.logs[0], {"loss": None, "n": 3, "x": 0.5}
    assert (step, logs) == (1, wanted)
    assert isinstance(logs["n"], int)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_becomes_null(value: float, tmp_path: Path) -> None:
    begun(tmp_path).add("log", 1, logs={"loss": value, "other": 1.5})
    assert lines(tmp_path)[1]["logs"] == {"loss": None, "other": 1.5}


@pytest.mark.parametrize(
    "text", ["\u2028 line \x85 feed \x0b\r\n", "half \ud83d of one", "\x00\x1b[31m", "</script>"]
)
def test_a_text_of_any_kind_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.add("note", 1, text=text)
    journal.add("note", 2, text="after")
    assert [note["text"] for note in Run.load(tmp_path).notes] == [text, "after"]


def test_listeners_hear_every_event_once_it_is_written(tmp_path: Path) -> None:
    journal, heard = Journal(tmp_path), []
    journal.listeners.append(lambda e: heard.append((e["event"], len(lines(tmp_path)))))
    journal.begin(0)
    journal.add("note", 1, text="x")
    assert heard == [("run", 1), ("note", 2)]


def test_a_process_that_does_not_write_keeps_everything_and_tells_nobody(tmp_path: Path) -> None:
    journal, heard = Journal(tmp_path, writes=False), []
    journal.listeners.append(heard.append)
    journal.begin(0, name="mine")
    journal.add("log", 1, logs={"loss": 1.0})
    assert journal.run.logs == [(1, {"loss": 1.0})]
    assert heard == []
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_same_folder_moves_the_journal_away(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        journal = Journal(tmp_path)
        journal.begin(0, name=name)
    assert Run.load(tmp_path).name == "third"
    names = [lines(tmp_path, f"emoreg.{i}.jsonl")[0]["name"] for i in (1, 2)]
    assert names == ["first", "second"]


def test_a_run_that_goes_on_forgets_what_it_computes_again(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    for step in (0, 1, 2, 3):
        journal.add("log", step, logs={"loss": float(step)})
        journal.add("drift", step, places={})
        journal.add("alert", step, name="x")
        journal.add("texts", step, rows=[])
        journal.add("note", step, text="x")
    journal.add("end", 3)
    assert len(Run.load(tmp_path).logs) == 4  # control
    again = begun(tmp_path, step=2)
    again.add("log", 3, logs={"loss": 9.0})
    for found in (again.run, Run.load(tmp_path)):
        assert [(step, logs["loss"]) for step, logs in found.logs] == [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 9),
        ]
        for events in (found.drifts, found.alerts, found.texts, found.notes):
            assert [event["step"] for event in events] == [0, 1, 2]
        assert found.end == {}
    assert [row["event"] for row in lines(tmp_path)].count("run") == 2


def test_a_journal_that_cannot_be_moved_away_does_not_mix_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = begun(tmp_path)
    runs.control(journal, ["calm"], 0.1)
    journal.add("drift", 0, places={})

    def refuse(*_args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        begun(tmp_path)
    found = Run.load(tmp_path)
    assert (found.controls, found.drifts) == ({}, [])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("cut", [1, 20])
def test_a_last_line_that_was_cut_off_is_passed_over_and_taken_back(
    cut: int, tmp_path: Path
) -> None:
    journal = begun(tmp_path)
    journal.add("note", 1, text="whole")
    journal.add("note", 2, text="cut")
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    assert [n["text"] for n in Run.load(tmp_path).notes] == ["whole"] + ["cut"] * (cut == 1)
    again = begun(tmp_path, step=5)
    assert [n["text"] for n in again.run.notes][:1] == ["whole"]
    again.add("note", 6, text="after")
    assert [row["event"] for row in lines(tmp_path)][-2:] == ["run", "note"]


def test_a_line_that_is_damaged_is_named(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.add("note", 1, text="x")
    path = tmp_path / FILE
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n[1]\n{second}\n")
    with pytest.raises(ReportError, match="line 2"):
        Run.load(tmp_path)


@pytest.mark.parametrize(("content", "match"), [(None, "cannot be read"), ("", "holds no run")])
def test_a_folder_without_a_run_says_what_was_wanted(
    content: str | None, match: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ReportError, match=match):
        Run.load(tmp_path)


def test_going_on_with_a_damaged_journal_begins_another_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text("{\n{}\n")
    begun(tmp_path, step=3)
    assert Run.load(tmp_path).header["step"] == 3
    assert (tmp_path / "emoreg.1.jsonl").exists()
    (record,) = caplog.records
    assert "before step 3" in record.getMessage()


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_costs_one_warning_and_no_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = begun(tmp_path)
    with room_for(2500):
        for step in range(1, 6):
            journal.add("log", step, logs={"x" * 900: float(step)})
        written = (tmp_path / FILE).read_bytes()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "File too large" in record.getMessage()
    assert written.endswith(b"\n")  # no half of a line stays
    assert [row["step"] for row in map(json.loads, written.splitlines())] == [0, 1, 2]
    with room_for(4500):  # for some of what is due
        journal.add("log", 6, logs={"loss": 3.0})
    assert [row["step"] for row in lines(tmp_path)] == list(range(5))
    journal.add("log", 7, logs={"loss": 3.0})
    assert [row["step"] for row in lines(tmp_path)] == list(range(8))
    assert len(caplog.records) == 1


KILLED = """
import sys
from pathlib import Path
from emoreg.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.begin(0)
for step in range(10_000_000):
    journal.add("log", step, logs={"loss": 1.0, "text": "x" * 5000})
    if step == 20:
        print("going", flush=True)
"""


def test_a_run_that_is_killed_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "going\n"
        os.kill(running.pid, signal.SIGKILL)
    steps = [step for step, _ in Run.load(tmp_path).logs]
    assert steps == list(range(len(steps)))
    assert len(steps) > 20
