"""Runs that are killed, terminated, or have no room, and what they leave; all in one process tree.

    python kill_worker.py FOLDER

Everything is imported once; each piece of a run is a process of its own, forked from here before
any tensor was computed. FOLDER/found.json has how each ended and what was left.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import torch
from test_refit import TEXTS
from trainers import PROMPT_FILE, Do, control, make_model, make_trainer, make_vectors, weights

import emoreg.reporting
from emoreg import whole
from emoreg.callbacks import DriftCallback
from emoreg.journal import Journal, Run

STEPS, SAVE = 6, 2
KNOBS: dict[str, Any] = {
    "texts": TEXTS, "refit_steps": 3, "refit_tokens": 0, "refit_texts": 24, "target": 0.1,
    "warmup": 0.5, "blocks": [0, 1], "log_texts": 1,
    "alerts": {"reading/desperate": {"above": -100.0, "patience": 3}},
}  # fmt: skip
OURS = ("emoreg-control.safetensors", "emoreg-readings.safetensors")


def make(folder: Path, at: int = -1, strike: Callable[[], None] | None = None, **args: Any) -> Any:
    """A trainer with everything on; at the beginning of step `at` + 1 something strikes."""
    trainer = make_trainer(
        folder, make_model(awake=False, lora_dropout=0.1),
        **{"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE,
           "save_total_limit": 2, "per_device_train_batch_size": 2,
           "gradient_accumulation_steps": 2, **args},
    )  # fmt: skip
    control(trainer, **{**KNOBS, "reward": {"calm": 0.05}, "penalize": {"desperate": 0.1}})
    drift = DriftCallback(trainer, make_vectors(), PROMPT_FILE, 3, response_tokens=0, cache=False)
    trainer.add_callback(drift)

    def begins(**_kwargs: Any) -> None:
        if strike is not None and trainer.state.global_step == at:
            strike()

    trainer.add_callback(Do("on_step_begin", begins))
    return trainer


def run(folder: Path, resume: Any = None, **how: Any) -> None:
    """Train to the end and say what came out."""
    trainer = make(folder, **how)
    trainer.train(resume_from_checkpoint=resume)
    journal = folder / "emoreg.jsonl"
    found = Run.load(folder) if journal.is_file() else Run(folder)
    rows = trainer.state.log_history
    out: dict[str, Any] = {
        "weights": {n: w.flatten().tolist() for n, w in weights(trainer.model).items()},
        "history": [bare(row) for row in rows],
        "journal": [[step, bare(logs)] for step, logs in found.logs],
        "drifts": [bare(row) for row in found.drifts],
        "texts": found.texts,
        "alerts": found.alerts,
        "step": trainer.state.global_step,
    }
    (folder / "outcome.json").write_text(json.dumps(out))


def bare(row: dict[str, Any]) -> dict[str, Any]:
    """Without clocks, and what the host counts anew after a resume."""
    left = ("seconds", "runtime", "per_second", "train_loss", "num_tokens", "flos")
    return {k: v for k, v in row.items() if not any(part in k for part in left)}


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


# --- what strikes ---------------------------------------------------------------------------


def before_replacing(name: str) -> Callable[[], None]:
    """From now on, die when a file that is written is about to get this name."""

    def strike() -> None:
        replace = os.replace

        def dying(source: Any, target: Any) -> None:
            if Path(target).name == name:
                die()
            replace(source, target)

        os.replace = dying

    return strike


def in_a_line() -> None:
    """Die when half of the next line of the journal is written."""

    def write(self: Journal) -> None:
        with self.path.open("ab") as file:
            file.write(self._due[0].encode()[:30])
        die()

    Journal._write = write  # type: ignore[method-assign]


def no_room_for(name: str) -> None:
    """From now on the disk is full for files of a name."""
    sync = os.fsync

    def full(number: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    os.fsync = full


def no_room() -> None:
    """From now on no file grows beyond 1 kB, as on a disk that is full for all."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def in_the_way(folder: Path) -> None:
    """Folders lie where journal and report are written, and there is no room for readings."""
    for name in ("emoreg.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name / "something").mkdir(parents=True)
    no_room_for(OURS[1])


def soon() -> None:
    """SIGTERM to a trainer that then saves at once."""
    from transformers import trainer_jit_checkpoint as host

    host.threading.Timer = lambda _wait, do: type("", (), {"start": staticmethod(do)})
    die(signal.SIGTERM)


# --- the runs -------------------------------------------------------------------------------


def pieces(folder: Path) -> dict[str, list[Callable[[], None]]]:
    """Every run by its name: its pieces, one after the other."""

    def at(name: str, **how: Any) -> Callable[[], None]:
        return partial(run, folder / name, **how)

    def older(name: str) -> Callable[[], None]:
        return at(name, resume=str(folder / name / "checkpoint-2"))

    control_file, readings = OURS
    return {
        "straight": [at("straight")],
        "replacing": [
            at("replacing", at=3, strike=before_replacing(readings)),
            at("replacing", resume=True),
            older("replacing"),
        ],
        "line": [at("line", at=5, strike=in_a_line), at("line", resume=True)],
        "end": [
            at("end", at=5, strike=before_replacing("report.html")),
            at("end", resume=True),
        ],
        "terminated": [
            at("terminated", at=3, strike=partial(die, signal.SIGTERM)),
            at("terminated", resume=True),
        ],
        "in time": [
            at("in time", at=3, strike=soon, enable_jit_checkpoint=True),
            at("in time", resume=str(folder / "in time" / "checkpoint-3")),
        ],
        "full for the control": [
            at("full for the control", at=3, strike=partial(no_room_for, control_file)),
            at("full for the control", resume=True),
            older("full for the control"),
        ],
        "full": [at("full", at=3, strike=no_room), at("full", resume=True)],
        "in the way": [at("in the way", at=3, strike=partial(in_the_way, folder / "in the way"))],
    }


def piece(do: Callable[[], None], folder: Path) -> dict[str, Any]:
    """One process: how it ended, its last words, and what its folder holds then."""
    folder.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        torch.set_num_threads(1)
        try:
            do()
        except BaseException:  # the process ends here, whatever it was
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [p for p in folder.rglob(".*") if p.is_file()]
    return {
        "status": status,
        "said": said[-6000:],
        "left": sorted(p.name for p in left),
        "checkpoints": {p.name: whole.missing(p) for p in sorted(folder.glob("checkpoint-*"))},
        "ours": {
            p.name: sorted(f.name for f in p.glob("emoreg*"))
            for p in sorted(folder.glob("checkpoint-*"))
        },
    }


def main() -> None:
    folder = Path(sys.argv[1])
    emoreg.reporting.write_runs = lambda _runs, path: whole_page(path)
    found: dict[str, Any] = {}
    for name, each in pieces(folder).items():
        ended = [piece(do, folder / name) for do in each]
        outcome = folder / name / "outcome.json"
        found[name] = {
            "pieces": ended,
            "outcome": json.loads(outcome.read_text()) if outcome.exists() else None,
        }
    (folder / "found.json").write_text(json.dumps(found))


def whole_page(path: Path) -> Path:
    """In the place of a report, which takes long to draw."""
    from emoreg.files import write_atomic

    return write_atomic(path, "the report")


if __name__ == "__main__":
    main()
