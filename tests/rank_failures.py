"""Ways in which one of two processes fails alone, for `ranks`."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from audit_bank import write_bank
from trainers import (
    PROMPT_FILE,
    Do,
    control,
    make_base,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
)
from transformers import PrinterCallback

import emoreg.baseline
from emoreg.audit_view import Reader
from emoreg.auditing import AuditCallback
from emoreg.callbacks import DriftCallback
from emoreg.errors import CaptureError
from emoreg.refit import Refitter
from emoreg.snapshot import Gauge

WORDS = "only here"


def failing(*_args: Any, **_kwargs: Any) -> Any:
    """In the place of a method."""
    raise CaptureError(WORDS)


def loss(trainer: Any) -> None:
    """In the loss of the second step."""
    before = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        return failing() if trainer.state.global_step else before(*args, **kwargs)

    trainer.compute_loss = compute_loss


def refit(_trainer: Any) -> None:
    """In the refit after the first step."""
    Refitter._read = failing  # type: ignore[method-assign]


def drift(_trainer: Any) -> None:
    """In the first measurement of drift."""
    Gauge.now = failing  # type: ignore[method-assign]


def base(_trainer: Any) -> None:
    """In what the first process does alone before the base is read."""
    emoreg.baseline._key = failing


def audit(_trainer: Any) -> None:
    """In the audit at the end."""
    Reader.now = failing  # type: ignore[method-assign]


def disk(trainer: Any) -> None:
    """While it trains this process can write no byte into any file; it may say so nowhere else."""
    trainer.remove_callback(PrinterCallback)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    train = trainer.train

    def limited() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit))
        try:
            return train()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    trainer.train = limited


class Heard(logging.Handler):
    """Keeps what emoreg warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("emoreg").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


FAILURES: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (loss, refit, drift, base, audit, disk)
}


def run(how: str, rank: str, kind: str, folder: Path, _processes: int) -> dict[str, Any]:
    """Two steps with everything on, of which one process fails.

    Args:
        how: Of `FAILURES`.
        rank: Of the process that does.
        kind: ``lora`` or ``whole``, whose base is kept in a file for the audit.
        folder: To write to.
    """
    own = os.environ["RANK"]
    os.environ["EMOREG_CACHE"] = str(folder / "cache")
    trainer: Any = make_trainer(
        folder, make_model() if kind == "lora" else make_base(), make_rows(4), max_steps=2,
        per_device_train_batch_size=2,
    )  # fmt: skip
    bank = write_bank(folder / f"bank-{own}.jsonl", topics=4)
    more = {"refit_steps": 1, "refit_texts": 8, "refit_tokens": 2} if kind == "lora" else {}
    control(trainer, bank=str(bank), **more)
    drifts = DriftCallback(trainer, make_vectors(), PROMPT_FILE, drift_steps=1, response_tokens=2)
    trainer.add_callback(drifts)
    trainer.add_callback(AuditCallback(trainer, make_vectors(), bank, PROMPT_FILE))
    if own == rank:
        FAILURES[how](trainer)
    steps: list[int] = []
    warned = Heard()
    trainer.add_callback(Do("on_step_end", lambda **_: steps.append(trainer.state.global_step)))
    trainer.train()
    assert torch.distributed.get_world_size() == 2
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    written = sorted(str(p.relative_to(folder)) for p in files)
    return {"steps": steps, "written": written, "warned": warned.said}


if __name__ == "__main__":  # under torchrun
    how, rank, kind, folder = sys.argv[1:]
    run(how, rank, kind, Path(folder), 2)
