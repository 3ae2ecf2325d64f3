"""A terminal shows the main values of a line; every logger has all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from trainers import PROMPT_FILE, make_trainer, make_vectors

from emoreg.callbacks import DriftCallback
from emoreg.console import short
from emoreg.regularizer import EmotionRegularizer


def test_what_is_watched_and_what_is_not_ours_is_shown() -> None:
    values = {
        "loss": 1.0, "eval_loss": 2.0, "emoreg/loss": 0.1, "emoreg/reading/calm": 0.2,
        "emoreg/reading/sad": 0.3, "emoreg/reading_colon/calm": 0.4, "emoreg/drift/calm": 0.5,
        "emoreg/drift/sad": 0.6, "emoreg/drift_low/calm": 0.7, "emoreg/drift_rose": 3,
        "emoreg/late/reading/calm": 0.8, "eval_emoreg/reading/calm": 0.9, "emoreg/norm": 9.0,
        "emoreg/reading/calm/stories": 1.1,
    }  # fmt: skip
    hidden = {
        "emoreg/reading/sad", "emoreg/reading_colon/calm", "emoreg/drift/sad",
        "emoreg/drift_low/calm", "emoreg/norm", "emoreg/reading/calm/stories",
    }  # fmt: skip
    assert set(values) - set(short(values, {"calm"})) == hidden


def test_a_run_prints_less_than_it_logs_and_gives_the_printer_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors()))
    trainer.add_callback(DriftCallback(trainer, make_vectors(), PROMPT_FILE))
    before = [set(vars(callback)) for callback in trainer.callback_handler.callbacks]
    trainer.train()
    lines = [ast.literal_eval(row) for row in capsys.readouterr().out.splitlines() if "{" in row]
    names = {name for line in lines for name in line}
    logged = {name for row in trainer.state.log_history for name in row}
    assert {"loss", "emoreg/reading/calm", "emoreg/drift_rose"} <= names
    assert len({n for n in names if "emoreg" in n}) < 20 < len({n for n in logged if "emoreg" in n})
    printers = trainer.callback_handler.callbacks[: len(before)]
    assert [set(vars(p)) & {"on_log"} for p in printers] == [set()] * len(before)
