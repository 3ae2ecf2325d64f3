"""Who is told what a journal is told: wandb, TensorBoard, trackio, and at the end the report."""

from __future__ import annotations

import logging
import re
import time
import weakref
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer

from emoreg import console, host, wandb_resume, whole
from emoreg.files import sweep
from emoreg.header import header
from emoreg.host import Loan
from emoreg.journal import Journal
from emoreg.trackers import boards_of
from emoreg.vectors import EmotionVectors
from emoreg.wandb_board import open_board

REPORT = "report.html"
ADDED = re.compile(r"emoreg/([^/]+/)?loss")  # what regularizers added to the loss

log = logging.getLogger(__name__)


class _Room:
    """One run of a trainer, and who takes part in it."""

    def __init__(self, trainer: Trainer) -> None:
        self.state, self.began = trainer.state, time.monotonic()
        writes = trainer.is_world_process_zero()
        self.journal = Journal(Path(str(trainer.args.output_dir)), writes)
        self.guests: list[int] = []
        self.board = open_board(trainer, self.journal)
        self.trackers: list[Any] = list(boards_of(trainer, self.journal)) if writes else []
        self.journal.listeners += self.trackers
        if self.board is not None:
            self.journal.listeners.append(self.board)
        self.keepers: list[Callable[[Path], None]] = []
        self._loan, self.saves = Loan(), Loan()
        console.shorten(trainer, self._loan, self._watched)
        self.follow(trainer)
        if writes:
            sweep(self.journal.path.parent)
        logged = len(self.state.log_history)
        self.journal.begin(self.state.global_step, logged=logged, **header(trainer))
        if self.board is not None and self.state.global_step > 0:
            self.board.go_on()

    def enter(self, guest: Any) -> None:
        """A callback joins."""
        self.guests.append(id(guest))
        vectors = getattr(guest, "vectors", None)
        if self.board is not None and isinstance(vectors, EmotionVectors):
            self.board.use(vectors)

    def end(self) -> None:
        """The last has left."""
        seconds = time.monotonic() - self.began
        loss = task_loss([logs for _, logs in self.journal.run.logs])
        self.journal.add("end", self.state.global_step, seconds=seconds, loss=loss)
        report = self._report() if self.journal.writes else None
        if self.board is not None:
            self.board.finish(report)
        self.close()

    def follow(self, trainer: Trainer) -> None:
        """Go around the method that every checkpoint begins with, unless it is done."""
        if not self.saves.taken:
            self.saves.go_around(trainer, "save_model", self._saving)

    def close(self) -> None:
        """Give back what was borrowed."""
        self._loan.give_back()
        self.saves.give_back()
        if self.board is not None:
            self.board.guard.give_back()
        for tracker in self.trackers:
            tracker.close()

    def _saving(self, save_model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`trainer.save_model`, with which every checkpoint begins."""
        found = save_model(*args, **kwargs)
        folder = args[0] if args else kwargs.get("output_dir")
        if folder and Path(folder).name == f"checkpoint-{self.state.global_step}":
            for keep in self.keepers:
                keep(Path(folder))
        return found

    def _watched(self) -> set[str]:
        """Emotions that any regularizer penalises or rewards."""
        kinds = [
            kind
            for control in self.journal.run.controls.values()
            for kind in control["watched"].values()
        ]
        return {emotion for kind in kinds for emotion in kind}

    def _report(self) -> Path | None:
        path = self.journal.path.with_name(REPORT)
        try:
            from emoreg.reporting import write_runs  # draws; a run that is cut off never needs it

            write_runs([self.journal.run], path)
        # Training is done and not yet saved: nothing that a page stumbles over may end the script.
        except Exception as e:
            text = (
                f"{path.name} could not be made ({type(e).__name__}: {e}). Everything it would "
                f"show is in {self.journal.path.name}: emoreg report {self.journal.path.parent}"
            )
            log.warning(text)
            self.journal.add("note", self.state.global_step, text=text)
            return None
        return path


# By identity: a trainer may be a dataclass, which cannot be hashed.
_ROOMS: dict[int, _Room] = {}
_TRAINING: dict[int, Any] = {}  # and what `train` was given to go on from


def expect(trainer: Trainer, guest: Any) -> None:
    """Prepare for the first training of a trainer; every callback calls it when it is made.

    A run that goes on from a checkpoint opens its run of wandb before callbacks are told that
    training begins, and one that fails never tells them that it ends.
    """
    around = _training(weakref.ref(trainer))
    Loan().go_around(trainer, "train", around)
    weakref.finalize(guest, host.leave, weakref.ref(trainer), "train", around)


def resumed_from(trainer: Trainer) -> Any:
    """What the trainer's first `train`, if that is under way, was given to go on from."""
    return _TRAINING.get(id(trainer))


def checkpoint(trainer: Trainer) -> Path:
    """The folder of the checkpoint that the run under way goes on from."""
    passed, output = resumed_from(trainer), Path(str(trainer.args.output_dir))
    if isinstance(passed, str):
        return Path(passed)
    given = trainer.args.resume_from_checkpoint
    own = output / f"checkpoint-{trainer.state.global_step}"
    return Path(given) if isinstance(given, str) and not own.is_dir() else own


def join(trainer: Trainer, guest: Any) -> Journal:
    """The journal of a trainer's run, which the first of its callbacks to join begins.

    Every callback that joins when training begins leaves when it ends.
    """
    room = _room(trainer)
    if room is None:
        _close(trainer)  # a run that failed
        room = _ROOMS[id(trainer)] = _Room(trainer)
        weakref.finalize(trainer, _ROOMS.pop, id(trainer), None)
    if id(guest) not in room.guests:
        room.enter(guest)
    return room.journal


def keep(trainer: Trainer, keeper: Callable[[Path], None]) -> None:
    """Let a function put files into every checkpoint of the run under way.

    It is called right after the model is written, before the optimizer, trainer_state.json and the
    deletion of older checkpoints: one with a whole trainer_state.json has what emoreg keeps.

    Args:
        trainer: Whose run; a callback of it has joined.
        keeper: Takes the folder of the checkpoint.
    """
    room = _room(trainer)
    assert room is not None
    room.keepers.append(keeper)


def lost(trainer: Trainer) -> None:
    """A step failed, maybe for good: give back what would stay on the trainer."""
    room = _room(trainer)
    if room is not None:
        room.saves.give_back()


def found(trainer: Trainer) -> None:
    """The trainer went on after a step that failed."""
    room = _room(trainer)
    if room is not None:
        room.follow(trainer)


def logged(trainer: Trainer, guest: Any, logs: Mapping[str, Any]) -> None:
    """A line of the trainer's log, which every callback brings: the journal gets it once."""
    room = _room(trainer)
    if room is not None and room.guests[:1] == [id(guest)]:
        numbers = {k: float(v) for k, v in logs.items() if _is_number(v)}
        room.journal.add("log", room.state.global_step, logs=numbers)


def leave(trainer: Trainer, guest: Any) -> None:
    """The last to leave ends the journal and writes the report."""
    room = _room(trainer)
    if room is None or id(guest) not in room.guests:
        return
    room.guests.remove(id(guest))
    if not room.guests:
        del _ROOMS[id(trainer)]
        room.end()


def task_loss(lines: list[dict[str, float]]) -> float | None:
    """The mean of the logged losses, without what was added to them; None if none was logged."""
    found = [
        line["loss"] - sum(v for k, v in line.items() if ADDED.fullmatch(k) and v is not None)
        for line in lines
        if line.get("loss") is not None
    ]
    return sum(found) / len(found) if found else None


def _room(trainer: Trainer) -> _Room | None:
    """The room of the run under way; each run has a state of its own."""
    room = _ROOMS.get(id(trainer))
    return room if room is not None and room.state is trainer.state else None


def _close(trainer: Trainer) -> None:
    room = _ROOMS.pop(id(trainer), None)
    if room is not None:
        room.close()


def _training(trainer: weakref.ref[Trainer]) -> Callable[..., Any]:
    """Goes around `trainer.train` once; of several the outermost does what is to be done."""

    def train(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        own, loan = trainer(), Loan()
        outermost = own is not None and id(own) not in _TRAINING
        if own is not None and outermost:
            wandb_resume.lend(own, loan)
            given = args[0] if args else kwargs.get("resume_from_checkpoint")
            _TRAINING[id(own)] = given
        try:
            if own is not None and outermost:
                whole.check(own, given)
            return method(*args, **kwargs)
        finally:
            loan.give_back()
            if own is not None and outermost:
                _TRAINING.pop(id(own), None)
                _close(own)
            host.leave(trainer, "train", train)

    return train


def _is_number(value: Any) -> bool:
    scalar = isinstance(value, Real) and not isinstance(value, bool)
    return scalar or (isinstance(value, Tensor) and value.numel() == 1)
