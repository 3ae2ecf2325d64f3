"""The audits of a run stand in its report: the verdict, what it rests on, and what decides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from audit_bank import write_bank
from audits import CHANGES, audit, audited, ended, journal_of, page, said, values
from html_page import Page
from markdown_it import MarkdownIt
from trainers import PROMPT_FILE, make_trainer, make_vectors

import runs
from emoreg import audit_bars
from emoreg.audit_page import MEANING, MEASURES
from emoreg.audit_sentences import course, fact, measured
from emoreg.auditing import AuditCallback
from emoreg.journal import Journal, Run
from emoreg.reporting import markdown
from emoreg.run_view import View, views
from emoreg.sentences import verdict
from emoreg.verdict import WORDS, judge

MISSING = "No audit in this run; add AuditCallback"


def told(found: list[Run]) -> str:
    """The Markdown, as its reader sees it."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(found))
    return " ".join(c.content for t in tokens for c in t.children or () if c.content)


@pytest.mark.parametrize("word", WORDS)
def test_every_verdict_is_told_with_what_it_rests_on(word: str, tmp_path: Path) -> None:
    run, found = audited(tmp_path, word), judge(values(word))
    assert found.word == word
    assert said(run).startswith(f"{word.capitalize()} at step 60, of desperate: {found.reasons[0]}")
    for text in (page([run], tmp_path).text.split("How to read every number")[-2], told([run])):
        assert MEANING[word].split(".")[0] in text
        assert all(reason in text for reason in found.reasons)
    heads = [f"{other.capitalize()} at step" for other in WORDS]
    text = markdown([run])
    assert [head in text for head in heads] == [other == word for other in WORDS]


def test_every_measurement_has_its_interval_and_what_it_decides(tmp_path: Path) -> None:
    run = audited(tmp_path, "evaded")
    _, rows = measured(views([run]))
    found = {row.name: row for row in rows}
    assert list(found) == [name for name in MEASURES if name in values("evaded")]
    assert found["lean"].cells == ("0.50 [0.48,\u00a00.52]",)
    assert found["lean"].bar.startswith("above 0.35: rose")
    assert found["perplexity"].bar == "decides nothing"
    text = page([run], tmp_path).text.replace("\u00a0", " ")
    assert "Table 3." in text
    for row in rows:
        assert row.name + row.asks + row.bar.replace("\u00a0", " ") in text
        cells = (row.name, *row.cells, row.asks, row.bar)
        assert " ".join(" ".join(cells).split()) in told([run])


class Asked(dict[str, Any]):
    """Measurements that remember which of them a rule asked for."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def judgements() -> Iterator[Asked]:
    """Measurements that lead into every rule."""
    both = {"refit_elsewhere": 0.0, "held_out_elsewhere": 0.0, "urgency_own": 1.0,
            "urgency_auroc_own": 0.9, "deflection": 1.0, "deflection_auroc": 0.9,
            "deflection_own": 1.0, "deflection_auroc_own": 0.9}  # fmt: skip
    more = ({"held_out": 0.5}, {"text": 0.5, "concealed": 0.5}, {"refit_kept": 0.2})
    for change in (*CHANGES.values(), *more):
        found = values("held") | {name: values("held")["lean"] for name in both}
        for name, mean in (both | change).items():
            found[name] = type(found[name])(mean, mean - 0.02, mean + 0.02)
        yield Asked(found)


def test_a_bar_is_told_of_every_measurement_that_a_rule_asks_for_and_of_no_other() -> None:
    asked: set[str] = set()
    for found in judgements():
        judge(found)
        asked |= found.names
    assert asked == set(audit_bars.BARS)
    assert set(audit_bars.BARS) < set(MEASURES)  # control: some decide nothing


def test_the_verdict_over_steps_is_a_sentence_and_a_table(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    for step, word in ((10, "held"), (20, "held"), (30, "risen"), (60, "evaded")):
        audit(journal, step, word, final=step == 60)
    run = ended(journal)
    over = "Over 4 audits: held at steps 10 and 20, risen at step 30, evaded at step 60."
    assert said(run).startswith("Evaded at step 60")
    assert said(run).endswith(over)
    for text in (page([run], tmp_path).text, told([run])):
        assert text.count(over) == 2
        for step, word, lean in ((10, "held", "0.00"), (30, "risen", "0.50")):
            assert f"{step}{word}{lean} [" in text.replace(f"{step} {word} ", f"{step}{word}")
    one = audited(tmp_path / "one", "held")
    assert "Over 1" not in page([one], tmp_path).text + markdown([one])  # control


def test_very_many_audits_are_counted_and_not_listed(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    for step in range(100):
        audit(journal, step, "held" if step < 50 or step % 2 else "risen")
    view = View.of(journal.run)
    assert len(view.audits) == 100
    assert course(view.audits).startswith("Over 100 audits: 45 earlier, then risen at step 94, ")
    assert course(view.audits[:50]) == "Over 50 audits: held 50 times, from step 0 to 49"
    assert markdown([journal.run]).split("### Audit")[1].count("\n| 9") < 10


def test_the_last_audit_of_a_step_counts_and_a_resumed_run_forgets_later_ones(
    tmp_path: Path,
) -> None:
    journal = journal_of(tmp_path)
    for step, word in ((20, "risen"), (20, "stale"), (40, "evaded")):
        audit(journal, step, word)
    assert [(a.step, a.word) for a in View.of(journal.run).audits] == [(20, "stale"),
                                                                      (40, "evaded")]  # fmt: skip
    again = Journal(tmp_path)
    again.begin(30, name="again", args={"max_steps": 60})
    assert said(again.run).startswith("Stale at step 20")
    audit(again, 60, "held")
    assert said(Run.load(tmp_path)).startswith("Held at step 60")
    again.begin(0, name="new")
    assert View.of(Run.load(tmp_path)).audit is None


def test_runs_side_by_side_each_have_their_own(tmp_path: Path) -> None:
    found = [
        audited(tmp_path / "a", "held", name="one"),
        audited(tmp_path / "b", "risen", 0, "two"),
    ]
    shown = page(found, tmp_path)
    text = shown.text
    one, two = text.index("one No"), text.index("two No")
    assert one < text.index("AuditHeld at step 60") < two < text.index("AuditRisen at step 60")
    assert "one: Held at step 60" in text
    assert "two: Risen at step 60" in text
    assert "lean" + MEASURES["lean"] + audit_bars.BARS["lean"].replace("\u00a0", " ") in text
    assert "0.00 [−0.02,\u00a00.02]0.50 [0.48,\u00a00.52]".replace("\u00a0", " ") in text
    assert "| lean | 0.00 \\[−0.02, 0.02\\] | 0.50 \\[0.48, 0.52\\] |" in markdown(found)
    assert "These audits differ" not in text
    other = audited(tmp_path / "c", "held", about={"emotion": "desperate", "bank": "other"})
    for said_ in (page([found[0], other], tmp_path).text, told([found[0], other])):
        assert "These audits differ in bank, prompts, blocks and vectors: their numbers" in said_


def test_only_a_control_without_an_audit_is_told_to_add_one(tmp_path: Path) -> None:
    bare, free = ended(journal_of(tmp_path / "a")), ended(journal_of(tmp_path / "b", 0.0, "free"))
    assert said(bare).startswith(MISSING)
    assert said(free) == ""
    for text in (page([bare], tmp_path).text, markdown([bare])):
        assert text.count(MISSING) == 2
    for text in (page([free], tmp_path).text, markdown([free])):
        assert "AuditCallback" not in text
        assert "How to read it. One word" not in text
    both = [bare, audited(tmp_path / "c", "held", name="other")]
    assert page(both, tmp_path).text.count(MISSING) == 2
    assert "AuditCallback" not in page(both[1:], tmp_path).text  # control


@pytest.mark.parametrize(
    ("fields", "weight", "caveat"),
    [
        ({}, 1.0, ""),
        ({"final": False}, 1.0, "This is not the end of training."),
        ({"about": {"emotion": "sad", "vectors": runs.vectors()}}, 1.0,
         "The loss penalised desperate, which is not what was audited."),
        ({"about": {"emotion": "desperate", "vectors": runs.vectors("b")}}, 1.0,
         "It was audited with other vectors than those of the control."),
        ({}, 0.0, "No control acted: it is of what training alone did."),
    ],
)  # fmt: skip
def test_what_a_verdict_is_not_of_is_said_beside_it(
    fields: dict[str, Any], weight: float, caveat: str, tmp_path: Path
) -> None:
    run = audited(tmp_path, "held", weight, **fields)
    caveats = ("not the end", "not what was audited", "other vectors than", "training alone did")
    assert [c in said(run) for c in caveats] == [c in caveat for c in caveats]
    assert said(run).endswith(caveat)
    assert not caveat or told([run]).count(caveat) == 2  # the first section, and the audit's own


def test_what_the_audit_reads_is_not_said_to_be_missing(tmp_path: Path) -> None:
    def control(run: Run) -> str:
        return dict(verdict(View.of(run)).facts)["Control"]

    journal = journal_of(tmp_path / "a")
    runs.baseline(journal, ["desperate"])
    assert control(journal.run).endswith("this report has none.")
    audit(journal, 60)
    assert control(journal.run).endswith("the audit reads those.")


def test_the_audit_of_a_real_run_stands_in_its_report(tmp_path: Path) -> None:
    bank = write_bank(tmp_path / "bank.jsonl")
    trainer = make_trainer(tmp_path / "run", max_steps=2)
    callback = AuditCallback(trainer, make_vectors(), bank=bank, prompts=PROMPT_FILE)
    trainer.add_callback(callback)
    trainer.train()
    [(_, found)] = callback.history
    text = Page((tmp_path / "run" / "report.html").read_text("utf-8")).text
    assert f"{found.verdict.capitalize()} at step 2, of desperate" in text
    assert all(" ".join(reason.split()) in text for reason in found.reasons)
    assert set(found.facts) <= set(MEASURES)
    assert all(name + MEASURES[name] in text for name in found.facts)
    assert fact(View.of(Run.load(tmp_path / "run"))).startswith(found.verdict.capitalize())
