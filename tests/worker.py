"""One optimizer step on two processes for each of some jobs; gradients and readings to files.

    torchrun --standalone --nproc_per_node 2 worker.py FOLDER CASE:TRAINER:HOW …

A job is a case, a trainer of `zoo` and a way to add the callbacks, of `cases`. The trainer's own
loss is multiplied by zero, so the gradients are those of the added term alone. Every case sees the
same sequences in one accumulation window. For each job `FOLDER` gets a `.json` that says how it
trained and what it logged, and a `.pt` with the gradients of the last step, gathered over all
shards, by plain name.
Nothing here needs a GPU: DeepSpeed runs with ``DS_ACCELERATOR=cpu``, FSDP with one patch.
"""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import torch
from accelerate.utils import gather_object
from cases import CASES, clean, regularize, trainer_of
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from ways import silence

from emoreg.journal import Run

WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_checkpoint_wrapped_module)\.")


class Recorder(TrainerCallback):
    """Keeps the whole gradients just before the last optimizer step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.grads: dict[str, Tensor] = {}
        self.sharded = 0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """DeepSpeed steps, and frees its gradients, within the backward."""
        wrapper = getattr(self.trainer.accelerator, "deepspeed_engine_wrapped", None)
        if wrapper is not None:
            wrapper.engine.step = self._before(wrapper.engine.step)

    def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        """Everything else steps here."""
        if not self.trainer.is_deepspeed_enabled:
            self.keep()

    def _before(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.keep()
            return step(*args, **kwargs)

        return stepping

    def keep(self) -> None:
        """Gather the gradients of all trained parameters; every process takes part."""
        trained = [(n, p) for n, p in self.trainer.model.named_parameters() if p.requires_grad]
        self.grads = {WRAPPERS.sub("", n): whole_gradient(p).clone() for n, p in trained}
        self.sharded = sum(is_shard(p) for p in self.trainer.model.parameters())


def is_shard(parameter: Any) -> bool:
    """Whether this process holds a part of the parameter only."""
    return isinstance(parameter, DTensor) or parameter.numel() < getattr(parameter, "ds_numel", 0)


def is_checkpointed(module: nn.Module) -> bool:
    """Whether a block recomputes its activations, by transformers or by FSDP."""
    if type(module).__name__.endswith("CheckpointWrapper"):
        return True
    return hasattr(module, "self_attn") and bool(vars(module).get("gradient_checkpointing"))


def whole_gradient(parameter: Any) -> Tensor:
    """A parameter's gradient over all shards, zero where it has none."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_grad

        found = safe_get_full_grad(parameter)
        assert found is not None
        return found.detach()
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (grad.full_tensor() if isinstance(grad, DTensor) else grad).detach()


def sequences(batches: list[dict[str, Any]]) -> int:
    """How many sequences this process saw."""
    return sum(len(b["completion_ids" if "prompt_ids" in b else "input_ids"]) for b in batches)


def run(case: str, column: str, how: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """What a job was and what it logged, and its gradients; every process takes part."""
    trainer = trainer_of(column, folder, CASES[case], how)
    assert trainer.accelerator.num_processes == 2
    batches, recorder = silence(trainer), Recorder(trainer)
    regularize(trainer, how)
    trainer.add_callback(recorder)
    trainer.train()
    logs: dict[str, float] = {}
    for row in trainer.state.log_history:
        logs.update({k: v for k, v in row.items() if k.startswith("emoreg/")})
    plugin = trainer.accelerator.state.deepspeed_plugin
    found = {
        "distributed": trainer.accelerator.distributed_type.value,
        "stage": plugin and plugin.zero_stage,
        "sharded": recorder.sharded,
        "parameters": len(list(trainer.model.parameters())),
        "checkpointed": sum(is_checkpointed(m) for m in trainer.model.modules()),
        "sequences": gather_object([sequences(batches)]),
        "micro_batches": gather_object([len(batches)]),
        "logs": logs,
        "texts": texts_of(folder) if distributed.get_rank() == 0 else [],
    }
    return found, recorder.grads


def texts_of(folder: Path) -> list[tuple[str, str, str]]:
    """What the journal says of the last texts: emotion, end and the text."""
    rows = Run.load(folder).texts[-1]["rows"]
    return [(row["emotion"], row["end"], "".join(row["tokens"])) for row in rows]


def main() -> None:
    """Run the jobs; the first process writes after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="+")
    args = parser.parse_args()
    for job in args.jobs:
        sys.stdout.write(f"{job}\n")
        with clean(), tempfile.TemporaryDirectory() as folder:
            found, grads = run(*job.split(":"), Path(folder))
        if distributed.get_rank() == 0:
            torch.save(grads, args.folder / f"{job}.pt")
            (args.folder / f"{job}.json").write_text(json.dumps(found, indent=1))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
