"""Tables and pictures for wandb, which is imported here alone and only when a trainer reports to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainingArguments

from emoreg.drift import Drift


def active_run(args: TrainingArguments) -> Any:
    """The wandb module if the trainer reports to it and a run is open, else None."""
    if "wandb" not in (args.report_to or []):
        return None
    import wandb

    return wandb if wandb.run is not None else None


def log_drift_table(args: TrainingArguments, history: Sequence[tuple[int, Drift]]) -> None:
    """Every measurement of drift as one table ``emoreg/drift_table``, and the last as a picture."""
    wandb = active_run(args)
    if wandb is None or not history:
        return
    from emoreg.charts import forest

    rows = [
        [step, emotion, mean, low, high]
        for step, found in history
        for emotion, mean, low, high in found.sorted()
    ]
    table = wandb.Table(columns=["step", "emotion", "drift", "low", "high"], data=rows)
    wandb.log({"emoreg/drift_table": table, "train/global_step": history[-1][0]})
