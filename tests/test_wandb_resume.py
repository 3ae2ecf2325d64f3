"""A training run that goes on from a checkpoint goes on in its run of wandb."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trainers import PROMPT_FILE, control, make_trainer, make_vectors
from wandb_files import Stored, values
from wandb_server import KEY, serve

from emoreg import wandb_missing, wandb_resume
from emoreg.callbacks import DriftCallback
from emoreg.journal import Journal, Run

wandb = pytest.importorskip("wandb")
VERSION = tuple(int(part) for part in wandb.__version__.split(".")[:2])
offline = pytest.mark.skipif(
    wandb_resume.RESUMES_OFFLINE > VERSION,
    reason="this wandb goes on with no run offline, so emoreg begins another",
)
CURVE = "train/emoreg/reading/calm"


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.reporting.write_runs", lambda _runs, path: path)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """wandb as a new process finds it; trainers open its runs by themselves."""
    wandb.teardown()
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield tmp_path
    wandb.finish()
    wandb.teardown()


def train(folder: Path, steps: int, checkpoint: int = 0) -> tuple[str, Any]:
    """One piece; wandb's id of it."""
    trainer = make_trainer(
        folder, max_steps=steps, save_strategy="steps", save_steps=2, report_to=["wandb"]
    )
    control(trainer)
    trainer.add_callback(DriftCallback(trainer, make_vectors(), PROMPT_FILE, drift_steps=2))
    resume = str(folder / f"checkpoint-{checkpoint}") if checkpoint else None
    trainer.train(resume_from_checkpoint=resume)
    found = wandb.run.id
    wandb.finish()
    return found, trainer


def pieces(folder: Path) -> list[Stored]:
    """The runs that were written, in order."""
    found = [Stored(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
    for stored in found:
        stored.wait()
    return sorted(found, key=lambda s: s.kind("run")[0].start_time.ToNanoseconds())


@offline
def test_training_goes_on_in_the_same_run_and_its_curves(fresh: Path) -> None:
    first, _ = train(fresh / "out", 4)
    before = wandb.init
    second, trainer = train(fresh / "out", 6, checkpoint=4)
    assert second == first
    assert wandb.init is before
    one, two = pieces(fresh)
    assert [s.kind("run")[0].run_id for s in (one, two)] == [first, first]
    assert [s.kind("run")[0].resume for s in (one, two)] == [False, True]
    steps = [[row["train/global_step"] for row in s.rows(CURVE)] for s in (one, two)]
    assert steps == [[1, 2, 3, 4], [5, 6]]
    tables = [len(s.rows("emoreg/drift_table")) for s in (one, two)]
    assert tables == [3, 1]
    assert Run.load(fresh / "out").header["wandb"]["id"] == first
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3, 4, 5, 6]


@offline
@pytest.mark.parametrize("kept", [0, 3])
def test_lines_that_a_kill_kept_from_wandb_are_logged_once_more(kept: int, fresh: Path) -> None:
    """wandb's service dies with the run, and with it what it has not yet written."""
    first, _ = train(fresh / "out", 4)
    (one,) = pieces(fresh)
    data = one.path.read_bytes()
    one.path.write_bytes(data[: up_to(data, kept)])
    train(fresh / "out", 6, checkpoint=4)
    (path,) = [p for p in fresh.glob(f"wandb/offline-run-*-{first}/*.wandb") if p != one.path]
    two = Stored(path)
    two.wait()
    assert [row["train/global_step"] for row in two.rows(CURVE)] == list(range(kept + 1, 7))
    wanted = [logs["emoreg/reading/calm"] for _, logs in Run.load(fresh / "out").logs
              if "emoreg/reading/calm" in logs]  # fmt: skip
    assert [row[CURVE] for row in two.rows(CURVE)] == wanted[kept:]
    assert two.summaries[CURVE] == {"min", "max", "last"}


def up_to(data: bytes, kept: int) -> int:
    """How many bytes of a file of wandb hold the rows of so many steps and no more."""
    for size in range(len(data), 0, -500):
        rows = [dict_of(r) for r in wandb_missing.records(data[:size])]
        if (
            max((row.get("train/global_step", 0) for row in rows if CURVE in row), default=0)
            <= kept
        ):
            return size
    return 0


def dict_of(record: Any) -> dict[str, Any]:
    return values(record.history.item) if record.WhichOneof("record_type") == "history" else {}


def test_a_new_start_in_the_same_folder_is_another_run(fresh: Path) -> None:
    first, _ = train(fresh / "out", 2)
    second, _ = train(fresh / "out", 2)
    assert second != first
    assert sorted(s.kind("run")[0].run_id for s in pieces(fresh)) == sorted([first, second])


def test_a_run_that_the_user_has_chosen_is_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = train(fresh / "out", 2)
    wandb.teardown()
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    second, _ = train(fresh / "out", 4, checkpoint=2)
    assert (first != "chosen", second) == (True, "chosen")


def test_a_run_that_is_open_stays_open(fresh: Path) -> None:
    first, _ = train(fresh / "out", 2)
    opened = wandb.init(project="mine")
    second, _ = train(fresh / "out", 4, checkpoint=2)
    assert second == opened.id != first


def test_a_checkpoint_without_a_journal_begins_a_run(fresh: Path) -> None:
    first, _ = train(fresh / "out", 2)
    (fresh / "out" / "emoreg.jsonl").unlink()
    second, _ = train(fresh / "out", 4, checkpoint=2)
    assert second != first


def header(folder: Path, **fields: Any) -> Path:
    found = {"id": "abc", "project": "p", "entity": "", "mode": "online", **fields}
    Journal(folder).begin(0, wandb=found if "none" not in fields else None)
    return folder


@pytest.mark.parametrize(
    ("fields", "version", "wanted"),
    [
        ({}, "0.18.0", "abc"),
        ({"mode": "disabled"}, "0.31.0", None),
        ({"mode": "offline"}, "0.31.0", None),  # likewise: this piece is online
        ({"mode": "offline"}, "0.29.0", None),  # `wandb sync` would replace the first piece
        ({"id": None}, "0.31.0", None),
        ({"none": 1}, "0.31.0", None),
    ],
)
def test_which_runs_are_gone_on_with(
    fields: dict[str, Any],
    version: str,
    wanted: str | None,
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "__version__", version)
    assert wandb_resume._earlier(header(fresh / "out", **fields)) == wanted


def test_a_run_that_wandb_refuses_to_go_on_with_is_followed_by_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = []

    def init(**given: Any) -> Any:
        asked.append(given)
        if "id" in given:
            raise wandb.errors.CommError("run abc was deleted")
        return SimpleNamespace(id="new")

    assert wandb_resume._resuming("abc", init, project="p").id == "new"
    assert asked == [{"id": "abc", "resume": "allow", "project": "p"}, {"project": "p"}]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "abc was deleted" in record.getMessage()


@pytest.mark.slow  # two processes of wandb's own, one after the other
@offline
def test_sync_puts_the_pieces_behind_one_another(fresh: Path) -> None:
    name, _ = train(fresh / "out", 4)
    train(fresh / "out", 6, checkpoint=4)
    with serve() as server:
        outside = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        env = {**outside, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        counts = []
        for stored in pieces(fresh):
            command = [sys.executable, "-m", "wandb", "sync", str(stored.path.parent)]
            done = subprocess.run(
                command, env=env, cwd=fresh, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            counts.append(len(server.history[name]))
    rows = server.rows(name, CURVE)
    assert [row["train/global_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    lines = server.history[name]
    assert [lines[i]["_step"] for i in sorted(lines)] == list(range(len(lines)))
    assert counts[1] > counts[0] > 0
    assert list(server.history) == [name]
