"""EmotionRegularizer: the callback that adds the terms of the loss to a trainer's own."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from emoreg import boards
from emoreg.bank import Text
from emoreg.base import check_base
from emoreg.blocks import check_reach
from emoreg.borrowed import Borrowed
from emoreg.config import EmoRegConfig
from emoreg.control import Control
from emoreg.errors import CaptureError, ConfigError, TrainerError
from emoreg.host import Loan, check_trainer, detaching, leave, model_of
from emoreg.reader import Reader
from emoreg.telling import Teller
from emoreg.terms import EmotionTerms
from emoreg.vectors import EmotionVectors

log = logging.getLogger(__name__)


class EmotionRegularizer(Borrowed, TrainerCallback):
    """Penalises and rewards emotion readings in a trainer's loss, and logs them.

    Works with any trainer of TRL and subclasses of them: see `emoreg.batches` for how the tokens of
    a batch are told apart, `emoreg.forwards` for which forward is read, and `emoreg.accumulation`
    for what a weight means. Evaluation reports the readings and leaves `eval_loss` as it is. With
    every weight 0 training is bit-identical to training without it. Methods of the trainer are
    borrowed while it trains; for an evaluation outside training use
    ``with regularizer: trainer.evaluate()``.

    Args:
        trainer: A trainer.
        vectors: A set made for its model.
        config: The knobs, if they come from a file.
        name: Tells several regularizers of one trainer apart; part of every logged name.
        texts: Labelled texts for refits and the KL anchor, such as a run's own; those of
            ``emoreg_bank`` by default.
        knobs: The knobs by name, without the prefix ``emoreg_``: ``penalize={"desperate": 0.1}``.

    Raises:
        TrainerError: Not a trainer, or one that holds a regularizer of this name.
        ConfigError: A knob is unknown or out of range, or no trained parameter can be reached.
        VectorMismatchError: The vectors were made for another model.
        UnknownEmotionError: They lack an emotion, facet or block.
        CaptureError: While training, when a step has no usable reading.
    """

    def __init__(
        self,
        trainer: Trainer,
        vectors: EmotionVectors,
        config: EmoRegConfig | None = None,
        *,
        name: str | None = None,
        texts: Sequence[Text] | None = None,
        **knobs: Any,
    ) -> None:
        if config is not None and knobs:
            raise ConfigError(
                f"Pass a config or knobs, not both; got a config and {sorted(knobs)}."
            )
        self.trainer, self.name = check_trainer(trainer), name
        self.config = config or EmoRegConfig.of(**knobs)
        self.vectors = vectors
        self.terms = EmotionTerms(vectors, self.config)
        vectors.check(
            model_of(trainer), trainer.processing_class, name=self.config.emoreg_check_name
        )
        self._check_alone()
        if self.config.needs_base:
            check_base(trainer)
        if self.config.active:
            check_reach(model_of(trainer), self.terms.probe.blocks[-1])
        self._control = Control(trainer, self.terms, texts, name)
        self._loan, self.guard = Loan(), Loan()
        guard = detaching(weakref.ref(self))
        self.guard.go_around(trainer, "train", guard)
        weakref.finalize(self, leave, weakref.ref(trainer), "train", guard)
        self._reader: Reader | None = None
        self._read = False  # whether the micro-batch under way was
        self._lost = False  # whether a failure took the hooks away
        self._stepping = False  # whether a step of training is under way
        self._evaluating = False
        self._teller = Teller(trainer, self.terms, vectors, name)
        self._entered: list[bool] = []  # for each `with`, whether it found this attached
        self._step_began = 0.0

    def attach(self) -> None:
        """Borrow the trainer's methods and put the hooks in place; training does it by itself.

        Raises:
            TrainerError: It is attached already.
            ConfigError: The trainer has another regularizer of this name.
        """
        if self._reader is not None:
            raise TrainerError("This regularizer is attached already; detach() it first.")
        self._check_alone()
        self._reader = Reader(self.trainer, self.terms, self._teller.examples)
        self._read = self._lost = False
        self._reader.forwards.open()
        if self.trainer.args.torch_compile:
            torch.compiler.reset()  # what was compiled before knows nothing of these hooks
        self._borrow()

    def detach(self) -> None:
        """Take every hook off the model and give every borrowed method back."""
        if self._reader is not None:
            self._reader.forwards.close()
        self._reader, self._lost = None, False
        self._loan.give_back()

    def __enter__(self) -> EmotionRegularizer:
        self._entered.append(self._reader is not None)
        if not self._entered[-1]:
            self.attach()
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._entered.pop():
            self.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Borrow the trainer's methods."""
        if self.trainer.callback_handler.callbacks.count(self) != 1:
            raise TrainerError(
                "This regularizer was made for another trainer, or added twice; make one for each "
                "trainer and add it once."
            )
        self.detach()
        self._stepping = self._evaluating = False
        resumed = state.global_step > 0
        self._control.begin(boards.checkpoint(self.trainer) if resumed else None)
        self.attach()
        self._teller.begin(args, state, control)
        boards.keep(self.trainer, self._control.save)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the journal, and look at the alerts."""
        self._teller.logged(args, state, control, kwargs["logs"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Give everything back."""
        if self.config.active and self._reader is not None and not self._reader.acts_on:
            log.warning("The loss never had a term: nothing counted for the scope and sides.")
        self.detach()
        self._teller.end(args, state, control)

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Start the clock of a step, and watch from here on."""
        if self._lost:
            self.attach()
            boards.found(self.trainer)
        if self._reader is not None:  # else detached by hand
            self._reader.begin(None, training=True)
        self._teller.examples.clear()
        self._control.step_begins()
        self._stepping = True
        self._step_began = time.perf_counter()

    def on_substep_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Check that the micro-batch had its term."""
        if self._lost:
            self.attach()
            boards.found(self.trainer)
            return
        if self._reader is None:
            return
        if not self._read:
            self.detach()
            raise CaptureError(
                f"{type(self.trainer).__name__} took a step without computing a loss that emoreg "
                "could add to: neither compute_loss nor accelerator.backward was called."
            )
        self._read = False
        self._reader.begin(None, training=True)

    def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        """Check that the last micro-batch had its term, before the weights move."""
        self.on_substep_end()
        self._stepping = False
        if self._reader is not None:
            self._reader.window_ends()

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        """Stop the clock of a step."""
        if self._reader is None:
            return
        seconds = torch.tensor([time.perf_counter() - self._step_began])
        self._reader.meters["train"].add(("seconds",), seconds, 1)

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Let what follows the weights follow."""
        if self._reader is not None:
            self._control.stepped(self._reader)

    def on_save(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:  # noqa: ARG002 - its name is the host's
        """Put into the checkpoint what a resumed run needs, if `save_model` did not pass there."""
        self._control.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def _check_alone(self) -> None:
        others = (c for c in self.trainer.callback_handler.callbacks if c is not self)
        if any(isinstance(c, EmotionRegularizer) and c.name == self.name for c in others):
            called = "" if self.name is None else f" named {self.name!r}"
            raise ConfigError(
                f"This trainer has an EmotionRegularizer already{called}. One takes "
                "any number of emotions; for two of different scopes or sides give one a name=. To "
                "replace it call trainer.remove_callback(EmotionRegularizer) first."
            )
