"""What a run of wandb is told of a run's journal beside the scalars, which the trainer logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.numpy import load_file, save
from transformers import Trainer

from emoreg import wandb_media as media
from emoreg import wandb_missing
from emoreg.journal import Event, Journal, Run
from emoreg.printable import shown
from emoreg.run_view import View
from emoreg.series import BASE
from emoreg.vectors import EmotionVectors
from emoreg.wandb_guard import Guard
from emoreg.wandb_metrics import STEP

TITLE, QUOTE = 63, 600  # most characters of an alert's title, and of a text in it

log = logging.getLogger(__name__)


def open_board(trainer: Trainer, journal: Journal) -> WandbBoard | None:
    """A board on the trainer's run of wandb, if it reports to one and this process writes."""
    if "wandb" not in (trainer.args.report_to or []) or not journal.writes:
        return None
    import wandb

    if wandb.run is None or wandb.run.disabled:
        return None
    state = trainer.state
    guard = Guard(wandb.run, journal, lambda: state.global_step)
    guard.protect(trainer)
    return WandbBoard(wandb.run, journal, guard)


class WandbBoard:
    """Listens to a journal.

    What cannot be sent is tried once more when the run ends.

    Args:
        run: The run of wandb.
        journal: What it listens to.
        guard: Keeps failures out of training.
    """

    def __init__(self, run: Any, journal: Journal, guard: Guard) -> None:
        self.run, self.journal, self.guard = run, journal, guard
        self._due: dict[str, Callable[[], object]] = {}
        self._vectors: set[str] = set()
        self._still = False  # whether it was said that charts are pictures

    def __call__(self, event: Event) -> None:
        """Take in an event; none ever fails."""
        kind = event["event"]
        if kind in ("control", "baseline"):
            self.guard.attempt(self._configure)
        if kind == "baseline" and (self.journal.path.parent / BASE).is_file():
            self._send("base", self._base_readings)
        elif kind == "log":
            self.guard.look()
        elif kind == "drift":
            self._send("drift", self._drift)
        elif kind == "audit":
            self.guard.attempt(self._verdict)
            self._send("audit", self._audit)
        elif kind == "texts":
            self._send("texts", self._texts)
        elif kind == "alert":
            self.guard.attempt(lambda: self._alert(event))
        elif kind == "end":
            for name, do in list(self._due.items()):
                self.guard.lost = False
                self._send(name, do)

    def go_on(self) -> None:
        """Send the lines before the checkpoint that wandb lost when the run was killed."""
        lines = self.journal.run.logs
        self.guard.attempt(lambda: wandb_missing.fill(self.run, lines, self.guard.defined))

    def use(self, vectors: EmotionVectors) -> None:
        """Name a vector set as what the run is made from."""
        key = str(vectors.card.get("sha256") or id(vectors))
        if key not in self._vectors:
            self._vectors.add(key)
            self._send(f"vectors {key}", lambda: self._use(vectors))

    def finish(self, report: Path | None) -> None:
        """Send the report, when all else is told."""
        self.guard.lost = False
        self._send("report", lambda: self._report(report))

    def _send(self, name: str, do: Callable[[], object]) -> None:
        """Send files, in the place of older ones of that name that could not be sent."""
        self._due[name] = do
        if self.guard.send(do):
            del self._due[name]

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # Without step=: the trainer's logs have moved wandb's own count already.
        self.run.log({**{f"emoreg/{name}": v for name, v in values.items()}, STEP: step})

    def _configure(self) -> None:
        """Every knob, and whose vectors; wandb replaces a key of the config as a whole."""
        run = self.journal.run
        controls = {name or "control": _bare(fields) for name, fields in run.controls.items()}
        drift = {k: v for k, v in _bare(run.baseline).items() if k != "emotions"}
        found = {**controls, **({"drift": drift} if drift else {})}
        versions = run.header.get("versions")
        self.run.config.update({"emoreg": {**found, "versions": versions}}, allow_val_change=True)

    def _drift(self) -> None:
        run = self.journal.run
        view = View.of(_only(run, drifts=run.drifts))
        values: dict[str, Any] = {"drift_table": media.drift_table(view)}
        if view.last is not None:
            values |= {"drift_plot": media.drift_picture(view), **self._charts(view)}
        self._log(int(run.drifts[-1]["step"]), values)

    def _charts(self, view: View) -> dict[str, Any]:
        try:
            return media.drift_charts(view)
        except ModuleNotFoundError:
            if not self._still:
                log.warning(
                    "plotly is not installed, so the charts of drift in wandb are still pictures: "
                    "pip install 'emoreg[wandb]'"
                )
            self._still = True
            return media.drift_pictures(view)

    def _verdict(self) -> None:
        """The verdict as a word: the scalar beside it is only its number."""
        run = self.journal.run
        last = View.of(_only(run, audits=run.audits[-1:])).audit
        assert last is not None
        found = {"audit": last.word, "audit_step": last.step, "audit_reasons": list(last.reasons)}
        self.run.summary.update({f"emoreg/{name}": value for name, value in found.items()})

    def _audit(self) -> None:
        run = self.journal.run
        view = View.of(_only(run, audits=run.audits))
        assert view.audit is not None
        self._log(view.audit.step, {"audit_table": media.audit_table(view)})

    def _texts(self) -> None:
        view = View.of(_only(self.journal.run, texts=self.journal.run.texts[-1:]))
        ((step, rows),) = [(int(e["step"]), e["rows"]) for e in view.run.texts]
        page, table = media.texts_page(view, step, rows), media.texts_table(step, rows)
        self._log(step, {"texts": page, "texts_table": table})

    def _alert(self, event: Event) -> None:
        side = "above" if event["above"] else "below"
        title = f"{event['name']} {side} {event['threshold']:g}"
        text, row = str(event["message"]), event.get("text")
        if row:
            said = f"{row.get('prompt') or ''} | {''.join(map(str, row.get('tokens') or ()))}"
            text += f"\n\nThe text that set it off: {shown(said)[:QUOTE]}"
        level = "ERROR" if event["action"] == "stop" else "WARN"
        self.run.alert(title[:TITLE], text, level)

    def _base_readings(self) -> None:
        from wandb import Artifact

        name = (self.journal.run.header.get("model") or {}).get("name")
        found = Artifact(media.artifact_name("base-readings", name), "base-readings")
        tensors = load_file(self.journal.path.parent / BASE)
        numbers = {k: v for k, v in tensors.items() if not k.endswith(("/texts", "/lengths"))}
        with found.new_file(BASE, mode="wb") as file:  # what the base answered stays here
            file.write(save(numbers))
        self.run.log_artifact(found)

    def _use(self, vectors: EmotionVectors) -> None:
        """Log the set as an input.

        `use_artifact` refuses offline, and online it waits for the upload; what it calls before it
        waits does neither.
        """
        from wandb import Artifact

        card = vectors.card
        name = media.artifact_name("emotion-vectors", (card.get("model") or {}).get("name"))
        known = {k: card.get(k) for k in ("bank", "source", "model", "suggested_blocks")}
        found = Artifact(name, "emotion-vectors", metadata=known)
        with TemporaryDirectory() as folder:
            for path in sorted(vectors.save(folder).iterdir()):
                found.add_file(str(path))
            self.run._log_artifact(found, is_user_created=True, use_after_commit=True)

    def _report(self, report: Path | None) -> None:
        from wandb import Artifact

        found = Artifact(media.artifact_name("emoreg-report", self.run.id), "emoreg-report")
        for path in (self.journal.path, report):
            if path is not None and path.is_file():
                found.add_file(str(path))
        self.run.log_artifact(found)


def _bare(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in ("step", "name")}


def _only(run: Run, **events: Any) -> Run:
    """The run without what a chart does not need; every log line would be cleaned for it."""
    kinds = ("logs", "drifts", "audits", "texts", "alerts")
    return replace(run, **{**{kind: [] for kind in kinds}, **events})
