"""Tables and pictures for wandb, imported here alone and only when a trainer reports to it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import TrainingArguments

from emoreg.charts import Interval, forest
from emoreg.drift import Drift


def active_run(args: TrainingArguments) -> Any:
    """The wandb module if the trainer reports to it and a run is open, else None."""
    if "wandb" not in (args.report_to or []):
        return None
    import wandb

    return wandb if wandb.run is not None else None


def log_drift(args: TrainingArguments, history: Sequence[tuple[int, Drift]]) -> None:
    """Every measurement as the table ``emoreg/drift_table``, the last as ``emoreg/drift_plot``."""
    wandb = active_run(args)
    if wandb is None or not history:
        return
    rows = [
        [step, emotion, mean, low, high]
        for step, found in history
        for emotion, mean, low, high in found.sorted()
    ]
    step, last = history[-1]
    now = {emotion: Interval(mean, low, high) for emotion, mean, low, high in last.sorted()}
    png = BytesIO()
    forest({"now": now}, {"now": f"drift from base, step {step}"}).savefig(
        png, format="png", dpi=120
    )
    wandb.log(
        {
            "emoreg/drift_table": wandb.Table(["step", "emotion", "drift", "low", "high"], rows),
            "emoreg/drift_plot": wandb.Image(Image.open(png)),
            "train/global_step": step,
        }
    )
