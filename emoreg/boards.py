"""Who is told what a journal is told: wandb, TensorBoard, trackio, and at the end the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import Trainer

from emoreg.journal import Journal

_JOURNALS: WeakKeyDictionary[Trainer, tuple[Journal, list[int]]] = WeakKeyDictionary()


def join(trainer: Trainer, guest: Any) -> Journal:
    """The journal of a trainer's run, which the first of its callbacks to join begins.

    Every callback that joins when training begins leaves when it ends.
    """
    if trainer not in _JOURNALS:
        journal = Journal(Path(str(trainer.args.output_dir)), trainer.is_world_process_zero())
        _JOURNALS[trainer] = (journal, [])
        journal.begin(trainer.state.global_step)
    journal, guests = _JOURNALS[trainer]
    guests.append(id(guest))
    return journal


def leave(trainer: Trainer, guest: Any) -> None:
    """The last to leave ends the journal and writes the report."""
    if trainer not in _JOURNALS:
        return
    journal, guests = _JOURNALS[trainer]
    guests.remove(id(guest))
    if not guests:
        del _JOURNALS[trainer]
        journal.add("end", trainer.state.global_step)
