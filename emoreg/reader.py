"""One micro-batch of a trainer: what counts in it, what was read, and what is added to its loss."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Trainer

from emoreg import quirks
from emoreg.accumulation import Window, has_labels, weighs
from emoreg.base import base_outputs, has_adapters, reference_model
from emoreg.batches import Batch, media_ids, understand
from emoreg.blocks import unwrap
from emoreg.errors import CaptureError, ConfigError
from emoreg.examples import Examples
from emoreg.forwards import Forwards
from emoreg.host import model_of
from emoreg.losses import Unit
from emoreg.meter import Meter
from emoreg.tap import Call
from emoreg.terms import EmotionTerms
from emoreg.tokens import Counted
from emoreg.vitals import Acts

log = logging.getLogger(__name__)


class Reader:
    """Reads a trainer's micro-batches with one configuration, for as long as it is open.

    Args:
        trainer: Whose micro-batches.
        terms: What is read and added.
        examples: Takes in what was read in training, if texts are logged.
    """

    def __init__(
        self, trainer: Trainer, terms: EmotionTerms, examples: Examples | None = None
    ) -> None:
        self.trainer, self.terms, self.config = trainer, terms, terms.config
        self._examples = examples if self.config.emoreg_log_texts else None
        model = model_of(trainer)
        self._branches, self._media = quirks.branches(trainer), media_ids(unwrap(model).config)
        self.forwards = Forwards(
            model, reference_model(trainer), terms.probe.blocks, terms.read, self._media
        )
        self.window = Window(trainer, self.acted)
        self.meters = {"train": Meter(), "eval": Meter()}
        self.acts_on = 0  # tokens that the terms acted on in training so far
        self._read: list[int] = []  # how many were read in each micro-batch of the first window
        self._counted: Counted | None = None
        self._virtual = virtual_tokens(model)
        self._has_base = has_adapters(model) or reference_model(trainer) is not None
        self._inputs: Any = None
        self._unit: Unit = "sequences"
        self._labelled = self._rolled = False
        self._first = self._quiet = True

    def begin(self, inputs: Any, training: bool) -> None:
        """A loss of these inputs is about to be computed; None if they are not known yet."""
        self._inputs = inputs
        # A loss may take keys out of its inputs, so what they tell is settled now.
        self._unit, self._labelled = weighs(self.trainer, inputs), has_labels(inputs)
        batch = understand(inputs, self._branches)
        # Before the forward, so that a device is not waited for after it.
        self._counted = None if batch is None else self._count(batch)
        self.forwards.expect(batch, training, self._counted)

    def finish(self, items: Any = None, scaled: bool = True) -> Tensor | None:
        """Read the forward seen since `begin`; what is to be added to the loss, if anything.

        Args:
            items: The trainer's own count of the window's labels, if it has one.
            scaled: Whether the trainer will not divide its loss by the accumulation steps any more.

        Raises:
            CaptureError: In training: the forward cannot be told, or is of other tokens.
            ConfigError: The batch does not tell a scope or a side that was asked for.
        """
        forwards, inputs = self.forwards, self._inputs
        if inputs is None and not forwards.training:
            return None  # read already, in the `compute_loss` that this evaluation went through
        try:
            call = forwards.found(type(self.trainer).__name__)
            if call is None:
                self._warn()
                return None
            batch = self._fitting(call, forwards.batch or self._as_called(call))
            counted = self._counted or self._count(batch)
            if batch.ids.shape != counted.mask.shape:
                counted = self._count(batch)  # cut by the trainer
            loss = self._terms(call, batch, counted)
            if not (forwards.training and self.config.active):
                return None
            exact = items is not None or not self._labelled
            own = counted.number(self._unit)
            return loss * self.window.part(inputs, own, self._unit, exact, scaled)
        finally:
            forwards.forget()
            self._inputs = self._counted = None

    def acted(self, inputs: Any) -> Counted | None:
        """What the terms act on in a batch, if it tells and they are added to the loss at all."""
        batch = understand(inputs, self._branches) if self.config.active else None
        return None if batch is None else self._count(batch)

    def _count(self, batch: Batch) -> Counted:
        """What is read of a batch and what the terms act on.

        Raises:
            ConfigError: The batch does not tell a scope or a side that was asked for.
        """
        if "tool" in self.config.emoreg_scope and batch.tool is None:
            raise ConfigError(
                f"emoreg_scope asks for tool, and the batches of {type(self.trainer).__name__} do "
                "not tell tool output from the rest of the prompt. Use prompt, or a trainer with "
                "tools."
            )
        counted = batch.count(self.config.emoreg_scope, self._media)
        counted = counted.of(self.config.emoreg_sides or ())
        _ = counted.number(self._unit), counted.groups, counted.read_sequences
        return counted

    def _fitting(self, call: Call, batch: Batch | None) -> Batch:
        """The batch, of as many tokens as the blocks saw.

        Raises:
            CaptureError: Nothing tells its tokens, or they are not those of the forward.
        """
        name, training = type(self.trainer).__name__, self.forwards.training
        if batch is None:
            raise CaptureError(
                f"The batches of {name} do not tell which tokens are completions (they have "
                f"{', '.join(self._inputs or ()) or 'no keys'}). emoreg reads labels, "
                "completion_mask, prompt_ids with completion_ids, chosen_… with rejected_…, or the "
                "labels that the model is called with; see emoreg.batches."
            )
        rows, width, *_ = next(iter(call.acts.values())).shape
        seen = (rows, width - self._virtual)
        if seen[1] < batch.ids.shape[1] and batch.last(seen[1]).is_of(call.ids):
            batch = batch.last(seen[1])
        first = self._first and training  # later ones are trusted, to spare a look at the device
        wrong = call.ids is not None and first and not batch.is_of(call.ids)
        if wrong or seen != tuple(batch.ids.shape):
            raise CaptureError(
                f"The inputs of {name} are of {tuple(batch.ids.shape)} tokens and the block "
                f"outputs of {seen}{' other ones' if wrong else ''}, so it is unknown which "
                "count. Is the sequence split over devices or cut, or images put in "
                "by the model?"
            )
        return batch

    def _terms(self, call: Call, batch: Batch, counted: Counted) -> Tensor:
        """Take the readings, for the log and for the loss."""
        training = self.forwards.training
        if training:
            self._check(call, counted)
        base = self._base(call, batch, counted)
        with torch.set_grad_enabled(training and self.config.active):
            width = next(iter(call.acts.values())).shape[1]
            wide = counted.padded_left(width)
            base = base if base is None or isinstance(base, Tensor) else _padded_left(base, width)
            terms = self.terms(call.acts, wide, base, self._scale(), self._unit)
        meter = self.meters["train" if training else "eval"]
        for names, (totals, number) in terms.sums.items():
            meter.add(names, totals, number)
        for names, values in terms.peaks.items():
            meter.peak(names, values)
        if training and self._examples is not None:
            self._examples.add(batch.ids, counted, terms.watched)
        return terms.loss

    def _check(self, call: Call, counted: Counted) -> None:
        """Check a forward of training.

        Raises:
            CaptureError: The outputs carry no gradient.
        """
        self.acts_on += counted.number("tokens")
        if self._first:
            self._read.append(len(counted.positions))
            self._rolled = "completion_ids" in (self._inputs or ())
        if self.config.active and not all(h.requires_grad for h in call.acts.values()):
            raise CaptureError(
                "The captured block outputs carry no gradient, so the penalty could not act. With "
                "re-entrant gradient checkpointing call model.enable_input_require_grads()."
            )

    def window_ends(self) -> None:
        """Before a step of the optimizer: watch no more; at the first, whether anything counted.

        Raises:
            CaptureError: Nothing did.
        """
        self.forwards.arm(False)
        if not self._first or not self._read:
            return
        self._first = False
        nothing = (
            f"No token of the first batches counts for the scope {self.config.emoreg_scope}"
            f" and the sides {self.config.emoreg_sides or 'of all'}"
        )
        accelerator = self.trainer.accelerator
        read = torch.full((), sum(self._read), device=accelerator.device)
        read = accelerator.reduce(read, "sum")  # one process may have met none
        # A rollout may be cut off whole, a tool not be used; and who only measures loses nothing.
        fixed = not self._rolled and self.config.emoreg_scope != ["tool"]
        if not int(read) and fixed and self.config.active:
            raise CaptureError(
                f"{nothing}: the data has no completion (every label is -100) or no prompt, or "
                "max_length cuts it off, or the answers of a pair are the same."
            )
        if not self.acts_on:
            log.warning("%s; the loss has no term until some do.", nothing)

    def _base(self, call: Call, batch: Batch, counted: Counted) -> Tensor | Acts | None:
        """The base's readings, if the host has them; else its outputs, if they are needed."""
        found = self.forwards.base(batch, counted)
        if found is not None or not (self.config.needs_base or self._refers()):
            return found
        self.forwards.arm(False)  # this one is ours
        outputs = base_outputs(self.trainer, call, self.terms.probe.blocks)
        self.forwards.arm(True)
        return outputs

    def _refers(self) -> bool:
        """Whether this step reads the base for the log alone."""
        steps = self.config.emoreg_reference_steps
        due = steps > 0 and (self.trainer.state.global_step + 1) % steps == 0
        return due and self.forwards.training and self._has_base

    def _scale(self) -> float:
        """Warm-up factor of the weights, from 0 to 1."""
        steps = self.config.emoreg_warmup * self.trainer.state.max_steps
        return min(1.0, (self.trainer.state.global_step + 1) / steps) if steps > 1 else 1.0

    def _as_called(self, call: Call) -> Batch | None:
        """The batch as the model itself was told it, by labels, which its loss weighs alike."""
        ids, labels = call.ids, call.given.get("labels")
        if ids is None or not isinstance(labels, Tensor) or labels.shape != ids.shape:
            return None
        self._unit = "tokens"
        return Batch(ids, labels, call.given.get("attention_mask"), call.given.get("position_ids"))

    def _warn(self) -> None:
        if self._quiet:
            log.warning(
                "%s evaluates without a forward of its batch's tokens; its evaluations have no "
                "readings.",
                type(self.trainer).__name__,
            )
        self._quiet = False


def _padded_left(acts: Acts, width: int) -> Acts:
    """Outputs of a base without virtual tokens, where the policy has some."""
    return {b: pad(h, (0, 0, width - h.shape[1], 0)) for b, h in acts.items()}


def virtual_tokens(model: Any) -> int:
    """How many outputs of a block stand before a sequence's own: those of a learned prompt."""
    config: Any = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False) or "PREFIX" in str(config.peft_type):
        return 0
    return int(config.num_virtual_tokens)
