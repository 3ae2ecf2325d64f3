"""When to audit a training; no maths."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from emoreg import audit_kept, boards
from emoreg.audit import Audit, Auditor
from emoreg.audit_view import View
from emoreg.bank import OWN_BANK, load_bank
from emoreg.bank import fingerprint as bank_hash
from emoreg.base import has_adapters
from emoreg.callbacks import TIMES
from emoreg.card import brief
from emoreg.config import EmoRegConfig
from emoreg.errors import ConfigError
from emoreg.host import check_trainer, model_of, reading
from emoreg.journal import Journal
from emoreg.processes import first_process, shared
from emoreg.prompts import fingerprint, load_prompts
from emoreg.vectors import EmotionVectors
from emoreg.verdict import WORDS

log = logging.getLogger(__name__)


class AuditCallback(TrainerCallback):
    """Reads the base at the start, and audits the model at the end of training or more often.

    The base is the model with its adapters off; without adapters, the model at step 0. Scalars go
    through the trainer's log, everything into the run's journal as events ``audit``.

    Args:
        trainer: The trainer.
        vectors: The set that the control uses.
        bank: File or folder of labelled texts; emoreg's own by default.
        prompts: File of drift prompts; emoreg's own by default.
        audit_steps: Audit every so many steps; 0 at the end only; None ten times in the run.
        emotion: The penalised emotion.
        facets: Facets that the control uses; all by default.
        blocks: Blocks that the control watches; the set's suggested ones by default.

    Attributes:
        history: Step and audit, of every one.

    Raises:
        TrainerError: Not a trainer.
        VectorMismatchError: The vectors were made for another model.
        UnknownEmotionError: The set lacks the emotion, a facet or a block.
        BankError: The bank or the prompts cannot be read, or hold nothing to measure on.
        ConfigError: A knob is out of range; or on resuming full fine-tuning without what was read
            at its step 0.
    """

    def __init__(
        self,
        trainer: Trainer,
        vectors: EmotionVectors,
        bank: str | Path | None = None,
        prompts: str | Path | None = None,
        audit_steps: int | None = 0,
        emotion: str = "desperate",
        facets: list[str] | None = None,
        blocks: list[int] | None = None,
    ) -> None:
        _check_steps(audit_steps)
        self.trainer = check_trainer(trainer)
        vectors.verify()
        vectors.check(model_of(trainer), trainer.processing_class, name=False)
        self.vectors, self.audit_steps = vectors, audit_steps
        texts, drift = load_bank(bank or OWN_BANK), load_prompts(prompts)
        self.auditor = Auditor(
            trainer.processing_class, vectors, texts, drift, emotion, facets, blocks
        )
        self.about = {
            "bank": bank_hash(texts),
            "prompts": fingerprint(drift),
            "emotion": emotion,
            "blocks": list(self.auditor.reader.blocks),
            "vectors": str(vectors.card.get("sha256", "")),
        }
        self.history: list[tuple[int, Audit]] = []
        self._base: View | None = None
        self._journal: Journal | None = None
        self._every = 0
        boards.expect(trainer, self)

    @classmethod
    def of(cls, trainer: Trainer, vectors: EmotionVectors, config: EmoRegConfig) -> AuditCallback:
        """The callback with the knobs of a configuration; raises as the class does."""
        penalised = sorted(config.penalize, key=lambda e: -config.penalize[e])
        return cls(
            trainer,
            vectors,
            config.emoreg_bank,
            config.emoreg_drift_prompts,
            config.emoreg_audit_steps,
            penalised[0] if penalised else "desperate",
            config.emoreg_facets,
            config.emoreg_blocks,
        )

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Read the base, or have it from the run that is resumed."""
        self._leave()  # a run of this trainer that an error ended
        state = self.trainer.state
        often = max(-(-state.max_steps // TIMES), 1)
        self._every = often if self.audit_steps is None else self.audit_steps
        if state.global_step == 0:
            self.history = []  # another run of the same trainer
        self._journal = boards.join(self.trainer, self)
        began = time.monotonic()
        self._base = self._read_base(state.global_step)
        log.info("The audit read the base in %.1f s.", time.monotonic() - began)

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Audit every `audit_steps`; the end of training has an audit of its own."""
        state = self.trainer.state
        due = self._every and state.global_step % self._every == 0
        if due and state.global_step < state.max_steps:
            self._audit()

    def on_log(self, *_args: Any, **kwargs: Any) -> None:
        """Bring a line of the log to the journal."""
        boards.logged(self.trainer, self, kwargs["logs"])

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Audit the last time: the best model, if that was loaded."""
        self._audit(final=True)
        self._leave()

    def _read_base(self, step: int) -> View:
        model, path = model_of(self.trainer), Path(str(self.trainer.args.output_dir))
        whole = not has_adapters(model)
        if whole and step > 0:
            return _kept(path / audit_kept.FILE, self.about)
        with reading(self.trainer):
            found = self.auditor.base(model)
        if whole and first_process():
            try:
                audit_kept.write(path / audit_kept.FILE, found, self.about)
            except OSError as e:
                log.warning("%s cannot be kept (%s): a resumed run needs it.", audit_kept.FILE, e)
        return found

    def _audit(self, final: bool = False) -> None:
        began, step = time.monotonic(), self.trainer.state.global_step
        assert self._base is not None
        assert self._journal is not None
        with reading(self.trainer):
            found = self.auditor.now(model_of(self.trainer), self._base)
        seconds = time.monotonic() - began
        self.history.append((step, found))
        about = {**self.about, "vectors": brief(self.vectors.card)}
        self._journal.add("audit", step, seconds=seconds, final=final, about=about, **found.row())
        if self._journal.writes:
            log.log(
                logging.INFO if found.verdict == "held" else logging.WARNING,
                "Audit at step %d: %s. %s.", step, found.verdict, "; ".join(found.reasons[:2]),
            )  # fmt: skip
        due = self.trainer.control.should_log
        # The base class's log: TRL's own would close its averaging window early.
        Trainer.log(self.trainer, {**scalars(found), "emoreg/audit_seconds": seconds})
        self.trainer.control.should_log = due

    def _leave(self) -> None:
        if self._journal is not None:
            boards.leave(self.trainer, self)
        self._journal = self._base = None


def _kept(path: Path, about: dict[str, Any]) -> View:
    """What the first process has in a file; every process must call it, and fails as that does."""
    found, problem = None, ""
    if first_process():
        try:
            found = audit_kept.read(path, about)
        except ConfigError as e:
            problem = str(e)
    found, problem = shared((found, problem))
    if found is None:
        raise ConfigError(problem)
    return found


def scalars(found: Audit) -> dict[str, float]:
    """What is logged of an audit: each measurement with its interval, and the verdict's place."""
    logs = {"_verdict": float(WORDS.index(found.verdict)), "_tokens": found.tokens}
    for name, fact in found.facts.items():
        logs |= {f"/{name}": fact.value, f"_low/{name}": fact.low, f"_high/{name}": fact.high}
    return {f"emoreg/audit{name}": float(v) for name, v in logs.items() if math.isfinite(v)}


def _check_steps(audit_steps: int | None) -> None:
    whole = isinstance(audit_steps, int) and not isinstance(audit_steps, bool)
    if audit_steps is not None and not (whole and audit_steps >= 0):
        raise ConfigError(f"audit_steps must be a whole number >= 0, got {audit_steps!r}.")
