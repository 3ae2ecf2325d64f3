"""What a trainer's loss is divided by, so that an added term means the same everywhere.

A host weighs tokens alike (SFT and the distillation trainers; GRPO with most of its losses) or
sequences (preference trainers, RLOO, reward models, GRPO's other losses). The added term follows:
it is the mean over the counted tokens, or over sequences of the mean over each one's, of the whole
accumulation window on all processes. How a window is cut into micro-batches changes nothing. A
rollout that feeds several windows gives each the divisor of the average one, as GRPO's own loss
does. Where a trainer does not know its window beforehand, the term is the mean of the
micro-batches' means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def has_labels(inputs: Any) -> bool:
    """Whether a batch has labels, which `Trainer` counts over the window."""
    return isinstance(inputs, Mapping) and "labels" in inputs


def weighs(trainer: Trainer, inputs: Any) -> Unit:
    """What a trainer's own loss weighs alike, told from a batch."""
    if not isinstance(inputs, Mapping):
        return "sequences"
    if has_labels(inputs) or "shift_labels" in inputs:
        return "tokens"
    counts = "num_items_in_batch" in inputs and not quirks.weighs_sequences(trainer)
    return "tokens" if counts else "sequences"


class Window:
    """How much counts in the accumulation window under way.

    Args:
        trainer: Whose window.
        count: What counts in one of its batches.
    """

    def __init__(self, trainer: Trainer, count: Count) -> None:
        self.trainer, self.count = trainer, count
        self._batches: list[Any] = []
        self._counts: list[int | None] = []  # of each batch, None if it does not tell
        self._met = 0  # how many of them were computed
        self._total: Tensor | None = None  # of all, on all processes, once asked for
        self._untold = False  # whether any process does not know

    def begin(self, batches: list[Any]) -> None:
        """A window begins with these batches, which need not tell what counts."""
        found = [(self.count(batch), weighs(self.trainer, batch)) for batch in batches]
        self._counts = [None if c is None else c.number(unit) for c, unit in found]
        self._batches, self._met, self._total = batches, 0, None

    def part(self, inputs: Any, own: int, unit: Unit, exact: bool, scaled: bool) -> Tensor | float:
        """What turns a micro-batch's sum into what its loss needs for the window's mean.

        Args:
            inputs: The micro-batch.
            own: How much counts in it.
            unit: Tokens or sequences.
            exact: Whether the trainer itself looks at the whole window; if not, it takes the mean
                of its micro-batches' means.
            scaled: Whether the trainer will not divide by the accumulation steps any more.
        """
        steps = self.trainer.current_gradient_accumulation_steps
        known = exact and not quirks.writes_anew(self.trainer)
        total = self._of_window(inputs, own, unit) if known else None
        if total is None:
            return 1.0 / (max(own, 1) * (steps if scaled else 1))
        return self._ranks(unit) * (1 if scaled else steps) / total.clamp(min=1)

    def _of_window(self, inputs: Any, own: int, unit: Unit) -> Tensor | None:
        """What counts in the window that a micro-batch is part of, on all processes."""
        rollout = quirks.buffered(self.trainer, inputs)
        if rollout and rollout is not self._batches:
            self.begin(rollout)
        if self._total is None:
            self._total, untold = self._sum(unit)
            self._untold = bool(untold)
        if rollout:
            place = next(i for i, batch in enumerate(rollout) if batch is inputs)
        else:
            place, self._met = self._met, self._met + 1
        foreseen = self._counts[place] if place < len(self._counts) else None
        if self._untold or foreseen != own:
            return None  # not told, or another batch than was told: its trainer wrote it anew
        if not rollout:
            return self._total
        # A rollout may feed several windows, or part of one.
        return self._total * self.trainer.current_gradient_accumulation_steps / len(rollout)

    def _sum(self, unit: Unit) -> Tensor:
        """What counts, and whether any process does not know, (2,)."""
        told = [count for count in self._counts if count is not None]
        untold = float(len(told) < len(self._counts) or not told)
        both = torch.tensor([sum(told), untold])
        if self._ranks(unit) > 1:
            accelerator = self.trainer.accelerator
            both = accelerator.reduce(both.to(accelerator.device), "sum").cpu()
        return both

    def _ranks(self, unit: Unit) -> int:
        """How many processes the trainer averages over."""
        apart = not self.trainer.args.average_tokens_across_devices
        if unit == "tokens" and apart and any(map(has_labels, self._batches)):
            return 1
        return int(self.trainer.accelerator.num_processes)
