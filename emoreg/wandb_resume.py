"""Lets a training run that goes on from a checkpoint go on in the same run of wandb."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback

from emoreg.errors import ReportError
from emoreg.host import Around, Loan
from emoreg.journal import Run

# From here on a piece that was written offline says that it goes on from another; before, `wandb
# sync` replaced the first piece by the second.
RESUMES_OFFLINE = (0, 30)

log = logging.getLogger(__name__)


def lend(trainer: Trainer, loan: Loan) -> None:
    """Go around the opening of a run by the trainer's own WandbCallback."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, WandbCallback):
            loan.go_around(callback, "setup", _setting_up)


def _setting_up(
    setup: Around, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any
) -> Any:
    """`WandbCallback.setup`, which opens a run unless one is open."""
    loan, run_id = Loan(), None
    if state.global_step > 0 and state.is_world_process_zero and not state.is_hyper_param_search:
        run_id = _earlier(Path(str(args.output_dir)))
    if run_id:
        import wandb

        loan.go_around(wandb, "init", partial(_resuming, run_id))
    try:
        return setup(args, state, *rest, **kwargs)
    finally:
        loan.give_back()


def _earlier(folder: Path) -> str | None:
    """The id of the run that the journal in a folder tells of, unless the user has chosen one."""
    if os.environ.get("WANDB_RUN_ID") or os.environ.get("WANDB_RESUME"):
        return None
    try:
        found = Run.load(folder).header.get("wandb")
    except ReportError:
        return None
    if not isinstance(found, dict) or found.get("mode") == "disabled":
        return None
    import wandb

    now = os.environ.get("WANDB_MODE")
    if found.get("mode") == "offline" and now != "offline":  # `wandb sync` of it would replace ours
        log.warning(
            "The run that goes on was written offline to wandb, and now wandb is online: this "
            "piece is a run of its own. To have one, `wandb sync` the offline piece first, then "
            "resume with WANDB_RUN_ID=%s and WANDB_RESUME=must.",
            found.get("id"),
        )
        return None
    offline = "offline" in (found.get("mode"), now)
    version = tuple(int(part) for part in wandb.__version__.split(".")[:2])
    if offline and version < RESUMES_OFFLINE:
        return None
    return str(found["id"]) if found.get("id") else None


def _resuming(run_id: str, init: Around, *args: Any, **kwargs: Any) -> Any:
    """`wandb.init`, of the run with that id."""
    import wandb

    try:
        return init(*args, **{"id": run_id, "resume": "allow", **kwargs})
    except wandb.Error as e:
        log.warning("wandb cannot go on with its run %s (%s); it begins another.", run_id, e)
        return init(*args, **kwargs)
