"""What a run leaves for later: one event a line in ``emoreg.jsonl``, and the same read back.

Every number that emoreg shows anywhere comes out of this file, so that the report of a run can be
made again from it, and a run whose back-ends failed has lost nothing.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from emoreg.errors import ReportError
from emoreg.files import parse_json

FILE = "emoreg.jsonl"
Event = Mapping[str, Any]

log = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that is known of one run, in the order in which it happened.

    Attributes:
        folder: Where it was written.
        header: Of the trainer: names, versions, arguments; of the last start, if it was resumed.
        controls: Of each regularizer by its name (``""`` without one): knobs, blocks, vectors.
        baseline: Of the drift callback: knobs, prompts, blocks, vectors; empty without one.
        logs: Step and scalars of every line that the trainer logged.
        drifts: Every measurement of drift.
        audits: Every audit.
        texts: Completions with the reading of each token.
        alerts: Every alert that went off.
        notes: What went wrong beside the training, in words.
        end: How it ended; empty while it runs, or if it was cut off.
    """

    folder: Path
    header: dict[str, Any] = field(default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    logs: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    drifts: list[dict[str, Any]] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the run, or else of its folder."""
        return str(self.header.get("name") or self.folder.name or self.folder.resolve().name)

    def add(self, event: Event) -> None:
        """Take in one event; unknown kinds, of a later version, are passed over."""
        kind, fields = event["event"], {k: v for k, v in event.items() if k != "event"}
        int(fields["step"])  # of every event; what is none is refused here
        if kind == "run":
            self._restart(int(fields["step"]), fields.get("logged"))
            self.header = fields
        elif kind == "control":
            self.controls[str(fields.get("name") or "")] = fields
        elif kind == "baseline":
            self.baseline = fields
        elif kind == "log":
            self.logs.append((int(fields["step"]), dict(fields["logs"])))
        elif kind == "end":
            self.end = fields
        elif kind == "drift":  # the last of a step is the one that counts
            self.drifts = [d for d in self.drifts if d["step"] != fields["step"]] + [fields]
        elif kind == "audit":
            self.audits = [a for a in self.audits if a["step"] != fields["step"]] + [fields]
        elif kind in ("texts", "alert", "note"):
            {
                "texts": self.texts,
                "alert": self.alerts,
                "note": self.notes,
            }[kind].append(fields)

    def _restart(self, step: int, logged: int | None) -> None:
        """A run that goes on from a checkpoint: what came after that step is computed again.

        Args:
            step: Of the checkpoint.
            logged: How many lines had been logged by then; more may have been at the same step.
        """
        if step == 0:  # another run, if the journal of the one before could not be moved away
            self.controls, self.baseline = {}, {}
        least = step if step > 0 else -1
        self.logs = [row for row in self.logs if row[0] <= least][:logged]
        for events in (self.drifts, self.audits, self.texts, self.alerts, self.notes):
            events[:] = [event for event in events if int(event["step"]) <= least]
        self.end = {}

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read a run's journal.

        Args:
            folder: The trainer's output folder, or the journal itself.

        Raises:
            ReportError: There is no journal, or a line of it, other than a last one that was cut
                off, is not an event; the message names the line.
        """
        path = Path(folder)
        path = path if path.suffix == ".jsonl" else path / FILE
        run = cls(path.parent)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            raise ReportError(
                f"{path} cannot be read ({e}). Wanted the output folder of a run with emoreg's "
                f"callbacks, which write {FILE} there."
            ) from e
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                run.add(parse_json(line, halves=True))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
                if number == len(lines):
                    break  # the run was killed while it wrote
                raise ReportError(
                    f"{path}, line {number}: {e!r}; wanted an event of emoreg."
                ) from e
        if not run.header:
            raise ReportError(f"{path} holds no run: its first event was never written.")
        return run


class Journal:
    """Writes the events of a run and tells them to whoever listens.

    Writing never fails: what cannot be written is kept in memory and tried again with the next
    event, and one warning says so.

    Args:
        folder: The trainer's output folder.
        writes: Whether this process is the one that writes; the others only keep.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.path, self.writes = folder / FILE, writes
        self.run = Run(folder)
        self.listeners: list[Callable[[Event], None]] = []
        self._due: deque[str] = deque()
        self._warned = False

    def begin(self, step: int, **header: Any) -> None:
        """Start a run, or go on with one from a checkpoint.

        A journal of an earlier run in the same folder is moved to ``emoreg.N.jsonl``.
        """
        self.run = Run(self.path.parent)
        if self.writes and step > 0 and self.path.exists():
            try:
                self.run = Run.load(self.path)
            except ReportError as e:
                log.warning("%s The history before step %d is not in the report.", e, step)
                self._set_aside()
        elif self.writes:
            self._set_aside()
        self.add("run", step, **header)

    def add(self, event: str, step: int, **fields: Any) -> None:
        """Write one event; values that are not finite become null."""
        found = _finite({"event": event, "step": step, **fields})
        self.run.add(found)
        if not self.writes:
            return
        self._due.append(json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
        self._write()
        for listener in self.listeners:
            listener(found)

    def _set_aside(self) -> None:
        try:
            if self.path.exists():
                number = 1
                while (aside := self.path.with_name(f"emoreg.{number}.jsonl")).exists():
                    number += 1
                self.path.rename(aside)
        except OSError as e:
            self._warn(e)

    def _write(self) -> None:
        """Append what is due; a line that was cut off, by a full disk or a kill, is taken back."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+", buffering=0) as file:  # a buffer would be written again
                whole = _end_of_lines(file)
                file.truncate(whole)
                while self._due:
                    # Half a character, from a text that was cut, is written as JSON's escape.
                    line = self._due[0].encode("utf-8", "backslashreplace")
                    try:
                        left = memoryview(line)
                        while left:
                            left = left[file.write(left) :]
                    except OSError:
                        file.truncate(whole)
                        raise
                    whole += len(line)
                    self._due.popleft()
        except OSError as e:
            self._warn(e)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning(
                "%s cannot be written (%s). Training goes on, and so do the trainer's own logs; "
                "the journal is written as soon as it can be.",
                self.path,
                error.strerror or error,
            )
        self._warned = True


def _end_of_lines(file: Any) -> int:
    """Where the last whole line of a file ends."""
    end = int(file.seek(0, 2))
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0


def _finite(value: Any) -> Any:
    """The same as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
