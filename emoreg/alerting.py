"""Watches what a trainer logs, and tells, stops or calls when a threshold is passed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from emoreg import boards
from emoreg.alerts import Alert, Fired, finite, parse, quoted
from emoreg.host import check_trainer, log_kind
from emoreg.journal import Event, Journal
from emoreg.processes import shared

log = logging.getLogger(__name__)


@dataclass
class _Count:
    """How an alert stands: lines beyond the threshold, from which step; if it has gone off."""

    lines: int = 0
    since: int = 0
    off: bool = False


@dataclass
class Alerts:
    """Counts, for a number of alerts, how long each has been beyond its threshold."""

    alerts: Sequence[Alert]
    names: set[str] = field(default_factory=set)  # every key logged so far

    def __post_init__(self) -> None:
        self._counts = [_Count() for _ in self.alerts]

    def see(self, step: int, logs: Mapping[str, Any]) -> list[Fired]:
        """Take in one log line.

        Args:
            step: The trainer's.
            logs: Key to value.

        Returns:
            The alerts that go off now.
        """
        fired = []
        for alert, count in self._counted(step, logs):
            if count.lines >= alert.patience and not count.off:
                count.off = True
                fired.append(Fired(alert, step, float(logs[alert.key]), count.since))
        return fired

    def replay(
        self, lines: Iterable[tuple[int, Mapping[str, Any]]], told: Iterable[Mapping[str, Any]]
    ) -> None:
        """Take in the lines of a run that goes on, and which alerts went off in it.

        One that would have gone off, but had another threshold or was not there, is still to.

        Args:
            lines: Step and values of every log line before the checkpoint.
            told: The journal's alerts before the checkpoint.
        """
        for step, logs in lines:
            self._counted(step, logs)
        names = ("name", "threshold", "above", "patience", "action")
        before = {tuple(row[name] for name in names) for row in told}
        for alert, count in zip(self.alerts, self._counts, strict=True):
            event = Fired(alert, 0, 0.0, 0).event()
            count.off = tuple(event[name] for name in names) in before

    def unseen(self) -> list[Alert]:
        """The alerts whose name has not been logged."""
        return [alert for alert in self.alerts if alert.key not in self.names]

    def nearest(self, alert: Alert) -> list[str]:
        """Names that have been logged and look like that of an alert."""
        return get_close_matches(alert.key, sorted(n for n in self.names if "emoreg/" in n), n=3)

    def _counted(self, step: int, logs: Mapping[str, Any]) -> list[tuple[Alert, _Count]]:
        """The alerts whose values a line holds, and how they stand after it."""
        self.names.update(logs)
        found = []
        for alert, count in zip(self.alerts, self._counts, strict=True):
            value = logs.get(alert.key)
            if not finite(value):
                continue
            if alert.beyond(float(value)):
                count.since = count.since if count.lines else step
                count.lines += 1
            else:
                count.lines = 0
            found.append((alert, count))
        return found


class AlertCallback(TrainerCallback):
    """Holds every log line against alerts, in every process alike.

    What goes off is in the journal and in a warning before anything is done about it. A function
    that raises ends training.

    Args:
        trainer: The trainer.
        alerts: Alerts, or what `emoreg.alerts.parse` makes them of.
        texts: Gives the completion that set an alert off, as a row of the journal's ``texts``, or
            None; called in every process, so it may gather.

    Raises:
        TrainerError: Not a trainer.
        ConfigError: Alerts that cannot be; the message lists everything that is wrong.
    """

    def __init__(
        self,
        trainer: Trainer,
        alerts: Sequence[Alert] | Mapping[str, Any] | str,
        texts: Callable[[Fired], Mapping[str, Any] | None] | None = None,
    ) -> None:
        self.trainer, self.texts = check_trainer(trainer), texts
        boards.expect(trainer, self)
        self.alerts = Alerts(parse(alerts))
        self._state: TrainerState | None = None  # of the run under way; each has its own
        self._journal: Journal | None = None
        self._checked: set[str] = set()  # the kinds of log lines that there have been

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Begin to count, or go on where the checkpoint stopped."""
        self._begin(self.trainer.state, self.trainer.state.log_history)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_kwargs: Any,
    ) -> None:
        """Hold one line against the alerts."""
        # Another callback may measure and log before this one is told that training begins, or
        # after it is told that training ends.
        if self.trainer.is_in_train:
            self._begin(state, state.log_history[:-1])
        if self._journal is None or self._journal.run.end or logs is None:
            return
        boards.logged(self.trainer, self, logs)
        watched = {alert.key for alert in self.alerts.alerts}
        # Drift is measured, and time taken, by every process for itself: one must decide for all.
        values = shared({key: value for key, value in logs.items() if key in watched})
        logs = {**dict.fromkeys(logs), **values}
        fired = [self._told(found) for found in self.alerts.see(state.global_step, logs)]
        self._check_names(state.global_step, log_kind(logs)[0])
        for found in fired:
            if found.alert.action == "stop":
                control.should_training_stop = True
                control.should_save |= args.save_strategy != "no"
        for found in fired:
            if found.alert.call is not None:
                found.alert.call(found)

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Leave the journal; what is logged until it closes is still looked at."""
        boards.leave(self.trainer, self)

    def _begin(self, state: TrainerState, history: Sequence[Mapping[str, Any]]) -> None:
        if self._state is state:
            return
        self._state, self._checked = state, set()
        self.alerts = Alerts(self.alerts.alerts)
        self._journal = boards.join(self.trainer, self)
        self._journal.listeners.append(self._closing)
        if state.global_step > 0:
            # Every process has the trainer's history; only one has read the journal.
            told = [self._journal.run.alerts]
            if self.trainer.accelerator.num_processes > 1:
                broadcast_object_list(told)
            self.alerts.replay([(int(line["step"]), line) for line in history], told[0])
            kinds = {log_kind(dict(line))[0] for line in history}
            self._checked = {kind for kind in kinds if kind is not None}

    def _told(self, fired: Fired) -> Fired:
        """The same with its text, once it is written down and said."""
        assert self._journal is not None
        fired = replace(fired, text=self.texts(fired) if self.texts else None)
        self._journal.add("alert", fired.step, **fired.event())
        if self._journal.writes:
            log.warning("%s%s", fired.message, quoted(fired.text))
        return fired

    def _check_names(self, step: int, kind: str | None) -> None:
        """Warn, at the first line of a kind, of alerts that watch nothing so far."""
        if kind is None or kind in self._checked:
            return
        self._checked.add(kind)
        for alert in self.alerts.unseen():
            if alert.key.startswith("eval_") == (kind == "eval"):
                near = ", ".join(self.alerts.nearest(alert)) or "nothing of emoreg's"
                self._note(
                    step,
                    f"The alert on {alert.key} has had nothing to watch up to step {step}: that "
                    f"name was not logged. Nearest that was: {near}. Correct the name, unless it "
                    "is logged more rarely than other lines.",
                )

    def _note(self, step: int, text: str) -> None:
        assert self._journal is not None
        self._journal.add("note", step, text=text)
        if self._journal.writes:
            log.warning(text)

    def _closing(self, event: Event) -> None:
        """Say at the very end which alerts were none; of the process that writes."""
        if event["event"] == "end":
            for alert in self.alerts.unseen():
                log.warning(
                    "%s was never logged in this run, so the alert on it watched nothing.",
                    alert.key,
                )
