"""EmotionRegularizer: the callback that adds the terms of the loss to a trainer's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from emoreg.blocks import find_backbone, trainable_below
from emoreg.config import EmoRegConfig
from emoreg.errors import CaptureError, ConfigError, TrainerError
from emoreg.host import (
    Loan,
    adapters_off,
    check_adapters,
    check_counted,
    check_trainer,
    log_kind,
    loss_is_scaled,
    model_of,
)
from emoreg.meter import Meter
from emoreg.tap import Tap, evaluating, policy_forward, run_truncated
from emoreg.terms import EmotionTerms, Terms
from emoreg.tokens import Counted, count_tokens
from emoreg.vectors import EmotionVectors

Method = Callable[..., Any]


class EmotionRegularizer(TrainerCallback):
    """Penalises and rewards emotion readings in a trainer's loss, and logs them.

    The added term means the same under any gradient accumulation: it is a mean over the counted
    tokens of the whole accumulation window where the trainer weights its own loss by tokens, and a
    mean of the micro-batches' means where it does not. Evaluation reports the readings and leaves
    `eval_loss` as it is. With every weight 0 training is bit-identical to training without it.

    Args:
        trainer: A trainer whose batches carry labels, as those of `SFTTrainer` do.
        vectors: A set made for its model.
        config: The knobs, if they come from a file.
        knobs: The knobs by name, without the prefix ``emoreg_``: ``penalize={"desperate": 0.1}``.

    Raises:
        TrainerError: Not a trainer.
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
        **knobs: Any,
    ) -> None:
        if config is not None and knobs:
            raise ConfigError(
                f"Pass a config or knobs, not both; got a config and {sorted(knobs)}."
            )
        self.trainer = check_trainer(trainer)
        self.config = config or EmoRegConfig.of(**knobs)
        self.vectors = vectors
        self.terms = EmotionTerms(vectors, self.config)
        model = model_of(self.trainer)
        vectors.check(model, trainer.processing_class, name=self.config.emoreg_check_name)
        self.tap = Tap(model, self.terms.probe.blocks, when=self._seen)
        self.meters = {"train": Meter(), "eval": Meter()}
        self._check_reach(model)
        self._take_over(trainer)
        self._loan = Loan(trainer)
        self._guard = Loan(trainer)
        self._guard.replace("train", self._guarded)
        self._training = False
        self._window: Tensor | None = None
        self._checked_first_window = False
        self._step_began = 0.0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Borrow the trainer's methods."""
        if self not in self.trainer.callback_handler.callbacks:
            raise TrainerError("This regularizer was made for another trainer; make one for each.")
        self.detach()
        self.tap = Tap(model_of(self.trainer), self.terms.probe.blocks, when=self._seen)
        self._checked_first_window = False
        self.meters = {"train": Meter(), "eval": Meter()}  # a run before may have left sums
        self._loan.replace("compute_loss", self._computing)
        self._loan.replace("get_batch_samples", self._sampling)
        self._loan.replace("log", self._logging)

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Give everything back."""
        self.detach()

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Start the clock of a step."""
        self._step_began = time.perf_counter()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Stop the clock of a step."""
        self.meters["train"].add("seconds", time.perf_counter() - self._step_began, 1)

    def detach(self) -> None:
        """Take every hook off the model and give every borrowed method back."""
        self.tap.close()
        self._loan.give_back()

    def _check_reach(self, model: nn.Module) -> None:
        if self.config.needs_base:
            check_adapters(model)
        deepest = self.terms.probe.blocks[-1]
        if self.config.active and not trainable_below(find_backbone(model), deepest, model):
            raise ConfigError(
                f"No trainable parameter lies at or below block {deepest}, the deepest that is "
                "read, so no gradient of the penalty can reach one. Train earlier blocks or read "
                "later ones."
            )

    def _guarded(self, train: Method) -> Method:
        """`trainer.train`, after which nothing is left behind, whatever happened."""

        @wraps(train)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            finally:
                self.detach()
                self._guard.give_back()

        vars(guarded)["regularizer"] = self
        return guarded

    def _take_over(self, trainer: Trainer) -> None:
        """Release a regularizer that was made for this trainer before and never added.

        Raises:
            ConfigError: The other one was added; a trainer takes one.
        """
        other = getattr(vars(trainer).get("train"), "regularizer", None)
        if any(isinstance(c, EmotionRegularizer) for c in trainer.callback_handler.callbacks):
            raise ConfigError(
                "This trainer has an EmotionRegularizer already; one takes any number of emotions. "
                "To replace it call trainer.remove_callback(EmotionRegularizer) first."
            )
        if other is not None:
            other._guard.give_back()

    def _seen(self, backbone: nn.Module) -> bool:
        """The policy forward in training; in evaluation the first forward."""
        return policy_forward(backbone) if self._training else not self.tap.calls

    def _sampling(self, get_batch_samples: Method) -> Method:
        """Counts the tokens of each accumulation window."""

        @wraps(get_batch_samples)
        def sampling(*args: Any, **kwargs: Any) -> Any:
            batches, items = get_batch_samples(*args, **kwargs)
            counts = [self._count(b).mask.sum() for b in batches if "labels" in b]
            total = torch.stack(counts).sum() if counts else torch.tensor(0)
            total = total.to(self.trainer.accelerator.device)
            if self._ranks() > 1:
                total = self.trainer.accelerator.gather(total).sum()
            self._window = total
            if not self._checked_first_window and batches:
                check_counted(self.trainer, batches[0], int(total), self.config.emoreg_scope)
                self._checked_first_window = True
            return batches, items

        return sampling

    def _count(self, inputs: dict[str, Any]) -> Counted:
        return count_tokens(
            inputs["labels"],
            self.config.emoreg_scope,
            inputs.get("attention_mask"),
            inputs.get("position_ids"),
        )

    def _computing(self, compute_loss: Method) -> Method:
        """`trainer.compute_loss` with the terms added in training, and readings taken always."""

        @wraps(compute_loss)
        def computing(
            model: nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
            **kwargs: Any,
        ) -> Any:
            counted = self._count(inputs) if "labels" in inputs else None
            self._training = model.training and torch.is_grad_enabled()
            kwargs |= {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
            with self.tap:
                result = compute_loss(model, inputs, **kwargs)
                acts, calls = self._captured()
            if counted is None or not acts:
                return result
            loss = result[0] if return_outputs else result
            loss = self._added(loss, acts, calls, counted, num_items_in_batch)
            return (loss, *result[1:]) if return_outputs else loss

        return computing

    def _captured(self) -> tuple[dict[int, Tensor], list[Any]]:
        """What the tap saw of one call of `compute_loss`.

        Raises:
            CaptureError: In training: nothing, more than one forward, or outputs without gradient.
        """
        acts, calls = dict(self.tap.acts), list(self.tap.calls)
        if not self._training:
            return acts, calls
        if len(calls) != 1 or not acts:
            raise CaptureError(
                f"{len(calls)} forwards with gradients went through the decoder blocks in one "
                "compute_loss; wanted exactly one. Was the model replaced or compiled after the "
                "callback was added, or does the trainer run the policy several times?"
            )
        if self.config.active and not all(h.requires_grad for h in acts.values()):
            raise CaptureError(
                "The captured block outputs carry no gradient, so the penalty could not act. With "
                "re-entrant gradient checkpointing call model.enable_input_require_grads()."
            )
        return acts, calls

    def _added(
        self, loss: Tensor, acts: dict[int, Tensor], calls: list[Any], counted: Counted, items: Any
    ) -> Tensor:
        """The loss with the terms added; unchanged, to the bit, in evaluation and at weight 0.

        Raises:
            CaptureError: The blocks saw other tokens than those that the labels are of.
        """
        shape = next(iter(acts.values())).shape[:2]
        counted = counted.padded_left(shape[1])
        if shape != counted.mask.shape:
            raise CaptureError(
                f"The labels are of {tuple(counted.mask.shape)} tokens and the block outputs of "
                f"{tuple(shape)}, so it is unknown which count. Is the sequence split or cut?"
            )
        adding = self._training and self.config.active
        base = self._base(calls[0]) if self.config.needs_base else None
        with torch.set_grad_enabled(adding):
            terms = self.terms(acts, counted, base, self._scale())
        for name, total in terms.sums.items():
            self.meters["train" if self._training else "eval"].add(name, total, terms.tokens)
        if not adding:
            return loss
        return loss + (terms.loss * self._share(terms, items)).to(loss)

    def _share(self, terms: Terms, items: Any) -> Tensor:
        """What turns a sum over this micro-batch's tokens into its part of the window's mean."""
        trainer = self.trainer
        if items is not None and self._window is not None and loss_is_scaled(trainer, items):
            return self._ranks() / self._window.clamp(min=1)
        steps = trainer.current_gradient_accumulation_steps if loss_is_scaled(trainer, items) else 1
        return 1.0 / (terms.tokens.clamp(min=1) * steps)

    def _ranks(self) -> int:
        """How many processes the trainer averages tokens over."""
        averaged = self.trainer.args.average_tokens_across_devices
        return self.trainer.accelerator.num_processes if averaged else 1

    def _scale(self) -> float:
        """Warm-up factor of the weights, from 0 to 1."""
        steps = self.config.emoreg_warmup * self.trainer.state.max_steps
        return min(1.0, (self.trainer.state.global_step + 1) / steps) if steps > 1 else 1.0

    def _base(self, call: Any) -> dict[int, Tensor]:
        """Block outputs of the base for the same call, up to the deepest block; no gradients."""
        args, kwargs = call
        model = model_of(self.trainer)
        kwargs = {**kwargs, "use_cache": False}
        autocast = self.trainer.accelerator.autocast()
        tap = Tap(model, self.terms.probe.blocks)
        with torch.no_grad(), autocast, adapters_off(model), evaluating(model), tap:
            run_truncated(tap, lambda: tap.backbone.module(*args, **kwargs))
            return dict(tap.acts)

    def _logging(self, log: Method) -> Method:
        """`trainer.log` with the readings since the last one, over all processes and tokens."""

        @wraps(log)
        def logging(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            kind, prefix = log_kind(logs)
            if kind is not None:
                means = self.meters[kind].drain(self.trainer.accelerator)
                logs.update({f"{prefix}emoreg/{name}": value for name, value in means.items()})
            log(logs, *args, **kwargs)

        return logging
