"""What a regularizer tells beside its scalars: its knobs, texts, and the alerts that go off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState

from emoreg import boards
from emoreg.alerting import AlertCallback
from emoreg.alerts import Alert, Fired
from emoreg.card import brief
from emoreg.errors import ConfigError
from emoreg.examples import Examples, Row
from emoreg.journal import Journal
from emoreg.terms import EmotionTerms
from emoreg.tokens import SIDES
from emoreg.vectors import EmotionVectors

TIMES = 10  # that texts are told in a run


class Teller:
    """Tells the journal of one trainer what one regularizer does.

    Args:
        trainer: Whose run it is.
        terms: What is read, and the knobs.
        vectors: Where from.
        name: Of the regularizer.

    Raises:
        ConfigError: A name that cannot be part of a logged name.
    """

    def __init__(
        self, trainer: Trainer, terms: EmotionTerms, vectors: EmotionVectors, name: str | None
    ) -> None:
        if name is not None and ("/" in name or not name):
            raise ConfigError(f"name= is part of logged names; wanted one without /, got {name!r}.")
        self.trainer, self.terms, self.vectors, self.name = trainer, terms, vectors, name
        self.examples = Examples(terms.watched)
        alerts = [_own(alert, name) for alert in terms.config.alerts]
        self.alerts = AlertCallback(trainer, alerts, self._text) if alerts else None
        self._journal: Journal | None = None
        self._tenth = -1
        boards.expect(trainer, self)

    def begin(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """Training begins."""
        told = [int(line["step"]) for line in state.log_history if "loss" in line]
        self._tenth = TIMES * told[-1] // max(1, state.max_steps) if told else -1
        self._journal = boards.join(self.trainer, self)
        config, probe = self.terms.config, self.terms.probe
        self._journal.add(
            "control",
            state.global_step,
            name=self.name,
            config=vars(config),
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

    def _extremes(
        self, number: int, emotions: list[str] | None = None, side: str | None = None
    ) -> list[Row]:
        tokenizer = self.trainer.processing_class
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not hasattr(tokenizer, "decode"):  # a trainer may have none
            return []
        return self.examples.extremes(number, tokenizer, self.trainer.accelerator, emotions, side)

    def _text(self, fired: Fired) -> Row | None:
        """The completion of this step that reads furthest beyond an alert's threshold."""
        own = "emoreg/" if self.name is None else f"emoreg/{self.name}/"
        kind, _, rest = fired.alert.key.removeprefix(own).partition("/")
        emotion, side = rest.split("/")[0], kind.removeprefix("reading_")
        read = kind in ("reading", "reading_completion", "top", "over_margin", "excess")
        mine = fired.alert.key.startswith(own) and emotion in self.terms.watched
        if not (mine and (read or side in SIDES) and self.terms.config.emoreg_log_texts):
            return None
        end = "lowest" if fired.alert.below else "highest"
        rows = self._extremes(1, [emotion], side if side in SIDES else None)
        return next((row for row in rows if row["end"] == end), None)


def _own(alert: Alert, name: str | None) -> Alert:
    """An alert of a regularizer that has a name is on what that logs; drift has no name."""
    key = alert.key
    if name is None or "emoreg/drift" in key or f"emoreg/{name}/" in key:
        return alert
    return replace(alert, name=key.replace("emoreg/", f"emoreg/{name}/", 1))
