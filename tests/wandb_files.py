"""Runs of wandb that are written offline, and what their files hold."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import runs
from emoreg.journal import Journal
from emoreg.wandb_board import WandbBoard
from emoreg.wandb_guard import Guard


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[tuple[Any, Stored]]:
    """A run, offline unless said otherwise, and its file, which is whole after the block."""
    import wandb

    quiet = wandb.Settings(silent=True, console="off", **settings.pop("settings", {}))
    run = wandb.init(**{"dir": str(folder), "mode": "offline", "project": "emoreg",
                        "settings": quiet, **settings})  # fmt: skip
    stored = Stored(Path(run.settings.sync_file))
    try:
        yield run, stored
    finally:
        wandb.finish()
        stored.wait()


def board_of(run: Any, folder: Path) -> tuple[Journal, WandbBoard]:
    journal = Journal(folder)
    board = WandbBoard(run, journal, Guard(run, journal, lambda: 7))
    journal.listeners.append(board)
    return journal, board


def measure(journal: Journal, means: dict[str, float], steps: tuple[int, ...]) -> None:
    rng = runs.Random(1)
    for step in steps:
        now = {e: m * step / 60 for e, m in means.items()}
        before = None if step == 0 else means
        places = {p: runs.place(now, before, rng) for p in ("colon", "response")}
        journal.add("drift", step, seconds=1.0, final=step == steps[-1], prompts=128,
                    places=places, stats=runs.stats(now))  # fmt: skip


class Stored:
    """The file of a run; read when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, path.parent / "files"

    def wait(self) -> None:
        """Until wandb's service has written the end."""
        for _ in range(200):
            if any(r.WhichOneof("record_type") == "exit" for r in records(self.path)):
                return
            time.sleep(0.05)
        raise TimeoutError(self.path)

    def kind(self, name: str) -> list[Any]:
        """All records of a kind."""
        return [getattr(r, name) for r in self._records if r.WhichOneof("record_type") == name]

    @cached_property
    def _records(self) -> list[Any]:
        return list(records(self.path))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Every row; the parts of a file's entry under ``key/part``."""
        return [values(row.item) for row in self.kind("history")]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The last value of every entry."""
        found: dict[str, Any] = {}
        for record in self.kind("summary"):
            found |= values(record.update)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config at the end."""
        found: dict[str, Any] = {}
        for record in self.kind("config"):
            found |= values(record.update)
        return found

    @cached_property
    def summaries(self) -> dict[str, set[str]]:
        """Of every metric that was defined by its own name: what its summary keeps."""
        return {
            m.name: {field.name for field, on in m.summary.ListFields() if on}
            for m in self.kind("metric")
            if m.name
        }

    def rows(self, key: str) -> list[dict[str, Any]]:
        """The rows of the history that hold a value or a file."""
        return [row for row in self.history if key in row or f"{key}/path" in row]

    def file(self, row: dict[str, Any], key: str) -> bytes:
        """A file that a row of the history points to, of the size it says."""
        found = (self.files / row[f"{key}/path"]).read_bytes()
        assert len(found) == row[f"{key}/size"]
        return found

    def artifact(self, kind: str) -> Any:
        """The last artifact of a type."""
        return [a for a in self.kind("artifact") if a.type == kind][-1]

    def contents(self, kind: str) -> dict[str, bytes]:
        """The files of the last artifact of a type."""
        entries = self.artifact(kind).manifest.contents
        return {e.path: Path(e.local_path).read_bytes() for e in entries}


def values(items: Any) -> dict[str, Any]:
    """Entries of a record by their names."""
    return {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
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
