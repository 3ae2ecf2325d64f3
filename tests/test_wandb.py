"""What reaches wandb, read back from the file of an offline run; and life without wandb."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainers import EMOTIONS, EVERYTHING, PROMPT_FILE, logged, make_trainer, make_vectors

from emoreg.callbacks import DriftCallback
from emoreg.regularizer import EmotionRegularizer


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # no header fits before the end of a block
            at += left
            continue
        _checksum, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):
            return  # still being written
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def train(folder: Path, **args: Any) -> Any:
    trainer = make_trainer(folder, max_steps=2, learning_rate=0.1, **args)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **EVERYTHING))
    trainer.add_callback(DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=1))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A trainer that reported to wandb offline, and the run's file."""
    wandb = pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    settings = wandb.Settings(silent=True, console="off")
    found = wandb.init(dir=str(folder), mode="offline", project="emoreg", settings=settings)
    path = Path(found.settings.sync_file)
    try:
        trainer = train(folder, report_to=["wandb"])
    finally:
        wandb.finish()
    for _ in range(200):  # the service may still be writing
        if any(r.WhichOneof("record_type") == "exit" for r in records(path)):
            break
        time.sleep(0.05)
    return trainer, path


def history(path: Path) -> list[dict[str, Any]]:
    rows = [r.history for r in records(path) if r.WhichOneof("record_type") == "history"]
    return [
        {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in row.item}
        for row in rows
    ]


@pytest.mark.parametrize(
    "key", ["emoreg/reading/desperate", "emoreg/loss", "emoreg/drift/calm", "emoreg/drift_mean_abs"]
)
def test_scalars_are_in_the_run_as_they_are_in_the_trainers_log(key: str, run: Any) -> None:
    trainer, path = run
    rows = [row for row in history(path) if f"train/{key}" in row]
    assert [row[f"train/{key}"] for row in rows] == pytest.approx(logged(trainer, key))
    steps = [row["step"] for row in trainer.state.log_history if key in row]
    assert [row["train/global_step"] for row in rows] == steps
    assert len(steps) in (2, 3)


def test_the_table_and_the_plot_of_drift_are_files_of_the_run(run: Any) -> None:
    trainer, path = run
    (row,) = [row for row in history(path) if "emoreg/drift_table/path" in row]
    assert row["train/global_step"] == 2
    table = json.loads((path.parent / "files" / row["emoreg/drift_table/path"]).read_bytes())
    assert table["columns"] == ["step", "emotion", "drift", "low", "high"]
    assert len(table["data"]) == 3 * len(EMOTIONS)
    found = {(step, emotion): mean for step, emotion, mean, *_ in table["data"]}
    for emotion in EMOTIONS:
        wanted = logged(trainer, f"emoreg/drift/{emotion}")
        assert [found[step, emotion] for step in range(3)] == pytest.approx(wanted)
    picture = path.parent / "files" / row["emoreg/drift_plot/path"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert row["emoreg/drift_plot/width"] > 100


def test_without_a_report_to_wandb_nothing_is_sent_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "run", object())  # a run the user opened for something else
    monkeypatch.setattr(wandb, "log", lambda *_a, **_k: pytest.fail("wandb.log was called"))
    train(tmp_path)


def test_everything_works_where_wandb_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        import wandb  # noqa: F401
    trainer = train(tmp_path)
    assert len(logged(trainer, "emoreg/drift/calm")) == 3
    assert len(logged(trainer, "emoreg/reading/calm")) == 2
