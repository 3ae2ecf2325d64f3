"""Exact moments at which a run is killed, those that a random moment seldom meets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT = 4  # the step whose checkpoint is cut off


def die() -> None:
    """As by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _checkpoint(trainer: Any) -> Path:
    return Path(trainer.args.output_dir) / f"checkpoint-{AT}"


def _at(trainer: Any) -> bool:
    return bool(trainer.state.global_step == AT)


def _adapter(trainer: Any) -> None:
    """Half of the adapter's file is written."""
    before = trainer.model.save_pretrained

    def save(*args: Any, **kwargs: Any) -> None:
        before(*args, **kwargs)
        if _at(trainer):
            _half(_checkpoint(trainer) / "adapter_model.safetensors")
            die()

    trainer.model.save_pretrained = save


def _optimizer(trainer: Any) -> None:
    """Half of the optimizer's state is written."""
    before = trainer._save_optimizer_and_scheduler

    def save(folder: str) -> None:
        before(folder)
        if _at(trainer):
            _half(Path(folder) / "optimizer.pt")
            die()

    trainer._save_optimizer_and_scheduler = save


def _state(trainer: Any) -> None:
    """Half of trainer_state.json is written."""
    from transformers import TrainerState

    before = TrainerState.save_to_json

    def save(self: TrainerState, path: str) -> None:
        before(self, path)
        if _at(trainer):
            _half(Path(path))
            die()

    TrainerState.save_to_json = save


def _rotation(trainer: Any) -> None:
    """The trainer is about to delete the oldest checkpoint."""
    from transformers import trainer as host

    before = host.rotate_checkpoints

    def rotate(*args: Any, **kwargs: Any) -> None:
        if _at(trainer):
            die()
        before(*args, **kwargs)

    host.rotate_checkpoints = rotate


def _replacing(name: str, always: bool = False) -> Callable[[Any], None]:
    """A file of emoreg's is on the disk under its temporary name, and not yet under its own."""

    def set_up(trainer: Any) -> None:
        before = os.replace

        def replace(source: Any, target: Any) -> None:
            if Path(target).name == name and (always or _at(trainer)):
                die()
            before(source, target)

        os.replace = replace

    return set_up


def _writing(name: str) -> Callable[[Any], None]:
    """Half of a file of emoreg's is written under its temporary name."""

    def set_up(trainer: Any) -> None:
        before = os.fsync

        def sync(number: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            if name in path.name and _at(trainer):
                _half(path)
                die()
            before(number)

        os.fsync = sync

    return set_up


def _journal(trainer: Any) -> None:
    """Half of a line of the journal is written."""
    from emoreg.journal import Journal

    before = Journal._write

    def write(self: Journal) -> None:
        if _at(trainer):
            with self.path.open("ab") as file:
                file.write(self._due[0].encode()[: len(self._due[0]) // 2])
            die()
        before(self)

    Journal._write = write  # type: ignore[method-assign]


POINTS: dict[str, Callable[[Any], None]] = {
    "half the adapter": _adapter,
    "half the control's state": _writing("emoreg-control"),
    "before the control's state": _replacing("emoreg-control.safetensors"),
    "before the readings": _replacing("emoreg-readings.safetensors"),
    "half the optimizer": _optimizer,
    "half the trainer's state": _state,
    "before older checkpoints go": _rotation,
    "half a line of the journal": _journal,
    "before the base's readings": _replacing("emoreg-base.safetensors", always=True),
    "before the report": _replacing("report.html", always=True),
}


def set_up(point: str, trainer: Any) -> None:
    """Have this process killed at a point."""
    POINTS[point](trainer)
