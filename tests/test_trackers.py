"""What reaches TensorBoard and trackio, read back from their own files; and life when they fail."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tracker_files import READ, Found
from trainers import EVERYTHING, PROMPT_FILE, Do, make_trainer, make_vectors
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, rewrite_logs

import runs
from emoreg import boards
from emoreg.alerts import Alert, Fired
from emoreg.callbacks import DriftCallback
from emoreg.journal import Journal, Run
from emoreg.regularizer import EmotionRegularizer
from emoreg.trackers import PICTURES, Board, boards_of, drawn, escaped, table

pytest.importorskip("tensorboard")
pytest.importorskip("trackio")

HOSTILE = (
    "<script>alert(1)</script> | **loud** ![i](http://e.x/i.png) [l](javascript:x) &amp; `c` ~~s~~"
    " <img src=x onerror=y> \\| $x$\n\n# head\n| a |\n| --- |\n\x1b[31m"
)
PLAIN = " ".join(HOSTILE.replace("\x1b", "␛").split())
STEPS = 2


@pytest.fixture(autouse=True, scope="module")
def _trackio_in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """trackio asks where to keep its files once, when it is imported, maybe before this."""
    import trackio.sqlite_storage  # noqa: F401

    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "trackio":
                for constant, at in {"TRACKIO_DIR": folder, "MEDIA_DIR": folder / "media"}.items():
                    if constant in vars(module):
                        patch.setattr(module, constant, at)
        yield
        assert len(list(folder.glob("*.db"))) > 1


class Guest(TrainerCallback):
    """Tells the journal, and logs, what emoreg's callbacks would, some of it at the very end."""

    def __init__(self, trainer: Any, fail: bool = False) -> None:
        self.trainer, self.fail = trainer, fail
        trainer.add_callback(self)

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.journal = boards.join(self.trainer, self)
        if not any(isinstance(b, Board) for b in self.journal.listeners):
            self.journal.listeners += boards_of(self.trainer, self.journal)
        runs.baseline(self.journal, list(runs.TWELVE))
        self._measure()

    def on_step_end(self, _args: Any, state: Any, *_: Any, **_kwargs: Any) -> None:
        if self.fail:
            raise RuntimeError("out of luck")
        if state.global_step < STEPS:
            self._measure()

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._measure()
        row = runs.text_row("desperate", "highest", 1.0, ["I", " do ", HOSTILE])
        self.journal.add("texts", STEPS, rows=[row, {**row, "emotion": HOSTILE, "prompt": ""}])
        fired = Fired(Alert("reading/desperate", 2.0, action="stop"), STEPS, 2.5, STEPS, row)
        self.journal.add("alert", STEPS, **fired.event())
        boards.leave(self.trainer, self)

    def _measure(self) -> None:
        step = self.trainer.state.global_step
        means = {e: m * step for e, m in runs.TWELVE.items()}
        self.journal.add(
            "drift", step, seconds=0.1, final=step == STEPS, prompts=4, stats=runs.stats(means),
            places={"colon": runs.place(means, means if step else None, Random(step))},
        )  # fmt: skip
        self.trainer.log({"emoreg/drift/calm": means["calm"] + 0.25})


@dataclass
class Trained:
    """A run that reported to one back-end."""

    kind: str
    trainer: Any
    folder: Path
    found: Found


@pytest.fixture(scope="module", params=sorted(READ))
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    trainer = make_trainer(folder, max_steps=STEPS, report_to=[kind], project=f"of-{kind}")
    Guest(trainer)
    trainer.train()
    return Trained(kind, trainer, folder, READ[kind](folder, f"of-{kind}"))


def test_every_scalar_of_the_history_is_there_with_its_step(trained: Trained) -> None:
    wanted = defaultdict(list)
    for row in trained.trainer.state.log_history:
        for key, value in rewrite_logs({k: v for k, v in row.items() if k != "step"}).items():
            wanted[key].append((row["step"], value))
    assert [step for step, _ in wanted["train/emoreg/drift/calm"]] == [0, 1, 2]  # control
    summary = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss",
               "total_flos"}  # fmt: skip
    for key in sorted(set(wanted) - {f"train/{name}" for name in summary}):
        found = trained.found.scalars[key]
        assert [step for step, _ in found] == [step for step, _ in wanted[key]]
        assert [v for _, v in found] == pytest.approx([v for _, v in wanted[key]], rel=1e-6)


def test_it_is_all_in_one_run_although_drift_is_measured_after_training_ended(
    trained: Trained,
) -> None:
    assert trained.found.runs == 1


def test_every_picture_is_there_for_every_measurement(trained: Trained) -> None:
    assert set(trained.found.images) == set(PICTURES)
    for key, images in trained.found.images.items():
        assert [step for step, _ in images] == [0, 1, 2]
        pictures = [Image.open(io.BytesIO(data), formats=["PNG"]) for _, data in images]
        for picture in pictures:
            assert 300 < picture.width < 4000
            assert 150 < picture.height < 4000
            assert np.asarray(picture.convert("L")).std() > 5  # control: it is not blank
        assert len({np.asarray(p).tobytes() for p in pictures[::2]}) == 2, key


def test_texts_are_there_and_nothing_in_them_means_anything(trained: Trained) -> None:
    ((step, text),) = trained.found.texts["emoreg/texts"]
    assert step == STEPS
    head, _, *rows = text.splitlines()
    assert "reading, σ" in head
    assert len(rows) == 2
    cells = [[unescape(cell) for cell in row.strip("| ").split(" | ")] for row in rows]
    assert cells[0][0] == "desperate"
    assert cells[0][-2] == f"I do {PLAIN}"
    assert re.fullmatch(r".* \([+-]\d\.\d\)", cells[0][-1])
    assert not re.search(r"[<>\[\]!`*$~\\]", "".join(rows))


def test_an_alert_is_there_with_its_text(trained: Trained) -> None:
    ((step, text),) = trained.found.texts["emoreg/alerts"]
    if trained.kind == "tensorboard":
        assert step == STEPS
    else:
        assert text.startswith("error: ")  # since training stops
    said = unescape(text)
    assert "emoreg/reading/desperate is 2.5 σ at step 2" in said
    assert "I do <script>" in said


def test_the_host_closes_its_run_at_the_very_end_and_has_its_method_back(trained: Trained) -> None:
    callbacks = trained.trainer.callback_handler.callbacks
    (host,) = [c for c in callbacks if trained.kind in type(c).__name__.lower()]
    assert "on_train_end" not in vars(host)
    if trained.kind == "tensorboard":
        assert host.tb_writer is None
    else:
        assert host._trackio.context_vars.current_run.get() is None
        assert host._initialized is False
    assert Run.load(trained.folder).notes == []


@pytest.mark.filterwarnings("ignore:html5lib")  # in a copy of bleach that TensorBoard brings
def test_tensorboard_shows_hostile_texts_as_they_are() -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    row = {**runs.text_row("calm", "lowest", 1.0, [HOSTILE]), "prompt": HOSTILE, "side": HOSTILE}
    html = markdown_to_safe_html(table([row]))
    assert set(re.findall(r"<(\w+)", html)) == {"table", "thead", "tbody", "tr", "th", "td"}
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", html, re.S)]
    assert cells[3:6] == [PLAIN] * 3
    assert "<img" in markdown_to_safe_html(PLAIN)  # control: unescaped it is not shown as it is
    assert escaped("plain words, 3 σ") == "plain words&#44; 3 σ"
    assert table([]) == ""


def test_a_row_without_tokens_or_readings_is_shown_too() -> None:
    row = {**runs.text_row("calm", "lowest", 1.0, []), "reading": None, "readings": []}
    assert table([row]).splitlines()[-1].count("|") == 8
    row = {**row, "tokens": ["a", "b", "c"], "readings": [None, 2.0, -1.0]}
    assert unescape(table([row])).rstrip().endswith("| c (-1.0) |")
    assert unescape(table([{**row, "end": "highest"}])).rstrip().endswith("| b (+2.0) |")


@pytest.mark.parametrize("kind", sorted(READ))
def test_a_board_that_fails_is_let_go_of_and_training_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def full(*_args: Any, **_kwargs: Any) -> None:
        tried.append(kind)
        raise OSError(28, "No space left on device")

    if kind == "tensorboard":
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_image", full)
    else:
        monkeypatch.setattr("trackio.Image", full)
    trainer = make_trainer(tmp_path, max_steps=STEPS, report_to=[kind], project=f"full-{kind}")
    Guest(trainer)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert len(tried) == 1
    run, found = Run.load(tmp_path), READ[kind](tmp_path, f"full-{kind}")
    (note,) = run.notes
    assert note["step"] == 0
    assert "No space left on device" in note["text"]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [note["text"]]
    assert len(run.drifts) == 3
    assert [s for s, _ in found.scalars["train/emoreg/drift/calm"]] == [0, 1, 2]
    assert (found.runs, dict(found.images)) == (1, {})


def test_a_run_that_crashed_leaves_the_next_one_whole(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=STEPS, report_to=["trackio"], project="crashed")
    guest = Guest(trainer, fail=True)
    kept = []  # somebody holds on to the run that failed
    trainer.add_callback(Do("on_train_begin", lambda **_: kept.append(guest.journal)))
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    guest.fail = False
    trainer.train()
    (host,) = [c for c in trainer.callback_handler.callbacks if "Trackio" in type(c).__name__]
    assert len(kept) == 2
    assert host._trackio.context_vars.current_run.get() is None
    assert len(Run.load(tmp_path).drifts) == 3


def test_only_a_host_that_is_there_has_a_board_and_only_where_the_journal_is_written(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    assert boards_of(trainer, Journal(tmp_path)) == []
    trainer.add_callback(TensorBoardCallback())  # by hand, without report_to
    (board,) = boards_of(trainer, Journal(tmp_path))
    assert isinstance(board, Board)
    assert board.name == "TensorBoard"
    assert boards_of(trainer, Journal(tmp_path, writes=False)) == []


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert drawn(Run(tmp_path)) == {}
    run = runs.write_run(tmp_path)
    assert set(drawn(run)) == set(PICTURES)  # control
    for event in run.drifts:
        for place in event["places"].values():
            place["blocks"] = {}
    assert set(drawn(run)) == {"emoreg/drift_plot", "emoreg/emotion_steps", "emoreg/wheel"}
    for event in run.drifts:
        event["places"] = {}
    assert drawn(run) == {}


@pytest.mark.parametrize("kind", sorted(READ))
def test_emoregs_own_callbacks_reach_it(kind: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=STEPS, learning_rate=0.1, report_to=[kind], project=f"own-{kind}"
    )
    knobs = {**EVERYTHING, "alerts": {"reading/happy": {"above": -100.0}}}
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **knobs))
    trainer.add_callback(DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=0))
    trainer.train()
    run, found = Run.load(tmp_path), READ[kind](tmp_path, f"own-{kind}")
    assert found.runs == 1
    assert run.notes == []
    for row in trainer.state.log_history:
        for key, value in row.items():
            if "emoreg/" in key:
                near = [v for s, v in found.scalars[f"train/{key}"] if s == row["step"]]
                assert any(v == pytest.approx(value, rel=1e-6, abs=1e-9) for v in near), key
    drifts = [event["step"] for event in run.drifts]
    assert drifts == [0, STEPS]
    assert {k: [s for s, _ in v] for k, v in found.images.items()} == dict.fromkeys(
        PICTURES, drifts
    )
    assert found.texts["emoreg/texts"]
    assert found.texts["emoreg/alerts"]
