"""What wandb is told of a run's audits: the verdict as a word, and a table that grows."""

from __future__ import annotations

import json

import pytest
from audits import audit, values
from test_report_page import HOSTILE
from wandb_files import Stored, board_of, opened

import runs
from emoreg.audit_bars import BARS
from emoreg.journal import Run
from emoreg.verdict import judge

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Stored]:
    """A run with two audits and what wandb has of it."""
    folder = tmp_path_factory.mktemp("board")
    with opened(folder) as (run, stored):
        journal, board = board_of(run, folder)
        runs.begin(journal, "mine", 60)
        audit(journal, 30, "held", final=False)
        audit(journal, 60, "evaded", facts={"lean": None, HOSTILE[5]: {"value": 0.5}})
        journal.add("end", 60, seconds=1.0, loss=0.5)
        board.finish(None)
    return journal.run, stored


def test_the_summary_has_the_last_verdict_in_words(told: tuple[Run, Stored]) -> None:
    reasons = list(judge(values("evaded")).reasons)
    found = {key: told[1].summary[f"emoreg/{key}"] for key in
             ("audit", "audit_step", "audit_reasons")}  # fmt: skip
    assert found == {"audit": "evaded", "audit_step": 60, "audit_reasons": reasons}


def test_the_table_has_every_measurement_of_every_audit(told: tuple[Run, Stored]) -> None:
    stored = told[1]
    rows = stored.rows("emoreg/audit_table")
    assert [row["train/global_step"] for row in rows] == [30, 60]
    first, last = (json.loads(stored.file(row, "emoreg/audit_table")) for row in rows)
    assert last["columns"] == [
        *("step", "verdict", "measurement", "value", "low", "high", "decides")
    ]
    assert len(first["data"]) == len(values("held"))
    assert len(last["data"]) == len(values("held")) + 2
    assert last["data"][0] == [60, "evaded", "lean", None, None, None, BARS["lean"]]
    step, _, name, value, *_ = last["data"][1]
    assert (step, value) == (60, 0.5)
    assert name.startswith("␛[31mred")
    assert last["data"][2:] == first["data"]
