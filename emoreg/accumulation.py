"""What a trainer's loss is divided by, so that an added term means the same everywhere.

A host weighs tokens alike (SFT and the distillation trainers; GRPO with most of its losses) or
sequences (preference trainers, RLOO, reward models, GRPO's other losses). The added term follows:
it is the mean over the counted tokens, or over sequences of the mean over each one's, of the whole
accumulation window on all processes. How a window is cut into micro-batches changes nothing. Where
a trainer does not know its window beforehand, it is the mean of the micro-batches' means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from emoreg import quirks
from emoreg.losses import Unit
from emoreg.tokens import Counted

Count = Callable[[Any], Counted | None]  # of a trainer's batch, None if it cannot be told


def loss_is_scaled(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether the loss that `compute_loss` returns is already divided by the accumulation window.

    The rule of `Trainer.training_step`; `loss_is_scaled_for_ga` exists from transformers 5.19.
    """
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is not None:
        return bool(scaled)
    by_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(by_items or trainer.compute_loss_func is not None)


def weighs(trainer: Trainer, inputs: Any) -> Unit:
    """What a trainer's own loss weighs alike."""
    if "labels" in inputs or "shift_labels" in inputs:
        return "tokens"
    counts = "num_items_in_batch" in inputs and not quirks.weighs_sequences(trainer)
    return "tokens" if counts else "sequences"


class Window:
    """How much counts in the accumulation window under way."""

    def __init__(self, trainer: Trainer, count: Count) -> None:
        self.trainer, self.count = trainer, count
        self._batches: list[Any] = []
        self._known = False
        self._total: Tensor | None = None  # of the batches above, if they tell

    def begin(self, batches: list[Any]) -> None:
        """A window begins with these batches, which need not tell what counts."""
        self._batches, self._known, self._total = batches, False, None

    def total(self, inputs: Any, unit: Unit) -> Tensor | None:
        """What counts in the window that `inputs` is part of, on all processes."""
        rollout = quirks.buffered(self.trainer, inputs)
        if rollout and rollout is not self._batches:
            self.begin(rollout)
        if not self._known:
            self._known, self._total = True, self._sum(unit)
        if self._total is None or not rollout:
            return self._total
        # A rollout may feed several windows, or part of one.
        return self._total * self.trainer.current_gradient_accumulation_steps / len(rollout)

    def _sum(self, unit: Unit) -> Tensor | None:
        found = [self.count(batch) for batch in self._batches]
        counts = [float(counted.number(unit)) for counted in found if counted is not None]
        untold = len(counts) < len(found) or not found
        both = torch.tensor([sum(counts), untold], device=self.trainer.accelerator.device)
        if self.ranks(unit) > 1:
            both = self.trainer.accelerator.reduce(both, "sum")
        return None if both[1] else both[0]

    def ranks(self, unit: Unit) -> int:
        """How many processes the trainer averages over."""
        apart = not self.trainer.args.average_tokens_across_devices
        if unit == "tokens" and apart and any("labels" in b for b in self._batches):
            return 1
        return int(self.trainer.accelerator.num_processes)

    def part(self, inputs: Any, own: Tensor, unit: Unit, items: Any, scaled: bool) -> Tensor:
        """What turns a micro-batch's sum into what its loss needs for the window's mean.

        Args:
            inputs: The micro-batch.
            own: How much counts in it.
            unit: Tokens or sequences.
            items: The trainer's own count of the window's labels; without it, it takes the mean of
                its micro-batches' means.
            scaled: Whether the trainer will not divide by the accumulation steps any more.
        """
        steps = self.trainer.current_gradient_accumulation_steps
        uncounted = items is None and "labels" in (inputs or ())
        total = None if uncounted else self.total(inputs, unit)
        if total is None:
            return 1.0 / (own.clamp(min=1) * (steps if scaled else 1))
        return self.ranks(unit) * (1 if scaled else steps) / total.clamp(min=1)
