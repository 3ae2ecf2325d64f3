"""Pictures and texts for a trainer's own TensorBoard and trackio, beside the scalars it sends."""

from __future__ import annotations

import io
import logging
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback

from emoreg import run_charts
from emoreg.alerts import quoted
from emoreg.errors import ReportError
from emoreg.host import Loan, leave
from emoreg.journal import Event, Journal, Run
from emoreg.printable import shown
from emoreg.run_view import View

DOTS = 120  # per inch of a picture
MOST = 24  # emotions in a picture, those that moved most; the report has all
PICTURES: dict[str, Callable[[View], Figure]] = {  # by the key that wandb has for the same
    "emoreg/drift_plot": partial(run_charts.drift_forest, most=MOST),
    "emoreg/emotion_steps": partial(run_charts.emotion_steps, most=MOST),
    "emoreg/block_steps": run_charts.block_steps,
    "emoreg/block_emotions": partial(run_charts.block_emotions, most=MOST),
    "emoreg/wheel": run_charts.wheel,
}
COLUMNS = ("emotion", "end", "reading, σ", "side", "prompt", "completion", "strongest token")

log = logging.getLogger(__name__)


def boards_of(trainer: Trainer, journal: Journal) -> list[Callable[[Event], None]]:
    """Listeners for the TensorBoard and trackio that a trainer reports to.

    A board that fails is let go of with a warning and a note in the journal; training goes on.

    Args:
        trainer: The trainer, whose own callbacks have begun.
        journal: Of its run; in a process that does not write there are no boards.
    """
    if not journal.writes:
        return []
    return [
        board(host, journal, trainer.state)
        for host in trainer.callback_handler.callbacks
        for board in (TensorBoard, Trackio)
        if isinstance(host, board.of)
    ]


class Board(ABC):
    """What one back-end of the trainer is sent when a journal is told something.

    Args:
        host: The callback that keeps the back-end.
        journal: What it listens to, until that ends.
        state: Of the run, whose end closes the back-end.
    """

    of: type[TrainerCallback]
    name: str

    def __init__(self, host: Any, journal: Journal, state: TrainerState) -> None:
        self.host, self.journal, self.state = host, journal, state
        self._lost = False
        self.closing: Callable[[], Any] | None = None
        self._loan = Loan()
        later = _later(weakref.ref(self))
        self._loan.go_around(host, "on_train_end", later)
        weakref.finalize(self, leave, weakref.ref(host), "on_train_end", later)

    def __call__(self, event: Event) -> None:
        """Send what an event calls for."""
        if not self._lost:
            self._try(partial(self._send, event), int(event["step"]))
        if event["event"] == "end":
            self.close()

    def close(self) -> None:
        """Give the back-end back, closed if its host has tried to."""
        self._loan.give_back()
        closing, self.closing = self.closing, None
        if closing is not None:
            self._try(closing, self.state.global_step)

    @abstractmethod
    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Send pictures by key."""

    @abstractmethod
    def text(self, step: int, key: str, markdown: str) -> None:
        """Send a text."""

    @abstractmethod
    def alert(self, step: int, event: Event) -> None:
        """Send an alert."""

    def _send(self, event: Event) -> None:
        kind, step = event["event"], int(event["step"])
        if kind == "drift":
            self.images(step, drawn(self.journal.run))
        elif kind == "texts":
            self.text(step, "emoreg/texts", table(event["rows"]))
        elif kind == "alert":
            self.alert(step, event)

    def _try(self, send: Callable[[], Any], step: int) -> None:
        try:
            send()
        except Exception as e:  # back-ends raise what they like, and no picture is worth a run
            self._lost = True
            text = (
                f"{self.name} gets no more pictures and texts of emoreg ({type(e).__name__}: {e}). "
                "Training goes on; the journal and the report have everything."
            )
            log.warning(text)
            self.journal.add("note", step, text=text)


class TensorBoard(Board):
    """The trainer's event files."""

    of, name = TensorBoardCallback, "TensorBoard"

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Send pictures by key."""
        for key, image in images.items():
            self._writer.add_image(key, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def text(self, step: int, key: str, markdown: str) -> None:
        """Send a text."""
        self._writer.add_text(key, markdown, step)
        self._writer.flush()

    def alert(self, step: int, event: Event) -> None:
        """Send an alert, which is a text here."""
        rows = [event["text"]] if event["text"] else []
        self.text(step, "emoreg/alerts", f"{escaped(event['message'])}\n\n{table(rows)}")

    @property
    def _writer(self) -> Any:
        if self.host.tb_writer is None:
            raise ReportError("its writer is closed")
        return self.host.tb_writer


class Trackio(Board):
    """The trainer's trackio run."""

    of, name = TrackioCallback, "trackio"

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Send pictures by key."""
        import trackio

        self._log(step, {key: trackio.Image(image) for key, image in images.items()})

    def text(self, step: int, key: str, markdown: str) -> None:
        """Send a text."""
        import trackio

        self._log(step, {key: trackio.Markdown(markdown)})

    def alert(self, step: int, event: Event) -> None:
        """Send an alert."""
        import trackio

        level = trackio.AlertLevel.ERROR if event["action"] == "stop" else trackio.AlertLevel.WARN
        text = f"{event['message']}{quoted(event['text'])}"
        trackio.alert(f"{event['name']} at step {step}", text, level)

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log as the host does: the trainer's step is a value, beside a count of trackio's own."""
        import trackio

        trackio.log({**values, "train/global_step": step})


def _later(own: weakref.ref[Board]) -> Callable[..., Any]:
    """Goes around a host's `on_train_end`, which closes its back-end, until the journal has ended.

    Drift is measured for the last time after it, when trackio would begin another run.
    """

    def on_train_end(
        close: Callable[..., Any], args: Any, state: TrainerState, *more: Any, **kwargs: Any
    ) -> Any:
        board = own()
        if board is None or board.state is not state or board.journal.run.end:
            return close(args, state, *more, **kwargs)
        board.closing = partial(close, args, state, *more, **kwargs)
        return None

    return on_train_end


def drawn(run: Run) -> dict[str, Image.Image]:
    """The pictures of a run's drift, by key; none before anything was measured."""
    view = View.of(replace(run, logs=[], audits=[], texts=[], alerts=[]))  # what no picture needs
    if view.last is None:
        return {}
    found = {}
    for key, draw in PICTURES.items():
        if "block" not in key or view.last.blocks:
            png = io.BytesIO()
            draw(view).savefig(png, format="png", dpi=DOTS)
            found[key] = Image.open(png).convert("RGB")
    return found


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of the journal's ``texts`` as a Markdown table; nothing if there are none."""
    found = [_cells(row) for row in rows]
    if not found:
        return ""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(map(escaped, cells) for cells in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    pick = max if row["end"] == "highest" else min
    known = [(r, t) for r, t in zip(row["readings"], row["tokens"], strict=True) if r is not None]
    at = "" if not known else "{1} ({0:+.1f})".format(*pick(known, key=lambda each: each[0]))
    reading = "" if row["reading"] is None else f"{row['reading']:+.2f}"
    return [
        str(row["emotion"]), str(row["end"]), reading, str(row["side"] or ""),
        str(row["prompt"]), "".join(map(str, row["tokens"])), at,
    ]  # fmt: skip


def escaped(text: str) -> str:
    """A text in one line of Markdown, in every dialect, with nothing that means anything there."""
    line = " ".join(shown(text).split())
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"&#{ord(found[0])};", line)
