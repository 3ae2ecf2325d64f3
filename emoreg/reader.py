"""One micro-batch of a trainer: what counts in it, what was read, and what is added to its loss."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Trainer

from emoreg.accumulation import Window, has_labels
from emoreg.base import base_outputs, has_adapters, reference_model
from emoreg.batches import Batch
from emoreg.counting import Counting
from emoreg.editor import Editor, check_checkpointing
from emoreg.errors import CaptureError
from emoreg.examples import Examples
from emoreg.forwards import Forwards
from emoreg.host import model_of
from emoreg.meter import Meter
from emoreg.schedule import factor
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

    Raises:
        ConfigError: Blocks are to be edited, and checkpointing would run the edits again.
    """

    def __init__(
        self, trainer: Trainer, terms: EmotionTerms, examples: Examples | None = None
    ) -> None:
        self.trainer, self.terms, self.config = trainer, terms, terms.config
        self._examples = examples if self.config.emoreg_log_texts else None
        model = model_of(trainer)
        self.counting = Counting(trainer, self.config)
        edits = self.config.active and not self.config.adds
        if edits:
            check_checkpointing(model)
        self._editor = Editor(terms.probe, self.config) if edits else None
        self.forwards = Forwards(
            model,
            reference_model(trainer),
            terms.probe.blocks,
            terms.read,
            self.counting.media,
            self._edit if edits else None,
        )
        self.beyond: Tensor | None = None  # summed since `take`, if weights follow it
        self.window = Window(trainer, self.acted)
        self.meters = {"train": Meter(), "eval": Meter()}
        self.acts_on = 0  # tokens that the terms acted on in training so far
        self._read: list[int] = []  # how many were read in each micro-batch of the first window
        # The forward under way, and which of its tokens are edited; None if it is not the batch's.
        self._edited: tuple[Call, Tensor | None] | None = None
        self._has_base = has_adapters(model) or reference_model(trainer) is not None
        self._inputs: Any = None
        self._labelled = self._rolled = False
        self._first = self._quiet = True

    def begin(self, inputs: Any, training: bool) -> None:
        """A loss of these inputs is about to be computed; None if they are not known yet."""
        self._inputs, self._edited, self._labelled = inputs, None, has_labels(inputs)
        batch, counted = self.counting.begin(inputs, training)
        self.forwards.expect(batch, training, counted)

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
            # Later batches are trusted, to spare a look at the device.
            look = self._first and forwards.training
            batch, counted = self.counting.of(call, forwards.batch, look)
            loss = self._terms(call, batch, counted)
            if not (forwards.training and self.config.adds):
                return None
            exact = items is not None or not self._labelled
            own = counted.number(self.counting.unit)
            return loss * self.window.part(inputs, own, self.counting.unit, exact, scaled)
        finally:
            forwards.forget()
            self.counting.end()
            self._inputs = self._edited = None

    def take(self) -> Tensor | None:
        """Readings beyond the anchor since the last call, summed, and their number."""
        found, self.beyond = self.beyond, None
        return found

    def _edit(self, block: int, h: Tensor) -> Tensor:
        """What the policy's forward goes on with after a block."""
        if self._editor is None or not self.forwards.training:
            return h
        call = self.forwards.policy.calls[-1]
        if self._edited is None or self._edited[0] is not call:
            self._edited = (call, self._acted_mask(call, h.shape[1]))
        mask = self._edited[1]
        return h if mask is None else self._editor(block, h, mask, self._scale())

    def _acted_mask(self, call: Call, width: int) -> Tensor | None:
        """The tokens of a forward that are acted on, bool, (batch, tokens).

        None if its tokens are not those of the batch, as a trainer or a guest may run beside.

        Raises:
            CaptureError: The batch does not tell them.
        """
        if self.counting.other(call, self.forwards.batch):
            return None
        _, counted = self.counting.of(call, self.forwards.batch, look=False)
        wide = counted.padded_left(width)
        return wide.mask if wide.rows is None else wide.mask & wide.rows[:, None]

    def acted(self, inputs: Any) -> Counted | None:
        """What the terms act on in a batch, if it tells and they are added to the loss at all."""
        return self.counting.foresee(inputs) if self.config.adds else None

    def _terms(self, call: Call, batch: Batch, counted: Counted) -> Tensor:
        """Take the readings, for the log and for the loss."""
        training = self.forwards.training
        if training:
            self._check(call, counted)
        base = self._base(call, batch, counted)
        with torch.set_grad_enabled(training and self.config.adds):
            width = next(iter(call.acts.values())).shape[1]
            wide = counted.padded_left(width)
            base = base if base is None or isinstance(base, Tensor) else _padded_left(base, width)
            terms = self.terms(call.acts, wide, base, self._scale(), self.counting.unit)
        meter = self.meters["train" if training else "eval"]
        for names, (totals, number) in terms.sums.items():
            meter.add(names, totals, number)
        for names, values in terms.peaks.items():
            meter.peak(names, values)
        if training and self.config.adaptive:
            self.beyond = terms.beyond if self.beyond is None else self.beyond + terms.beyond
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
        self.counting.forget()
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
        """Factor of every weight at this step, from 0 to 1."""
        state, config = self.trainer.state, self.config
        warmup, schedule = config.emoreg_warmup, config.emoreg_schedule
        return factor(state.global_step, state.max_steps, warmup, schedule)

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
