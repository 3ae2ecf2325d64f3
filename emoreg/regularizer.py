"""EmotionRegularizer: the callback that adds the terms of the loss to a trainer's own."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from emoreg import boards, quirks
from emoreg.accumulation import loss_is_scaled
from emoreg.bank import Text
from emoreg.base import check_base
from emoreg.blocks import check_reach
from emoreg.config import EmoRegConfig
from emoreg.control import Control
from emoreg.errors import CaptureError, ConfigError, TrainerError
from emoreg.host import Around, Loan, check_trainer, detaching, leave, log_kind, model_of
from emoreg.meter import Meter
from emoreg.reader import Reader
from emoreg.telling import Teller
from emoreg.terms import EmotionTerms
from emoreg.vectors import EmotionVectors

log = logging.getLogger(__name__)


class EmotionRegularizer(TrainerCallback):
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
        around: dict[str, Around] = {
            "compute_loss": self._computing,
            "evaluation_loop": self._looping,
            "prediction_step": self._predicting,
            "get_batch_samples": self._sampling,
            "log": self._logging,
        }
        handed = quirks.rollout_method(self.trainer)
        if handed is not None:
            around[handed] = self._handing
        for name, method in around.items():
            self._loan.go_around(self.trainer, name, self._safely(method))
        self._loan.go_around(self.trainer.accelerator, "backward", self._safely(self._backward))

    def detach(self) -> None:
        """Take every hook off the model and give every borrowed method back."""
        if self._reader is not None:
            self._reader.forwards.close()
        self._reader, self._lost = None, False
        self._loan.give_back()

    def _open(self) -> Reader:
        assert self._reader is not None
        return self._reader

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
        """Put into the checkpoint what a resumed run needs."""
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

    def _safely(self, around: Around) -> Around:
        """The same; if it fails there is no loss to add to, and maybe no guard to clean up.

        Only the first `train` has a guard around it, so that nothing stays on the trainer after it.
        A trainer that catches the failure and goes on is attached to again.
        """

        def safely(*args: Any, **kwargs: Any) -> Any:
            try:
                return around(*args, **kwargs)
            except BaseException:
                self._read = True
                if not self.guard.taken:
                    self.detach()
                    self._lost = True
                raise

        return safely

    def _sampling(self, get_batch_samples: Around, *args: Any, **kwargs: Any) -> Any:
        """`trainer.get_batch_samples`, after which the window is known."""
        batches, items = get_batch_samples(*args, **kwargs)
        self._open().window.begin(list(batches))
        return batches, items

    def _computing(
        self, compute_loss: Around, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """`trainer.compute_loss` with the terms added in training, and readings taken always."""
        reader, items = self._open(), kwargs.get("num_items_in_batch", (*args, None, None)[1])
        training = torch.is_grad_enabled() and not self._evaluating
        training = training and (model.training or self._stepping)
        reader.begin(inputs, training)
        result = compute_loss(model, inputs, *args, **kwargs)
        scaled = loss_is_scaled(self.trainer, items)
        added = reader.finish(items, scaled)
        self._read = self._read or training
        if training:
            added = self._beside(result[0] if isinstance(result, tuple) else result, added, scaled)
        if added is None:
            return result
        if isinstance(result, tuple):
            return (result[0] + added.to(result[0]), *result[1:])
        return result + added.to(result)

    def _beside(self, loss: Tensor, added: Tensor | None, scaled: bool) -> Tensor | None:
        """What is added to a loss of training, with what acts beside the readings."""
        self._open().forwards.arm(False)  # what is read beside is no forward of the batch
        return self._control.beside(loss, added, scaled)

    def _looping(self, evaluation_loop: Around, *args: Any, **kwargs: Any) -> Any:
        """`trainer.evaluation_loop`, whose readings are its own."""
        self._open().meters["eval"] = Meter()
        return evaluation_loop(*args, **kwargs)

    def _predicting(
        self, prediction_step: Around, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """`trainer.prediction_step`, read where it does not go through `compute_loss`."""
        reader, self._evaluating = self._open(), True
        try:
            reader.begin(inputs, training=False)
            result = prediction_step(model, inputs, *args, **kwargs)
            reader.finish()
        finally:
            reader.forwards.arm(False)
            self._evaluating = False
        return result

    def _handing(self, method: Around, *args: Any, **kwargs: Any) -> Any:
        """The method of a trainer that is handed the rollout which `compute_loss` is not."""
        if torch.is_grad_enabled():
            rollout = quirks.rollout_of(self.trainer, args, kwargs)
            self._open().begin(rollout, training=True)
        return method(*args, **kwargs)

    def _backward(self, backward: Around, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`accelerator.backward`, where a trainer calls it without `compute_loss`."""
        if not self._read:
            added = self._beside(loss, self._open().finish(), scaled=True)
            self._read = True
            loss = loss if added is None else loss + added.to(loss)
        return backward(loss, *args, **kwargs)

    def _logging(self, log: Around, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """`trainer.log` with the readings since the last one, over all processes and tokens."""
        kind, prefix = log_kind(logs)
        if kind is not None:
            own = "" if self.name is None else f"{self.name}/"
            meter = self._open().meters[kind]
            logs.update(meter.drain(self.trainer.accelerator, f"{prefix}emoreg/{own}"))
        log(logs, *args, **kwargs)
