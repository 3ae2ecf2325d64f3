"""A run with alerts on two processes, stopped by one and resumed.

torchrun --standalone --nproc_per_node 2 alarm.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
from accelerate.utils import gather_object
from test_alerting import scripted
from test_alerts import NAME
from torch import distributed

from emoreg.alerting import AlertCallback
from emoreg.alerts import Fired


def train(folder: Path, alerts: Any, **how: Any) -> int:
    """The step at which a run of four ends."""
    trainer = scripted(
        folder, [0.0, 3.0, 3.0, 3.0], per_device_train_batch_size=4, max_steps=4,
        save_strategy="steps", save_steps=100,
    )  # fmt: skip
    assert trainer.accelerator.num_processes == 2

    def texts(_fired: Fired) -> dict[str, Any]:
        rows = gather_object([f"text {trainer.accelerator.process_index}"])
        return {"prompt": " ".join(rows), "tokens": ["so"]}

    trainer.add_callback(AlertCallback(trainer, alerts, texts))
    trainer.train(**how)
    return int(trainer.state.global_step)


def main() -> None:
    """Both runs; the first process writes."""
    folder, called = Path(sys.argv[1]), []

    def call(fired: Fired) -> None:
        called.append([fired.step, distributed.get_rank()])

    stop = {"above": 2.0, "action": "stop"}
    first = train(folder / "run", {NAME: [stop]})
    assert train(folder / "other", {NAME: {"above": 2.0, "action": call}}) == 4  # goes on
    last = train(
        folder / "run",
        {NAME: [stop, {"above": 1.0, "action": "stop"}]},
        resume_from_checkpoint=str(folder / "run" / "checkpoint-2"),
    )
    found = {
        "steps": gather_object([first]),
        "called": gather_object(called),
        "resumed": gather_object([last]),
    }
    if distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
