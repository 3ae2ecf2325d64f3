"""What a run's journal begins with: who trains what, with which versions and arguments."""

from __future__ import annotations

import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import has_length

from emoreg.host import model_of
from emoreg.identity import identity

PACKAGES = ("emoreg", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "wandb")
ARGUMENTS = (
    *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
    *("weight_decay", "max_grad_norm", "optim", "bf16", "fp16", "logging_steps", "save_steps"),
    *("max_length", "beta", "loss_type", "seed", "data_seed"),
)
ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_dora")


def header(trainer: Trainer) -> dict[str, Any]:
    """The fields of the journal's first event, beside its step."""
    args = trainer.args
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "name": args.run_name or "",
        "trainer": type(trainer).__name__,
        "versions": {"python": platform.python_version(), **_versions()},
        "model": identity(model_of(trainer), trainer.processing_class),
        "args": {
            **{name: getattr(args, name) for name in ARGUMENTS if hasattr(args, name)},
            "num_train_epochs": trainer.state.num_train_epochs,  # as far as the steps go
            "max_steps": trainer.state.max_steps,
            "processes": trainer.accelerator.num_processes,
        },
        "adapter": _adapter(trainer),
        "data": _data(trainer),
        "wandb": _wandb(trainer),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _data(trainer: Trainer) -> dict[str, Any] | None:
    """What is trained on, as far as the data set tells."""
    rows = trainer.train_dataset
    if rows is None:
        return None
    other = trainer.eval_dataset
    evaluated = list(other.values()) if isinstance(other, dict) else [other]
    return {
        "name": getattr(getattr(rows, "info", None), "dataset_name", None),
        "rows": _length(rows),
        "columns": list(getattr(rows, "column_names", None) or []),
        "fingerprint": getattr(rows, "_fingerprint", None),
        "eval_rows": sum(_length(part) or 0 for part in evaluated) or None,
    }


def _length(rows: Any) -> int | None:
    return len(rows) if has_length(rows) else None


def _adapter(trainer: Trainer) -> dict[str, Any] | None:
    """The settings of the adapter that is trained."""
    model = trainer.accelerator.unwrap_model(model_of(trainer))
    configs, active = getattr(model, "peft_config", None), getattr(model, "active_adapter", None)
    config = configs.get(active) if isinstance(configs, dict) and isinstance(active, str) else None
    if config is None:
        return None
    found = {"name": active, "type": str(getattr(config.peft_type, "value", config.peft_type))}
    for name in ADAPTER:
        value = getattr(config, name, None)
        found[name] = sorted(value) if isinstance(value, set | frozenset) else value
    found["alpha"] = found.pop("lora_alpha")
    return found


def _wandb(trainer: Trainer) -> dict[str, Any] | None:
    """Which run of wandb the trainer reports to; none is imported for this."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if "wandb" not in (trainer.args.report_to or []) or run is None:
        return None
    mode = "disabled" if run.disabled else "offline" if run.offline else "online"
    return {"id": run.id, "project": run.project, "entity": run.entity, "mode": mode}
