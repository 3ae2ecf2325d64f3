"""The exceptions: the few things about trainers that their batches and calls do not tell."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Trainer

# GRPO's losses that average over each sequence first; its others weigh every token alike.
SEQUENCE_LOSSES = ("grpo", "sapo")
# Trainers that do so whatever their `loss_type` says.
SEQUENCE_TRAINERS = ("GMPOTrainer", "SDPOTrainer")
ROLLOUT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def branches(trainer: Trainer) -> tuple[str, ...]:
    """The sides that a batch of preferences is made of, in order; () for other data.

    A batch of TRL's preference trainers is all chosen rows, then all rejected; only the data set's
    columns tell it from others, or the collator's name if a stream does not know its columns. TPO
    adds gold references if its collator is told to.
    """
    columns = getattr(trainer.train_dataset, "column_names", None)
    if columns is None:
        paired = "Preference" in type(trainer.data_collator).__name__
    else:
        paired = all(any(c.startswith(s) for c in columns) for s in ("chosen", "rejected"))
    if not paired:
        return ()
    if getattr(trainer.data_collator, "include_reference", False):
        return ("chosen", "rejected", "reference")
    return ("chosen", "rejected")


def weighs_sequences(trainer: Trainer) -> bool:
    """Whether a trainer that counts a rollout's tokens still weighs its sequences alike."""
    if any(kind.__name__ in SEQUENCE_TRAINERS for kind in type(trainer).__mro__):
        return True
    return getattr(trainer, "loss_type", None) in SEQUENCE_LOSSES


def rollout_method(trainer: Trainer) -> str | None:
    """The method that is handed the rollout, if `compute_loss` never is: that of OnlineDPO."""
    method = getattr(trainer, "_forward", None)
    if method is None or not set(ROLLOUT) <= set(inspect.signature(method).parameters):
        return None
    return "_forward"


def rollout_of(trainer: Trainer, args: Any, kwargs: Any) -> dict[str, Any]:
    """The batch among the arguments of that method."""
    original = getattr(type(trainer), "_forward")  # noqa: B009 - of the class, not our wrapper
    bound = inspect.signature(original).bind(trainer, *args, **kwargs).arguments
    return {name: bound[name] for name in ROLLOUT}


def buffered(trainer: Trainer, inputs: Any) -> list[Any]:
    """The micro-batches that a rollout was parted into, `inputs` among them; [] if it was not."""
    found = getattr(trainer, "_buffered_inputs", None)
    if inputs is None or not isinstance(found, list):
        return []
    return found if any(batch is inputs for batch in found) else []


def writes_anew(trainer: Trainer) -> bool:
    """Whether a trainer may write a batch's answers anew just before its loss, as GKD does."""
    writes = getattr(trainer, "lmbda", 0) or getattr(trainer, "seq_kd", False)
    return bool(writes) and not hasattr(trainer, "_buffered_inputs")


def moves_its_reference(trainer: Trainer) -> bool:
    """Whether the reference model follows the policy, so that it is no base."""
    callbacks = trainer.callback_handler.callbacks
    return bool(getattr(trainer.args, "sync_ref_model", False)) or any(
        type(c).__name__ == "SyncRefModelCallback" or getattr(c, "update_ref_model", False)
        for c in callbacks
    )
