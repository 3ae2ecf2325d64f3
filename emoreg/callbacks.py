"""When to measure drift; no maths."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from emoreg import boards
from emoreg.base import has_adapters
from emoreg.baseline import Base, read_base
from emoreg.card import brief
from emoreg.catalogue import CATALOGUE
from emoreg.config import CHOICES, EmoRegConfig
from emoreg.drift import Drift
from emoreg.errors import ConfigError
from emoreg.host import check_trainer, model_of, reading
from emoreg.journal import Journal
from emoreg.prompts import OWN_PROMPTS, Prompt, fingerprint, load_prompts
from emoreg.series import Series, resumed
from emoreg.snapshot import Gauge
from emoreg.vectors import EmotionVectors

TIMES = 10  # that drift is measured in a run
EXAMPLES, LONGEST = 2, 300  # prompts of a kind that the journal shows, and their characters
ON_POLICY = CHOICES["emoreg_drift_on_policy"]

log = logging.getLogger(__name__)


class DriftCallback(TrainerCallback):
    """Measures drift from the base at the start, every `drift_steps` and at the end of training.

    The base is the model with its adapters off; without adapters, the model at step 0. Scalars go
    through the trainer's log, everything into the run's journal.

    Args:
        trainer: The trainer.
        vectors: A set made for its model.
        prompts: File of drift prompts, JSON lines; emoreg's own by default.
        drift_steps: Measure every so many steps; 0 only at the start and the end; None ten times
            in the run.
        facets: Facets to read; all by default.
        blocks: Blocks to read; the set's suggested ones by default.
        response_tokens: Length of the base's responses, on which it and the model are read beside
            the colon; 0 for none.
        on_policy: When the model's own responses are read too: at the ``end``, ``always``, or
            ``never``.
        cache: Whether base readings are kept on disk, see `emoreg.baseline`, and had from there.

    Attributes:
        history: Step, and drift at the colon, of every measurement.

    Raises:
        TrainerError: Not a trainer.
        VectorMismatchError: The vectors were made for another model.
        BankError: The prompts cannot be read, or not be written in the chat template.
        ConfigError: A knob is out of range; or on resuming full fine-tuning without what was read
            at its step 0.
        CaptureError: While training: no memory for a single prompt, or activations that are not
            finite.
    """

    def __init__(  # noqa: PLR0913 - each is a knob of `EmoRegConfig`; see `of`
        self,
        trainer: Trainer,
        vectors: EmotionVectors,
        prompts: str | Path | None = None,
        drift_steps: int | None = None,
        facets: list[str] | None = None,
        blocks: list[int] | None = None,
        response_tokens: int = 32,
        on_policy: str = "end",
        cache: bool = True,
    ) -> None:
        _check_knobs(drift_steps, on_policy)
        self.trainer = check_trainer(trainer)
        probe = vectors.probe(facets, blocks)
        vectors.verify()
        vectors.check(model_of(trainer), trainer.processing_class, name=False)
        if vectors.caveat:
            log.warning(vectors.caveat)
        self.vectors, self.file = vectors, Path(prompts or OWN_PROMPTS)
        self.drift_steps, self.on_policy, self.cache = drift_steps, on_policy, cache
        self.gauge = Gauge(
            trainer.processing_class, load_prompts(self.file), probe, response_tokens
        )
        self.history: list[tuple[int, Drift]] = []
        self._series: Series | None = None
        self._journal: Journal | None = None
        self._every = 0
        boards.expect(trainer, self)

    @classmethod
    def of(
        cls, trainer: Trainer, vectors: EmotionVectors, config: EmoRegConfig, cache: bool = True
    ) -> DriftCallback:
        """The callback with the knobs of a configuration; raises as the class does."""
        return cls(
            trainer,
            vectors,
            config.emoreg_drift_prompts,
            config.emoreg_drift_steps,
            config.emoreg_facets,
            config.emoreg_blocks,
            config.emoreg_drift_response_tokens,
            config.emoreg_drift_on_policy,
            cache,
        )

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Read the base, and measure once, unless a resumed run has measured before."""
        self._leave()  # a run of this trainer that an error ended
        state = self.trainer.state
        often = -(-state.max_steps // TIMES)  # at most so many times
        self._every = max(often, 1) if self.drift_steps is None else self.drift_steps
        if state.global_step == 0:
            self.history = []  # another run of the same trainer
        base = self._base(state.global_step)
        self._journal = boards.join(self.trainer, self)
        boards.keep(self.trainer, self._running.keep)
        self._journal.add("baseline", state.global_step, **self._about(base))
        if "previous" not in self._running.earlier:
            self._measure()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Measure every `drift_steps`; the end of training has a measurement of its own."""
        state = self.trainer.state
        due = self._every and state.global_step % self._every == 0
        if due and state.global_step < state.max_steps:
            self._measure()

    def on_save(self, *_args: Any, **_kwargs: Any) -> None:
        """Put into the checkpoint what a resumed run needs, if `save_model` did not pass there."""
        if self._series is not None:
            self._series.keep(self._output / f"checkpoint-{self.trainer.state.global_step}")

    def on_log(self, *_args: Any, **kwargs: Any) -> None:
        """Bring a line of the log to the journal."""
        boards.logged(self.trainer, self, kwargs["logs"])

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Measure the last time: the best model, if that was loaded."""
        self._measure(final=True)
        self._leave()

    @property
    def _output(self) -> Path:
        return Path(str(self.trainer.args.output_dir))

    @property
    def _running(self) -> Series:
        assert self._series is not None
        return self._series

    def _base(self, step: int) -> Base:
        """Read the base, or have it from the run that is resumed."""
        model, found = model_of(self.trainer), None
        # Readings of another precision differ by rounding, which is no drift.
        kind, mixed = next(model.parameters()).dtype, self.trainer.accelerator.mixed_precision
        self.gauge.identity["precision"] = f"{kind}, {mixed}"
        if step == 0 or has_adapters(model):
            with reading(self.trainer):
                found = read_base(model, self.gauge, self.cache)
        if step == 0:
            assert found is not None
            self._series = Series(self.gauge, found.snapshot)
            self._running.keep_base(self._output)
        else:
            base = found and found.snapshot
            self._series = resumed(self.gauge, base, self._output, boards.checkpoint(self.trainer))
        return found or Base(self._running.base, False)

    def _measure(self, final: bool = False) -> None:
        began, step = time.monotonic(), self.trainer.state.global_step
        own = self.on_policy == "always" or (final and self.on_policy == "end")
        with reading(self.trainer):
            found = self._running.measure(model_of(self.trainer), step, own)
        seconds = time.monotonic() - began
        self.history.append((step, found.drift))
        assert self._journal is not None
        self._journal.add("drift", step, seconds=seconds, final=final, **found.event)
        seconds = time.monotonic() - began  # with what the journal's listeners drew
        self._log({**found.scalars, "emoreg/drift_seconds": seconds})

    def _log(self, logs: dict[str, float]) -> None:
        """Log beside the trainer's own line, which stays due if it was."""
        due = self.trainer.control.should_log
        # The base class's log: TRL's own would close its averaging window early.
        Trainer.log(self.trainer, logs)
        self.trainer.control.should_log = due

    def _leave(self) -> None:
        if self._journal is not None:
            boards.leave(self.trainer, self)
        self._journal = self._series = None

    def _about(self, base: Base) -> dict[str, Any]:
        """What the journal keeps of how drift is measured."""
        adapters = has_adapters(model_of(self.trainer))
        return {
            **described(self.gauge, base.snapshot, self.file),
            "on_policy": self.on_policy,
            "drift_steps": self._every,
            "vectors": brief(self.vectors.card),
            "base": "adapters off" if adapters else "step-0 snapshot",
            "cached": base.cached,
        }


def described(gauge: Gauge, base: Any, file: Path) -> dict[str, Any]:
    """What the journal keeps of the prompts, what is read on them, and the emotions."""
    kinds, rows = gauge.kinds, gauge.probe.rows
    entries = {e: CATALOGUE.entries.get(e) for e in gauge.emotions}
    return {
        "prompts": {
            "file": file.name,
            "hash": fingerprint(gauge.prompts),
            "number": len(kinds),
            "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "examples": _some(gauge.prompts),
        },
        "response_tokens": gauge.response_tokens if base.texts else 0,
        "facets": list(dict.fromkeys(facet for facet, _ in rows)),
        "blocks": list(gauge.probe.blocks),
        "emotions": {
            e: {
                "valence": entry and entry.valence,
                "arousal": entry and entry.arousal,
                "cluster": (entry and entry.cluster) or None,
            }
            for e, entry in entries.items()
        },
    }


def _some(prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """The first prompts of each kind, for readers of a report."""
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        own = found.setdefault(prompt.kind, [])
        if len(own) < EXAMPLES:
            own.append(prompt.messages[-1]["content"][:LONGEST])
    return found


def _check_knobs(drift_steps: int | None, on_policy: str) -> None:
    whole = isinstance(drift_steps, int) and not isinstance(drift_steps, bool)
    if drift_steps is not None and not (whole and drift_steps >= 0):
        raise ConfigError(f"drift_steps must be a whole number >= 0, got {drift_steps!r}.")
    if on_policy not in ON_POLICY:
        raise ConfigError(f"on_policy is one of {', '.join(ON_POLICY)}; got {on_policy!r}.")
