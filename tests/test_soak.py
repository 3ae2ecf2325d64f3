"""Trainers come and go in a process and nothing of them stays; a long run needs no more memory."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_bank import write_bank
from test_guest import broken_loss
from torch import Tensor
from trainers import (
    PROMPT_FILE,
    control,
    hooks,
    logged,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
)

from emoreg import boards
from emoreg.auditing import AuditCallback
from emoreg.callbacks import DriftCallback
from emoreg.tap import Tap

TRAINERS, WARM = 20, 4
EVERY_GUEST: dict[str, Any] = {
    "target": 0.1, "keep": 0.01, "kl": 0.01, "kl_texts": 1, "refit_steps": 1, "refit_texts": 8,
    "refit_tokens": 2, "alerts": {"reading/desperate": 100.0},
}  # fmt: skip
SOAK = Path("benchmarks/soak.py")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transcripts enough for a refit too."""
    return write_bank(tmp_path_factory.mktemp("bank") / "bank.jsonl", topics=4)


def counts(model: Any) -> dict[str, Any]:
    """What one more trainer could add to, once what is garbage is collected."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    return {
        "tensors": sum(issubclass(type(o), Tensor) for o in gc.get_objects()),
        "hooks": hooks(model),
        "handlers": sum(len(found.handlers) for found in [logging.root, *loggers]),
        "finalizers": len(weakref.finalize._registry),  # type: ignore[attr-defined]
        "rooms": len(boards._ROOMS) + len(boards._TRAINING),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def guests(trainer: Any, bank: Path) -> list[Any]:
    """Every callback, added to the trainer."""
    found: list[Any] = [control(trainer, bank=str(bank), **EVERY_GUEST)]
    for callback in (
        DriftCallback(trainer, make_vectors(), PROMPT_FILE, response_tokens=2),
        AuditCallback(trainer, make_vectors(), bank, PROMPT_FILE, audit_steps=1),
    ):
        trainer.add_callback(callback)
        found.append(callback)
    return found


def visit(model: Any, folder: Path, bank: Path, fails: bool) -> list[weakref.ref[Any]]:
    """A trainer of the model comes, trains two steps or fails in the first, and goes."""
    trainer: Any = make_trainer(
        folder, model, make_rows(4), max_steps=2, per_device_train_batch_size=2
    )
    if fails:
        broken_loss(trainer)
    found = guests(trainer, bank)
    if fails:
        with pytest.raises(OSError, match="the disk is full"):
            trainer.train()
    else:
        trainer.train()
        assert logged(trainer, "emoreg/refit_seconds")  # control: everything did run
        assert logged(trainer, "emoreg/audit_verdict")
        assert logged(trainer, "emoreg/kl")
    return [weakref.ref(each) for each in (trainer, trainer.optimizer, *found)]


def visits(folder: Path, bank: Path, number: int) -> Iterator[dict[str, Any]]:
    """Trainers of one model, one after the other; what is there after each."""
    model = make_model()
    for i in range(number):
        left = visit(model, folder / str(i), bank, fails=i % 4 == 3)
        yield {**counts(model), "alive": [type(r()) for r in left if r() is not None]}


def test_of_twenty_trainers_in_one_process_nothing_stays(bank: Path, tmp_path: Path) -> None:
    """The first few load something for good; after each of the others all counts are the same."""
    rooms = counts(make_model())["rooms"]  # of other tests' trainers
    found = list(visits(tmp_path, bank, TRAINERS))
    assert [each["alive"] for each in found] == [[]] * TRAINERS
    assert [each["hooks"] for each in found] == [hooks(make_model())] * TRAINERS
    assert [each["rooms"] for each in found] == [rooms] * TRAINERS
    assert found[WARM:] == [found[WARM]] * (TRAINERS - WARM)


def leak(what: str, model: Any, undo: ExitStack) -> None:
    """Leave one thing behind, until it is undone."""
    if what == "hooks":
        undo.callback(Tap(model, [0]).open().close)
    elif what == "tensors":
        undo.callback(torch.zeros(1).sum)  # held by its method
    elif what == "handlers":
        logger, handler = logging.getLogger("emoreg"), logging.NullHandler()
        logger.addHandler(handler)
        undo.callback(logger.removeHandler, handler)
    elif what == "finalizers":
        undo.callback(weakref.finalize(model, len, "").detach)
    elif what == "rooms":
        boards._TRAINING[0] = None
        undo.callback(boards._TRAINING.pop, 0)
    elif what == "threads":
        over = threading.Event()
        threading.Thread(target=over.wait).start()
        undo.callback(over.set)
    elif what == "files":
        undo.callback(os.close, os.open(__file__, os.O_RDONLY))


def test_a_leak_of_each_kind_is_counted() -> None:
    """The control of the test above."""
    model = make_model()
    before = counts(model)
    for what in before:
        with ExitStack() as undo:
            leak(what, model, undo)
            after = counts(model)
        assert what in {name for name in after if after[name] != before[name]}, what


def test_a_trainer_that_is_held_is_told_alive(bank: Path, tmp_path: Path) -> None:
    """The control of the weak references."""
    held: list[Any] = []
    made = make_trainer(tmp_path, make_model())
    held.append(guests(made, bank)[0].trainer)
    left = weakref.ref(made)
    del made
    gc.collect()
    assert left() is held[0]
    held.clear()
    gc.collect()
    assert left() is None


@pytest.mark.slow
def test_two_thousand_steps_with_everything_on_need_no_more_memory(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    subprocess.run([sys.executable, str(SOAK), "--out", str(out)], check=True, timeout=3600)
    check_soak(json.loads(out.read_text()), 2000)


def test_the_soak_that_is_kept_is_within_its_limit() -> None:
    check_soak(json.loads((SOAK.parent / "results" / "soak.json").read_text()), 2000)


def check_soak(found: dict[str, Any], steps: int) -> None:
    """Memory is flat, and everything did run."""
    bare, arm = found["arms"]["bare"], found["arms"]["everything"]
    assert found["steps"] == steps
    assert arm["growth_percent"] <= 1
    assert (arm["hooks"], arm["hooks_left"]) == (0, 0)
    assert (arm["refits"], arm["lines_without_reading"]) == (steps // 100, 0)
    assert arm["drifts"] > steps // 100
    assert arm["audits"] == steps // 200
    assert abs(arm["tensors"]) <= 50  # facets come, and the least useful go
    assert bare["refits"] == 0  # control: the other arm is the bare trainer
