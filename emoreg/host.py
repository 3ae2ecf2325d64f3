"""What emoreg borrows from a `Trainer`: methods, for the time of a run."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.integrations.integration_utils import is_wandb_available

from emoreg.errors import MissingExtraError, TrainerError

Around = Callable[..., Any]  # of the method it goes around, and of its arguments


def check_trainer(trainer: Any) -> Trainer:
    """The trainer, if it is one.

    Raises:
        TrainerError: It is not a `transformers.Trainer`, copies its model to threads, or runs in
            fewer processes than were asked for.
        MissingExtraError: It reports to wandb, which is not installed.
    """
    if not isinstance(trainer, Trainer):
        raise TrainerError(
            f"Wanted a transformers or TRL trainer, got {type(trainer).__name__}. Build it "
            "first, then trainer.add_callback(EmotionRegularizer(trainer, vectors)); for a loop of "
            "your own use emoreg.terms.EmotionTerms."
        )
    if trainer.args.n_gpu > 1 and not getattr(trainer, "is_model_parallel", False):
        raise TrainerError(
            f"This process sees {trainer.args.n_gpu} GPUs, so the trainer would copy the model to "
            "threads (DataParallel), where nothing can be read. Start one process for each GPU, "
            "with accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES to one."
        )
    _check_launch(trainer)
    if "wandb" in (trainer.args.report_to or []) and not is_wandb_available():
        raise MissingExtraError("report_to asks for wandb: pip install 'emoreg[wandb]'")
    return trainer


def _check_launch(trainer: Trainer) -> None:
    """Whether as many processes run as were asked for.

    On a CPU `accelerate launch --num_processes 2` starts one process and says nothing; it leaves an
    address to meet at, which only several processes need.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    met = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if on_cpu and met and trainer.accelerator.num_processes == 1:
        raise TrainerError(
            "accelerate launch was asked for several processes on a CPU and started one: there it "
            "needs MPI. Use torchrun --nproc_per_node N, or ask for one process (and unset "
            "MASTER_ADDR, if your cluster sets it)."
        )


def model_of(trainer: Trainer) -> nn.Module:
    """The trainer's model, without what wraps it for the run."""
    assert trainer.model is not None
    model: nn.Module = trainer.model
    return model


@contextmanager
def reading(trainer: Trainer) -> Iterator[None]:
    """Around forwards without gradients that are no part of a step, in the trainer's precision.

    ZeRO-3 takes the first forwards that it sees for a whole step, and fetches the weights of later
    ones in that order: the backward of the next step would find one that was not fetched. So it is
    told to learn the order anew. To be removed when DeepSpeed (0.19.8) does without.
    """
    try:
        with trainer.accelerator.autocast():
            yield
    finally:
        wrapped = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
        optimizer = getattr(getattr(wrapped, "engine", None), "optimizer", None)
        offload = getattr(optimizer, "parameter_offload", None)  # of ZeRO-3 alone
        order = offload.get_param_coordinator() if offload is not None else None
        if order is not None and not order.is_invalid_trace():
            order._invalidate_trace()


class Loan:
    """Methods of other objects that calls go around for a while; given back exactly as they were.

    Several loans may go around one method; they may end in any order.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[_Detour, Around]] = []

    def go_around(self, owner: Any, name: str, around: Around) -> None:
        """Let calls of a method become ``around(method, *args, **kwargs)``, on the instance."""
        found = vars(owner).get(name)
        detour = found if isinstance(found, _Detour) else _Detour(owner, name)
        detour.arounds.append(around)
        self._taken.append((detour, around))

    @property
    def taken(self) -> bool:
        """Whether there is anything to give back."""
        return bool(self._taken)

    def give_back(self) -> None:
        """Undo everything; nothing happens the second time."""
        while self._taken:
            detour, around = self._taken.pop()
            detour.leave(around)


class _Detour:
    """Stands in the place of a method for as long as anything goes around it."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.before = vars(owner).get(name, _ABSENT)
        self.method: Callable[..., Any] = getattr(owner, name)
        self.arounds: list[Around] = []
        update_wrapper(self, self.method, updated=())  # a wrapper around one of us has our fields
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.method
        for around in self.arounds:
            call = partial(around, call)
        return call(*args, **kwargs)

    def leave(self, around: Around) -> None:
        self.arounds.remove(around)
        if self.arounds or vars(self.owner).get(self.name) is not self:
            return  # somebody went around us since; without arounds this only calls the method
        if self.before is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)


def leave(owner: weakref.ref[Any], name: str, around: Around) -> None:
    """End one loan of an object that may be gone, for a borrower that is."""
    found = vars(owner()).get(name) if owner() is not None else None
    if isinstance(found, _Detour) and around in found.arounds:
        found.leave(around)


def detaching(guest: weakref.ref[Any]) -> Around:
    """Goes around `trainer.train`: after it, whatever happened, a guest has left."""

    def train(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            own = guest()
            if own is not None:
                own.detach()
                own.guard.give_back()

    return train


_ABSENT = object()


def log_kind(logs: dict[str, float]) -> tuple[str | None, str]:
    """What a log line is of, ``train`` or ``eval``, and the prefix of its keys.

    Every evaluation has a run time under the prefix of its set; the summary of a run is neither.
    """
    if "loss" in logs:
        return "train", ""
    prefixes = [key.removesuffix("runtime") for key in logs if key.endswith("_runtime")]
    return ("eval", prefixes[0]) if prefixes and "train_" not in prefixes else (None, "")
