"""Adaptive weights, refits and the KL anchor on two processes that see other data each.

    torchrun --standalone --nproc_per_node 2 control_worker.py OUT.json SFT DPO …

For each trainer the file has the weights and facets of each process, how far their adapters are
from each other, and what was logged.
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
from test_control import ALL, history
from torch import distributed
from trainers import weights
from windows import control, make


def run(name: str, folder: Path) -> dict[str, Any]:
    """Four steps with everything on."""
    trainer = make(name, folder, max_steps=4, gradient_accumulation_steps=1, learning_rate=1e-2)
    assert trainer.accelerator.num_processes == 2
    guest = control(trainer, **ALL)
    trainer.train()
    refitter = guest._control._refitter
    assert refitter is not None
    tensors, names = refitter.state()
    flat = [t.flatten().tolist() for t in tensors.values()]
    trained = torch.cat([w.flatten() for w in weights(trainer.model).values()]).tolist()
    seen = [float(x) for x in guest._control._kl.texts(distributed.get_rank())[0].text.encode()]
    return {
        "weights": gather_object([guest.terms.weights]),
        "facets": gather_object([[names, flat]]),
        "adapters": gather_object([trained]),
        "anchored": gather_object([seen]),
        "logs": history(trainer),
    }


def main() -> None:
    """Run them all; the first process writes."""
    out, *names = sys.argv[1:]
    found = {}
    for name in names:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(name, Path(folder))
    if distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
