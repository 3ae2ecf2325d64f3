"""Media for wandb where something is missing, or there is too much; names and summaries."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_files import board_of, measure, opened

import runs
from emoreg import wandb_media
from emoreg.journal import Journal
from emoreg.run_view import View
from emoreg.wandb_metrics import summary

pytest.importorskip("wandb")

CHARTS = ("emoreg/emotion_steps", "emoreg/block_steps", "emoreg/wheel")


def test_without_plotly_charts_are_still_pictures_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with opened(tmp_path) as (run, stored):
        journal, _ = board_of(run, tmp_path)
        journal.begin(0)
        runs.baseline(journal, list(runs.TWELVE))
        measure(journal, runs.TWELVE, (0, 60))
    for key in CHARTS:
        for row in stored.rows(key):
            assert stored.file(row, key).startswith(b"\x89PNG")
        assert len(stored.rows(key)) == 2
    (record,) = [r for r in caplog.records if r.name == "emoreg.wandb_board"]
    assert record.levelno == logging.WARNING
    assert "emoreg[wandb]" in record.getMessage()


def test_a_measurement_without_numbers_is_a_table_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as (run, stored):
        journal, _ = board_of(run, tmp_path)
        journal.begin(0)
        measure(journal, {"calm": math.nan}, (0,))
    (row,) = stored.history
    assert {k.removesuffix("/path") for k in row if k.endswith("/path")} == {"emoreg/drift_table"}
    assert journal.run.notes == []


@pytest.mark.parametrize(("limit", "steps"), [(10**6, 40), (24 * 4, 4), (1, 2)])
def test_of_very_many_measurements_the_older_are_thinned_out(
    limit: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    runs.begin(journal, "mine", 60)
    measure(journal, runs.TWELVE, tuple(range(40)))
    monkeypatch.setattr(wandb_media, "ROWS", limit)
    table = wandb_media.drift_table(View.of(journal.run))
    found = sorted({row[0] for row in table.data})
    assert (len(found), found[0], found[-1]) == (steps, 0, 39)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("train/emoreg/reading/desperate", "min,max,last"),
        ("train/emoreg/reading_block_3/calm", "min,max,last"),
        ("train/emoreg/top/desperate", "max,last"),
        ("train/emoreg/drift_mean_abs", "max,last"),
        ("train/emoreg/drift_structure", "min,last"),
        ("train/emoreg/calmer/penalty/desperate", "max,last"),
        ("eval/emoreg/max/calm", "max,last"),
        ("eval/long_emoreg/excess/calm", "min,max,last"),
        ("train/emoreg/drift/calm", None),
        ("train/emoreg/drift_low/calm", None),
        ("train/loss", None),
        ("train/not_mine/reading/calm", None),
    ],
)
def test_a_summary_keeps_the_extremes_that_mean_something(name: str, kept: str | None) -> None:
    assert summary(name) == kept


@pytest.mark.parametrize("parts", [("a/b c", "ü"), ("x" * 500,), ("", None, "y")])
def test_an_artifact_has_a_name_that_wandb_takes(parts: tuple[Any, ...]) -> None:
    from wandb import Artifact

    name = wandb_media.artifact_name(*parts)
    assert Artifact(name, "report").name == name
    check: Callable[[str], Any] = lambda text: Artifact(text, "report")  # noqa: E731
    with pytest.raises(ValueError, match="Artifact name"):
        check("a/b c")  # control: wandb looks
