"""What emoreg borrows from a `Trainer`: methods, for the time of a run, and its rules of scale."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.integrations.integration_utils import is_wandb_available

from emoreg.errors import CaptureError, ConfigError, MissingExtraError, TrainerError


def check_trainer(trainer: Any) -> Trainer:
    """The trainer, if it is one.

    Raises:
        TrainerError: It is not a `transformers.Trainer`.
        MissingExtraError: It reports to wandb, which is not installed.
    """
    if not isinstance(trainer, Trainer):
        raise TrainerError(
            f"Wanted a transformers or TRL trainer, got {type(trainer).__name__}. Build it "
            "first, then trainer.add_callback(EmotionRegularizer(trainer, vectors)); for a loop of "
            "your own use emoreg.terms.EmotionTerms."
        )
    if "wandb" in (trainer.args.report_to or []) and not is_wandb_available():
        raise MissingExtraError("report_to asks for wandb: pip install 'emoreg[wandb]'")
    return trainer


def model_of(trainer: Trainer) -> nn.Module:
    """The trainer's model, without what wraps it for the run."""
    assert trainer.model is not None
    model: nn.Module = trainer.model
    return model


def check_counted(
    trainer: Trainer, batch: Mapping[str, Any], tokens: int, scope: Collection[str]
) -> None:
    """Check that a trainer's batches tell which tokens count, and that some do.

    Args:
        trainer: For the message.
        batch: The first of the run.
        tokens: How many count in the first accumulation window.
        scope: What was asked to count.

    Raises:
        CaptureError: They do not.
    """
    if "labels" not in batch:
        raise CaptureError(
            f"The batches of {type(trainer).__name__} carry no labels (they have "
            f"{', '.join(batch)}), so it is unknown which tokens count. This version reads "
            "trainers that do, such as SFTTrainer; in a loop of your own use EmotionTerms."
        )
    if tokens == 0:
        raise CaptureError(
            f"No token of the first batches counts for the scope {list(scope)}: the data has no "
            "completion (every label is -100) or no prompt, or max_length cuts it off."
        )


class Loan:
    """Methods of one object replaced for a while, and given back exactly as they were."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self._before: dict[str, Any] = {}

    def replace(self, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``make(original)`` in the place of a method, on the instance."""
        self._before[name] = vars(self.owner).get(name, _ABSENT)
        setattr(self.owner, name, make(getattr(self.owner, name)))

    def give_back(self) -> None:
        """Undo every replacement; nothing happens the second time."""
        for name, value in self._before.items():
            if value is _ABSENT:
                vars(self.owner).pop(name, None)
            else:
                setattr(self.owner, name, value)
        self._before = {}


_ABSENT = object()


def loss_is_scaled(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether the loss that `compute_loss` returns is already divided by the accumulation window.

    The rule of `Trainer.training_step`; `loss_is_scaled_for_ga` exists from transformers 5.19.
    """
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is not None:
        return bool(scaled)
    by_items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(by_items or trainer.compute_loss_func is not None)


def log_kind(logs: dict[str, float]) -> tuple[str | None, str]:
    """What a log line is of, ``train`` or ``eval``, and the prefix of its keys.

    Every evaluation has a run time under the prefix of its set; the summary of a run is neither.
    """
    if "loss" in logs:
        return "train", ""
    prefixes = [key.removesuffix("runtime") for key in logs if key.endswith("_runtime")]
    return ("eval", prefixes[0]) if prefixes and "train_" not in prefixes else (None, "")


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base: the same weights with every adapter off.

    Raises:
        ConfigError: The model has no adapters that can be switched off, or learns a prompt.
    """
    check_adapters(model)
    trained = [(p, p.requires_grad) for p in model.parameters()]
    switched_off: Any = model.disable_adapter
    try:
        with switched_off():
            yield
    finally:
        for parameter, flag in trained:  # PEFT switches every parameter of its adapters to trained
            parameter.requires_grad_(flag)


def has_adapters(model: nn.Module) -> bool:
    """Whether the base can be had by switching adapters off."""
    learns_prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    return hasattr(model, "disable_adapter") and not learns_prompt


def check_adapters(model: nn.Module) -> None:
    """Check that the base can be had by switching adapters off.

    Raises:
        ConfigError: It cannot.
    """
    if not has_adapters(model):
        raise ConfigError(
            f"{type(model).__name__} has no adapters to switch off, so the base cannot be read: "
            "anchor 'base' and the keep term need LoRA or another PEFT adapter that changes "
            "weights. Use peft_config, or anchor 'neutral' with keep 0."
        )
