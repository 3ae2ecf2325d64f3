"""Trainers of `zoo`, each for one step on two processes, beside a direct computation.

    torchrun --standalone --nproc_per_node 2 two.py OUT.json SFT DPO …

For each trainer the file has how far its gradient is from the one by hand, how far two processes
are from each other, what was logged and what should have been.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import torch
from accelerate.utils import gather_object
from hand import error
from test_any_split import split
from torch import distributed
from trainers import logged
from windows import of_data


def step(name: str, folder: Path) -> dict[str, Any]:
    """Eight rows on two processes, in two micro-batches of two rows on each."""
    watch = split(name, folder, 2, 2)
    trainer, found = watch.trainer, watch.grads[0]
    assert trainer.accelerator.num_processes == 2
    rows = gather_object(watch.windows[0]) if watch.rollout.said else of_data(name, range(8))
    alone = watch.windows[0] if watch.rollout.said else rows[:4]
    watch.windows[0] = rows
    means, wanted = watch.wanted()
    other = {n: g.clone() for n, g in found.items()}
    for grad in other.values():
        distributed.broadcast(grad, 0)
    watch.windows[0] = alone
    return {
        "rows": len(rows),
        "error": error(found, wanted),
        "apart": max(gather_object([error(other, found)])),
        "alone": error(watch.wanted()[1], wanted),
        "loss": logged(trainer, "emoreg/loss"),
        "wanted": means["loss"],
    }


def main() -> None:
    """Run them all; the first process writes."""
    out, *names = sys.argv[1:]
    found = {}
    for name in names:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = step(name, Path(folder))
    if distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
