"""The curves that the offline pieces of a run of wandb hold together."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emoreg.wandb_metrics import STEP
from emoreg.wandb_missing import history


def curves(folder: Path, run_id: str, left_out: Iterable[str]) -> dict[str, Any]:
    """Each scalar of training by the trainer's step, over all pieces of one run.

    Args:
        folder: Beneath which wandb has written.
        run_id: Of the run; pieces of others, begun at step 0 and never resumed, are passed over.
        left_out: Parts of the names of scalars that are not compared.

    Returns:
        Key -> [[step, value], …]; a step that two pieces hold must have one value in both.

    Raises:
        ValueError: Two pieces differ at a step.
    """
    found: dict[str, dict[int, Any]] = {}
    for piece in sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        _wait(piece)
        for row in history(piece):
            for key, value in row.items():
                compared = key.startswith("train/") and not any(part in key for part in left_out)
                if compared and STEP in row:
                    held = found.setdefault(key, {}).setdefault(int(row[STEP]), value)
                    if held != value:
                        raise ValueError(f"{key} at step {row[STEP]}: {held} and {value}")
    return {key: sorted(map(list, at.items())) for key, at in sorted(found.items())}


def _wait(path: Path) -> None:
    """Until the file grows no more: wandb's service ends after the run."""
    size = -1
    while size != (size := path.stat().st_size):
        time.sleep(0.2)
