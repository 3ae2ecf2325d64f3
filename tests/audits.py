"""Audits of each verdict, written to a journal as the callback writes them, and their report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from html_page import Page

import runs
from emoreg import reporting
from emoreg.audit_values import Value
from emoreg.journal import Journal, Run
from emoreg.reporting import write_runs
from emoreg.run_view import View
from emoreg.sentences import verdict
from emoreg.verdict import judge

SAME = {  # measurements of a model that is its base
    **{"own_colon": 0.0, "lean": 0.0, "refit": 0.0, "held_out": 0.0, "text": 0.0},
    **{"concealed": 0.0, "own_auroc_base": 0.95, "own_auroc_now": 0.95},
    **{"refit_auroc_base": 0.95, "refit_auroc_now": 0.95, "own_kept": 1.0, "refit_kept": 1.0},
    **{"cosine": 0.98, "frame": 0.99, "urgency": 1.0, "urgency_auroc": 0.9, "perplexity": 1.01},
}
CHANGES: dict[str, dict[str, float]] = {  # what makes each verdict of them
    "held": {},
    "risen": {"lean": 0.5, "own_colon": 1.0},
    "evaded": {"lean": 0.5},
    "stale": {"cosine": 0.2, "frame": 0.3},
    "blunted": {"urgency": 0.1},
    "inconclusive": {"own_auroc_base": 0.6},
}


def values(word: str) -> dict[str, Value]:
    """Measurements that make a verdict."""
    found = SAME | CHANGES[word]
    return {name: Value(mean, mean - 0.02, mean + 0.02) for name, mean in found.items()}


def audit(journal: Journal, step: int, word: str = "held", **fields: Any) -> None:
    """One audit; `fields` stand in the place of what the callback would write."""
    found = judge(values(word))
    row = {
        "seconds": 12.5, "final": True, "verdict": found.word, "reasons": list(found.reasons),
        "tokens": 33_000, "facts": {name: asdict(value) for name, value in values(word).items()},
        "about": {"emotion": "desperate", "blocks": [2, 3, 4], "bank": "5f2c", "prompts": "d00d",
                  "vectors": runs.vectors()},
    }  # fmt: skip
    journal.add("audit", step, **(row | fields))


def journal_of(folder: Path, weight: float = 1.0, name: str = "mine") -> Journal:
    """A run of 60 steps that has just begun."""
    journal = Journal(folder)
    runs.begin(journal, name, 60)
    runs.control(journal, ["desperate", "calm"], weight)
    return journal


def ended(journal: Journal) -> Run:
    journal.add("end", 60, seconds=1.0, loss=None)
    return journal.run


def audited(folder: Path, word: str, weight: float = 1.0, name: str = "mine", **fields: Any) -> Run:
    """A run with one audit at its end."""
    journal = journal_of(folder, weight, name)
    audit(journal, 60, word, **fields)
    return ended(journal)


def page(found: list[Run], folder: Path) -> Page:
    with patch.object(reporting, "_figures", return_value={}):  # charts take most of the time
        return Page(write_runs(found, folder / "r.html").read_text("utf-8"))


def said(run: Run) -> str:
    """The fact of the first section."""
    return dict(verdict(View.of(run)).facts).get("Audit", "")
