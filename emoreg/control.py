"""What acts in a run beside the terms themselves: weights that adapt, refits, the KL anchor.

Its state goes into every checkpoint, and a run that goes on from there has it exactly.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import Trainer

from emoreg.bank import OWN_BANK, Text, choose, load_bank
from emoreg.base import base_model, check_base
from emoreg.errors import ConfigError
from emoreg.files import parse_json, write_atomic
from emoreg.host import model_of, reading
from emoreg.kl import KLAnchor
from emoreg.processes import first_process
from emoreg.reader import Reader
from emoreg.refit import Refitter
from emoreg.schedule import Dual
from emoreg.terms import EmotionTerms

FORMAT = "emoreg-control-1"
log = logging.getLogger(__name__)


class Control:
    """Follows one regularizer through a run.

    Args:
        trainer: Whose run.
        terms: What is acted with; its weights and facets are changed.
        texts: A bank; that of the configuration by default.
        name: Of the regularizer.

    Raises:
        BankError: The bank cannot be read, or has too few texts.
        ConfigError: A refit or the KL anchor is asked for, and there is no base, or the anchor's
            forward cannot run beside the trainer's.
    """

    def __init__(
        self,
        trainer: Trainer,
        terms: EmotionTerms,
        texts: Sequence[Text] | None = None,
        name: str | None = None,
    ) -> None:
        self.trainer, self.terms, self.config = trainer, terms, terms.config
        self.file = f"emoreg-control{'' if name is None else f'-{name}'}.safetensors"
        self.refits = bool(self.config.emoreg_refit_steps) and self.config.active
        self.anchors = self.config.emoreg_kl > 0
        if self.refits or self.anchors:
            check_base(trainer)
            self._texts = load_bank(self.config.emoreg_bank or OWN_BANK) if texts is None else texts
        if self.anchors:
            _check_alone_in_backward(trainer)
        self._kl = self._anchor() if self.anchors else None
        self._divergences: list[Tensor] = []  # of the step under way
        self._task_loss: Tensor | None = None
        self._micro_batch = 0
        self._saved: tuple[int, Path] | None = None  # step and checkpoint
        self._start()

    def begin(self, checkpoint: Path | None) -> None:
        """Training begins, or goes on from a checkpoint.

        Raises:
            ConfigError: The checkpoint lacks the state of this control, or holds another one's.
        """
        self._start()
        if checkpoint is not None and (self._dual is not None or self._refitter is not None):
            self._restore(checkpoint / self.file)
        elif self._refitter is not None:
            with reading(self.trainer):
                self._refitter.prepare(base_model(self.trainer))

    def step_begins(self) -> None:
        """The first micro-batch of a step is next."""
        self._micro_batch, self._task_loss, self._divergences = 0, None, []

    def beside(self, loss: Tensor, added: Tensor | None, scaled: bool) -> Tensor | None:
        """What is added to a micro-batch's loss, with the KL term; its own loss is noted.

        Args:
            loss: The task's own.
            added: The terms of the readings, if there are any.
            scaled: Whether the trainer will not divide its loss by the accumulation steps any more.
        """
        steps = self.trainer.current_gradient_accumulation_steps
        own = loss.detach() / (1 if scaled else steps)
        self._task_loss = own if self._task_loss is None else self._task_loss + own
        anchor = self._anchor_term(self._micro_batch)
        self._micro_batch += 1
        if anchor is None:
            return added
        anchor = anchor / (steps if scaled else 1)
        return anchor if added is None else added.to(anchor) + anchor

    def _anchor_term(self, micro_batch: int) -> Tensor | None:
        if self._kl is None:
            return None
        args, accelerator = self.trainer.args, self.trainer.accelerator
        number = self.trainer.state.global_step * args.gradient_accumulation_steps + micro_batch
        with accelerator.autocast():
            found = self._kl(number * accelerator.num_processes + accelerator.process_index)
        self._divergences.append(found.detach())
        return found * self.config.emoreg_kl

    def stepped(self, reader: Reader) -> None:
        """The optimizer has moved the weights; every process must call it."""
        meter, step = reader.meters["train"], self.trainer.state.global_step
        if self._dual is not None:
            self._adapt(reader.take(), self._task_loss)
            names = tuple(f"weight/{e}" for e in self.terms.watched)
            values = [*self.terms.weights.values(), float(self._dual.gate_closed)]
            meter.add((*names, "gate_closed"), torch.tensor(values), 1)
        if self._divergences:
            meter.add(("kl",), torch.stack(self._divergences).sum()[None], len(self._divergences))
            self._divergences = []
        if self._refitter is not None and step % self.config.emoreg_refit_steps == 0:
            found = self._refit(self._refitter, reader, step)
            meter.add(tuple(found), torch.tensor(list(found.values())), 1)

    def save(self, checkpoint: Path) -> None:
        """Put the state into a checkpoint, once.

        Raises:
            OSError: It cannot be written.
        """
        if not first_process() or not checkpoint.is_dir():
            return
        step = self.trainer.state.global_step
        if (self._dual is None and self._refitter is None) or self._saved == (step, checkpoint):
            return
        tensors, names = self._refitter.state() if self._refitter else ({}, "[]")
        dual = json.dumps(self._dual.state() if self._dual else None)
        metadata = {"format": FORMAT, "dual": dual, "refit": names}
        # A file without tensors is no file of this format.
        tensors = {**tensors, "step": torch.tensor([step])}
        write_atomic(checkpoint / self.file, save(tensors, metadata))
        self._saved = step, checkpoint

    def _start(self) -> None:
        config = self.config
        self.terms.weights = {**config.penalize, **config.reward}
        self.terms.extend([])
        self._divergences = []
        self._saved = None
        self._dual = self._refitter = None
        if config.emoreg_target is not None:
            self._dual = Dual(
                self.terms.weights,
                config.emoreg_target,
                config.emoreg_target_rate,
                config.emoreg_target_ceiling,
                config.emoreg_target_utility,
            )
        if self.refits:
            self._refitter = Refitter(
                self.trainer.processing_class,
                self.terms.probe,
                self.terms.watched,
                self._texts,
                config.emoreg_refit_facets,
                config.emoreg_refit_texts,
                config.emoreg_refit_tokens,
            )

    def _anchor(self) -> KLAnchor:
        texts = choose(self._texts, "neutral", "fit")
        return KLAnchor(
            model_of(self.trainer),
            self.trainer.processing_class,
            texts,
            self.config.emoreg_kl_texts,
        )

    def _adapt(self, beyond: Tensor | None, task_loss: Tensor | None) -> None:
        """One step of the weights, from the readings of the step on all processes."""
        assert self._dual is not None
        accelerator, watched = self.trainer.accelerator, self.terms.watched
        found = torch.zeros(len(watched) + 3, device=accelerator.device)
        if beyond is not None:
            found[: len(watched) + 1] = beyond.to(found)
        if task_loss is not None:
            found[-2:] = torch.stack([task_loss.to(found), found.new_ones(())])
        *sums, number, loss, losses = accelerator.reduce(found, "sum").tolist()
        signs = [1 if e in self.config.penalize else -1 for e in watched]
        violation = {
            e: sign * x / number for e, sign, x in zip(watched, signs, sums, strict=True) if number
        }
        self._dual.update(violation, loss / losses if losses else None)
        self.terms.weights = self._dual.weights

    def _refit(self, refitter: Refitter, reader: Reader, step: int) -> dict[str, float]:
        began = time.perf_counter()
        with reading(self.trainer):
            found = refitter.fit(model_of(self.trainer), step)
        self.terms.extend(refitter.facets())
        reader.forwards.renew()
        return {**found, "refit_seconds": time.perf_counter() - began}

    def _restore(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as held:
                metadata = held.metadata() or {}
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise ConfigError(
                f"Training resumes, and {path} cannot be read ({e}): the weights and facets that "
                "the run had are lost. Resume from a checkpoint that has it, or start at step 0."
            ) from e
        if metadata.get("format") != FORMAT:
            raise ConfigError(
                f"{path} has format {metadata.get('format')!r}, wanted {FORMAT!r}. Resume from a "
                "checkpoint that this version of emoreg saved, or start at step 0."
            )
        step, own = self.trainer.state.global_step, tensors.get("step")
        own = None if own is None or own.numel() != 1 or own.dtype != torch.long else int(own)
        if own != step:
            raise ConfigError(
                f"{path} is of step {own}, and training resumes at step {step}: it is another "
                "checkpoint's. Resume from a whole checkpoint, or start at step 0."
            )
        try:
            self._resume(tensors, metadata)
        except (KeyError, ValueError) as e:
            if isinstance(e, ConfigError):
                raise
            raise ConfigError(
                f"{path} is damaged: it lacks {e} or has it in another form. Resume from a whole "
                "checkpoint, or start at step 0."
            ) from e

    def _resume(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        if self._dual is not None:
            self._dual.restore(parse_json(metadata["dual"]) or {})
            self.terms.weights = self._dual.weights
        if self._refitter is not None:
            with reading(self.trainer):
                self._refitter.prepare(base_model(self.trainer))
            self._refitter.restore(tensors, metadata["refit"])
            self.terms.extend(self._refitter.facets())


def _check_alone_in_backward(trainer: Trainer) -> None:
    """Check that data parallel can take a second forward within one loss.

    Raises:
        ConfigError: Re-entrant checkpointing runs a backward of its own for each block, after which
            data parallel takes a parameter's gradient for whole.
    """
    args = trainer.args
    given: Any = args.gradient_checkpointing_kwargs or {}
    reentrant = bool(given.get("use_reentrant"))
    if args.gradient_checkpointing and reentrant and trainer.accelerator.num_processes > 1:
        raise ConfigError(
            "emoreg_kl runs the model once more in each loss, which re-entrant gradient "
            "checkpointing does not allow in several processes. Set "
            "gradient_checkpointing_kwargs: {use_reentrant: false}, or leave emoreg_kl out."
        )
