"""What a regularizer tells beside its scalars: its knobs, texts, and the alerts that go off."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState

from emoreg import boards
from emoreg.alerting import AlertCallback
from emoreg.alerts import Fired
from emoreg.card import brief
from emoreg.examples import Examples, Row
from emoreg.journal import Journal
from emoreg.terms import EmotionTerms
from emoreg.vectors import EmotionVectors

TIMES = 10  # that texts are told in a run


class Teller:
    """Tells the journal of one trainer what one regularizer does.

    Args:
        trainer: Whose run it is.
        terms: What is read, and the knobs.
        vectors: Where from.
        name: Of the regularizer.
    """

    def __init__(
        self, trainer: Trainer, terms: EmotionTerms, vectors: EmotionVectors, name: str | None
    ) -> None:
        self.trainer, self.terms, self.vectors, self.name = trainer, terms, vectors, name
        self.examples = Examples(terms.watched)
        alerts = terms.config.alerts
        self.alerts = AlertCallback(trainer, alerts, self._text) if alerts else None
        self._journal: Journal | None = None
        self._tenth = -1
        boards.expect(trainer, self)

    def begin(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Training begins."""
        self._tenth = -1
        self._journal = boards.join(self.trainer, self)
        config, probe = self.terms.config, self.terms.probe
        self._journal.add(
            "control",
            state.global_step,
            name=self.name,
            config=asdict(config),
            emotions=self.terms.vitals.emotions,
            watched={"penalize": config.penalize, "reward": config.reward},
            facets=list(dict.fromkeys(facet for facet, _ in probe.rows)),
            blocks=probe.blocks,
            vectors=brief(self.vectors.card),
        )
        if self.alerts is not None:
            self.alerts.on_train_begin(args, state, control)

    def logged(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float]
    ) -> None:
        """A line was logged, on every process."""
        if self._journal is not None:
            boards.logged(self.trainer, self, logs)
            if "loss" in logs:
                self._tell_texts(state)
        # The alerts also hear what others measure before this one begins and after it has ended.
        if self.alerts is not None:
            self.alerts.on_log(args, state, control, logs=logs)

    def end(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Training ended."""
        if self._journal is None:
            return
        if self.alerts is not None:
            self.alerts.on_train_end(args, state, control)
        self._journal = None
        self.examples.clear()
        boards.leave(self.trainer, self)

    def _tell_texts(self, state: TrainerState) -> None:
        """The texts of this step, ten times in a run."""
        number = self.terms.config.emoreg_log_texts
        tenth = TIMES * state.global_step // max(1, state.max_steps)
        if not number or tenth == self._tenth:
            return
        self._tenth = tenth
        rows = self._extremes(number)
        if rows and self._journal is not None:
            self._journal.add("texts", state.global_step, rows=rows)

    def _extremes(self, number: int, emotions: list[str] | None = None) -> list[Row]:
        tokenizer = self.trainer.processing_class
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        return self.examples.extremes(number, tokenizer, self.trainer.accelerator, emotions)

    def _text(self, fired: Fired) -> Row | None:
        """The completion of this step that reads furthest beyond an alert's threshold."""
        key, watched = fired.alert.key, self.terms.watched
        emotion = next((part for part in key.split("/") if part in watched), None)
        elsewhere = key.startswith(("eval_", "emoreg/drift"))  # not read on this step's texts
        if emotion is None or elsewhere or not self.terms.config.emoreg_log_texts:
            return None
        end = "lowest" if fired.alert.below else "highest"
        return next((r for r in self._extremes(1, [emotion]) if r["end"] == end), None)
