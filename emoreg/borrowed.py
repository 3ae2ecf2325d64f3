"""What stands in for a trainer's own methods while a regularizer is attached to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from emoreg import boards, quirks
from emoreg.accumulation import loss_is_scaled
from emoreg.control import Control
from emoreg.host import Around, Loan, log_kind
from emoreg.meter import Meter
from emoreg.reader import Reader


class Borrowed(ABC):
    """The trainer's methods with the terms around them: the half of `EmotionRegularizer` that acts.

    The other half, which is a callback of the trainer, holds all state and says when.
    """

    trainer: Trainer
    name: str | None
    guard: Loan
    _loan: Loan
    _control: Control
    _reader: Reader | None
    _read: bool
    _lost: bool
    _stepping: bool
    _evaluating: bool

    @abstractmethod
    def detach(self) -> None:
        """Give every borrowed method back."""

    def _borrow(self) -> None:
        """Go around every method of the trainer that sees a batch, a loss or a line of the log."""
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

    def _open(self) -> Reader:
        assert self._reader is not None
        return self._reader

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
                    boards.lost(self.trainer)
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
