"""Audits whose journal is damaged, of another version, or hostile still get a whole report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audits import audit, audited, ended, journal_of, page, said
from markdown_it import MarkdownIt
from test_report_page import HOSTILE

from emoreg.journal import Run
from emoreg.reporting import markdown

DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "verdict of a later version": lambda e: e.update(verdict="dormant"),
    "no verdict": lambda e: e.pop("verdict"),
    "a list for a verdict": lambda e: e.update(verdict=["held", None]),
    "no reasons": lambda e: e.pop("reasons"),
    "reasons that are no list": lambda e: e.update(reasons={"a": 1}),
    "reasons that are no texts": lambda e: e.update(reasons=[None, 3, {"a": []}]),
    "no facts": lambda e: e.pop("facts"),
    "facts that are no table": lambda e: e.update(facts=[1, 2]),
    "nulls": lambda e: e.update(facts=dict.fromkeys(e["facts"])),
    "half intervals": lambda e: [f.update(low=None) for f in e["facts"].values()],
    "texts for numbers": lambda e: [f.update(value="0.1", high=True) for f in e["facts"].values()],
    "a measurement of a later version": lambda e: e["facts"].update(mood={"value": 1.0}),
    "nothing about it": lambda e: e.update(about=None),
    "about is a text": lambda e: e.update(about="desperate"),
    "no vectors": lambda e: e["about"].update(vectors="a" * 64),
    "no cost": lambda e: e.update(tokens=None, seconds="long"),
    "step as a text": lambda e: e.update(step="60"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_audit_still_gets_a_whole_page(case: str, tmp_path: Path) -> None:
    run = audited(tmp_path / "run", "held")
    path = tmp_path / "run" / "emoreg.jsonl"
    events = list(map(json.loads, path.read_text("utf-8").splitlines()))
    DAMAGED[case](next(event for event in events if event["event"] == "audit"))
    path.write_text("\n".join(map(json.dumps, events)) + "\n", "utf-8")
    run = Run.load(path)
    section = page([run], tmp_path).text.split("Compared with what")[-1].split("Examples")[0]
    facts = said(run)
    assert " at step 60, of " in facts
    for text in (facts, section, markdown([run])):
        assert "at step 60" in text
        words = text.replace("None, 3", "").replace("'held', None", "").split()
        assert not {"nan", "None", "inf", "[nan,"} & set(words)
    known = "verdict" not in case
    assert facts.startswith("Held at step 60" if known else "Not a known verdict")


def test_hostile_audits_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    journal = journal_of(tmp_path / "run")
    vectors = {"name": HOSTILE[2], "sha256": HOSTILE[6]}
    about = {"emotion": HOSTILE[0], "bank": HOSTILE[1], "blocks": [HOSTILE[2]], "vectors": vectors}
    for step, word in ((30, HOSTILE[2]), (60, HOSTILE[0])):
        facts = {text: {"value": 1.0, "low": 0.5, "high": 2.0} for text in HOSTILE}
        audit(journal, step, verdict=word, reasons=list(HOSTILE), facts=facts, about=about)
    run = ended(journal)
    shown = page([run], tmp_path)
    plain = page([audited(tmp_path / "plain", "held")], tmp_path)
    assert set(shown.tags) <= set(plain.tags) | {"details", "summary"}
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    assert {str(value)[0] for value in shown.values("href")} == {"#"}
    assert not shown.values("src")
    section = shown.text.split("Compared with what")[-1]
    for text in (*HOSTILE[:5], "␛[31mred␛[0m ␀ ␇ ␡ ⟨U+0085⟩", "⟨U+202E⟩gnp.exe⟨U+2066⟩ שלום"):
        assert text in section
    assert "x" * 500 not in shown.text
    text = markdown([run])
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    kinds = {t.type for t in tokens} | {c.type for t in tokens for c in t.children or ()}
    assert not {"html_block", "html_inline", "link_open", "image", "code_inline"} & kinds
    assert "\u202e" not in text
