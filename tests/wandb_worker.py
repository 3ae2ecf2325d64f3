"""Trains while wandb's service is killed, and says in JSON how that went.

    python wandb_worker.py FOLDER

In a process of its own, since wandb cannot be used any more in one whose service died. Under
torchrun nobody is killed: each process says what it has.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ.pop("WANDB_SERVICE", None)  # of whoever starts this

import conftest  # noqa: F401 - offline before anything is imported
import psutil
from trainers import PROMPT_FILE, Do, control, make_trainer, make_vectors

from emoreg.callbacks import DriftCallback


class Heard(logging.Handler):
    """Keeps what emoreg warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("emoreg").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def kill_service() -> int:
    """How many processes of wandb were killed."""
    own = [p for p in psutil.Process().children(recursive=True) if p.name() == "wandb-core"]
    for process in own:
        process.kill()
        process.wait()
    return len(own)


def run(folder: Path, kill: bool) -> dict[str, Any]:
    import wandb

    heard, killed = Heard(), []
    os.environ["WANDB_DIR"] = str(folder)
    trainer = make_trainer(folder, max_steps=4, per_device_train_batch_size=4, report_to=["wandb"])
    control(trainer)
    trainer.add_callback(DriftCallback(trainer, make_vectors(), PROMPT_FILE, drift_steps=1))

    def at_step_2(**_kwargs: Any) -> None:
        if kill and trainer.state.global_step == 2:
            killed.append(kill_service())

    def completions(**_kwargs: Any) -> None:  # as trainers of TRL log them
        if wandb.run is not None:
            wandb.log({"completions": trainer.state.global_step})

    trainer.add_callback(Do("on_step_begin", at_step_2))
    trainer.add_callback(Do("on_step_end", completions))
    result = trainer.train()
    mistake = ""
    try:
        wandb.log("not a table")
    except Exception as e:  # whatever it is, it must be told
        mistake = type(e).__name__
    (host,) = [c for c in trainer.callback_handler.callbacks if type(c).__name__ == "WandbCallback"]
    return {
        "rank": trainer.args.process_index,
        "processes": trainer.accelerator.num_processes,
        "killed": killed,
        "steps": result.global_step,
        "history": trainer.state.log_history,
        "warnings": [said for said in heard.said if "wandb" in said],
        "mistake": mistake,
        "lent": [name for name in vars(host) if name.startswith("on_")],
        "open": wandb.run is not None,
    }


def main() -> None:
    folder, alone = Path(sys.argv[1]), "RANK" not in os.environ
    found = run(folder, kill=alone)
    (folder / f"found.{found['rank']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
