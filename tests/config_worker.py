"""One recipe for two steps under whatever configuration launched this; what it was, to a file.

    accelerate launch --config_file C tests/config_worker.py OUT.json METHOD --config RECIPE …

FSDP is left out of the CPU's list by accelerate; the patch of `cases` puts it there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported

from accelerate.state import AcceleratorState
from cases import fsdp_on_cpu
from torch import distributed

from emoreg import training


def main() -> None:
    """Train; the first process writes."""
    out, method, *flags = sys.argv[1:]
    AcceleratorState.__init__ = fsdp_on_cpu(AcceleratorState.__init__)
    trainer = training.main(method, flags)
    state = trainer.accelerator.state
    found = {
        "processes": trainer.accelerator.num_processes,
        "type": trainer.accelerator.distributed_type.value,
        "stage": state.deepspeed_plugin and state.deepspeed_plugin.zero_stage,
        "fsdp": getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", None),
        "steps": trainer.state.global_step,
        "losses": [r["emoreg/loss"] for r in trainer.state.log_history if "emoreg/loss" in r],
    }
    if trainer.is_world_process_zero():
        Path(out).write_text(json.dumps(found))
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
