"""When to measure; no maths."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback

from emoreg.base import adapters_off, has_adapters
from emoreg.drift import Array, Drift, by_emotion, colon_readings, drift, load_prompts
from emoreg.errors import ConfigError
from emoreg.files import write_atomic
from emoreg.host import check_trainer, model_of
from emoreg.vectors import EmotionVectors
from emoreg.wandb_media import log_drift

log = logging.getLogger(__name__)


class DriftCallback(TrainerCallback):
    """Measures drift from the base at the start, every `drift_steps` and at the end of training.

    The base is the model with its adapters off; without adapters, the model at step 0. Scalars go
    through the trainer's log; the whole history into ``drift.json`` in the output folder and, if
    the trainer reports to wandb, into a table there.

    Args:
        trainer: The trainer.
        vectors: A set made for its model.
        prompts: File of drift prompts, JSON lines; emoreg's own by default.
        drift_steps: Measure every so many steps; 0 only at the start and the end.
        facets: Facets to read; all by default.
        blocks: Blocks to read; the set's suggested ones by default.

    Raises:
        TrainerError: Not a trainer.
        VectorMismatchError: The vectors were made for another model.
        BankError: The prompts cannot be read.
        ConfigError: On resuming full fine-tuning, whose base is no longer at hand.
    """

    def __init__(
        self,
        trainer: Trainer,
        vectors: EmotionVectors,
        prompts: str | Path | None = None,
        drift_steps: int = 0,
        facets: list[str] | None = None,
        blocks: list[int] | None = None,
    ) -> None:
        if drift_steps < 0:
            raise ConfigError(f"drift_steps must be >= 0, got {drift_steps}.")
        self.trainer = check_trainer(trainer)
        self.probe = vectors.probe(facets, blocks)
        vectors.verify()
        vectors.check(model_of(trainer), trainer.processing_class, name=False)
        if vectors.caveat:
            log.warning(vectors.caveat)
        self.prompts = load_prompts(prompts)
        self.drift_steps = drift_steps
        self.base: Array | None = None
        self.history: list[tuple[int, Drift]] = []

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Read the base, and measure once."""
        model, state = model_of(self.trainer), self.trainer.state
        if state.global_step == 0:
            self.history = []  # another run of the same trainer
        if has_adapters(model):
            with adapters_off(model):
                self.base = self._read()
        elif state.global_step == 0:
            self.base = self._read()
        else:
            raise ConfigError(
                f"Training resumes at step {state.global_step} without adapters, so the base that "
                "drift is measured from is not at hand. Measure with adapters, or from step 0."
            )
        self._measure()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Measure every `drift_steps`."""
        if self.drift_steps and self.trainer.state.global_step % self.drift_steps == 0:
            self._measure()

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Measure the last time, unless this step has been measured."""
        if not self.history or self.history[-1][0] != self.trainer.state.global_step:
            self._measure()
        if self.trainer.is_world_process_zero():
            log_drift(self.trainer.args, self.history)

    def _read(self) -> Array:
        values = colon_readings(
            model_of(self.trainer), self.trainer.processing_class, self.prompts, self.probe
        )
        return by_emotion(values, self.probe)[1]

    def _measure(self) -> None:
        assert self.base is not None
        emotions = tuple(dict.fromkeys(e for _, e in self.probe.rows))
        now = drift(self.base, self._read(), emotions)
        self.history.append((self.trainer.state.global_step, now))
        self._log(scalars(now))
        if self.trainer.is_world_process_zero():
            self._save()

    def _log(self, logs: dict[str, float]) -> None:
        """Log beside the trainer's own line, which stays due if it was."""
        due = self.trainer.control.should_log
        # The base class's log: TRL's own would close its averaging window early.
        Trainer.log(self.trainer, logs)
        self.trainer.control.should_log = due

    def _save(self) -> None:
        rows = [
            {"step": step, "structure": found.structure, "drift": found.sorted()}
            for step, found in self.history
        ]
        path = Path(str(self.trainer.args.output_dir)) / "drift.json"
        write_atomic(path, json.dumps(rows, indent=1, default=float) + "\n")


def scalars(found: Drift) -> dict[str, float]:
    """What is logged of a measurement."""
    logs = {"emoreg/drift_mean_abs": float(np.abs(found.mean).mean())}
    if len(found.emotions) > 2:
        logs["emoreg/drift_structure"] = found.structure
    for emotion, mean, low, high in found.sorted():
        logs |= {
            f"emoreg/drift/{emotion}": mean,
            f"emoreg/drift_low/{emotion}": low,
            f"emoreg/drift_high/{emotion}": high,
        }
    return logs
