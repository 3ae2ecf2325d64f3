"""What a sweep over texts has done so far, kept on disk so that it can go on where it stopped."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from emoreg.files import write_atomic
from emoreg.moments import Means, Scatter

EVERY = 30.0  # seconds between two writes
log = logging.getLogger(__name__)


class Progress:
    """Sums of the texts that were read, and how many there were.

    Args:
        file: Where to keep them; None keeps nothing.
        job: Names model, texts and choices; a file of another job is not continued.
    """

    def __init__(self, file: Path | None, job: str) -> None:
        self.file, self.job = file, job
        self.done = 0
        self.means: dict[str, Means] = {}  # by kind of text
        self.neutral = Scatter()
        self.adding = False  # while a batch is half added there is nothing to keep
        self._saved = time.monotonic()
        if file is not None and file.exists():
            self._load(file)

    def kind(self, name: str) -> Means:
        """Sums of one kind of text."""
        return self.means.setdefault(name, Means())

    def save(self, at_once: bool = False) -> None:
        """Write, if the last time is long enough ago."""
        due = at_once or time.monotonic() - self._saved > EVERY
        if self.file is None or self.adding or not due:
            return
        self.neutral.fold()
        tensors: dict[str, Tensor] = {
            f"{kind}/{label}": total
            for kind, means in self.means.items()
            for label, total in means.total.items()
        }
        counts = {kind: means.count for kind, means in self.means.items()}
        if self.neutral.mean is not None and self.neutral.rows is not None:
            tensors |= {"mean": self.neutral.mean, "rows": self.neutral.rows.contiguous()}
        state = {"job": self.job, "done": self.done, "number": self.neutral.number, "count": counts}
        write_atomic(self.file, save_tensors(tensors, {"state": json.dumps(state)}))
        self._saved = time.monotonic()

    def _load(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as held:
                state = json.loads(held.metadata()["state"])
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
            log.warning("%s cannot be continued (%s); starting from the first text.", file, e)
            return
        if state["job"] != self.job:
            log.warning("%s is of another model, bank or choice; starting from the first.", file)
            return
        self.done = state["done"]
        for kind, count in state["count"].items():
            self.means[kind] = Means({x: tensors[f"{kind}/{x}"] for x in count}, dict(count))
        if state["number"]:
            self.neutral = Scatter(state["number"], tensors["mean"], tensors["rows"])
        log.warning("Going on after %d texts that %s holds.", self.done, file)
