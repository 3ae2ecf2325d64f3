"""The audit callback: when it audits, what it logs, and how a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_bank import write_bank
from trainers import (
    PROMPT_FILE,
    assert_same,
    hooks,
    logged,
    make_base,
    make_trainer,
    make_vectors,
    weights,
)

from emoreg import audit_kept
from emoreg.auditing import AuditCallback, _kept
from emoreg.config import EmoRegConfig
from emoreg.errors import BankError, ConfigError, UnknownEmotionError
from emoreg.verdict import WORDS


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank") / "bank.jsonl")


def audited(trainer: Any, bank: Path, **settings: Any) -> AuditCallback:
    """An audit callback that is added to its trainer."""
    given = {"bank": bank, "prompts": PROMPT_FILE, **settings}
    found = AuditCallback(trainer, make_vectors(), **given)
    trainer.add_callback(found)
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "emoreg.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == "audit"]


def test_the_end_is_audited_and_logged_with_every_interval(bank: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    found = audited(trainer, bank)
    trainer.train()
    [(step, audit)] = found.history
    assert step == 2
    [event] = events(tmp_path)
    assert (event["step"], event["final"], event["verdict"]) == (2, True, audit.verdict)
    assert event["facts"].keys() == audit.facts.keys()
    assert logged(trainer, "emoreg/audit_verdict") == [WORDS.index(audit.verdict)]
    assert logged(trainer, "emoreg/audit_tokens") == [audit.tokens]
    assert {"refit", "lean", "own_colon", "text"} <= set(audit.facts)
    for name, fact in audit.facts.items():
        for end, value in (("", fact.value), ("_low", fact.low), ("_high", fact.high)):
            assert logged(trainer, f"emoreg/audit{end}/{name}") == pytest.approx([value])


@pytest.mark.parametrize(("steps", "wanted"), [(0, [4]), (2, [2, 4]), (None, [1, 2, 3, 4])])
def test_it_is_due_as_often_as_was_asked(
    bank: Path, tmp_path: Path, steps: int | None, wanted: list[int]
) -> None:
    trainer = make_trainer(tmp_path, max_steps=4)
    found = audited(trainer, bank, audit_steps=steps)
    trainer.train()
    assert [step for step, _ in found.history] == wanted
    trainer.train()  # another run of the same trainer
    assert [step for step, _ in found.history] == wanted


def test_training_is_the_same_with_and_without_audits(bank: Path, tmp_path: Path) -> None:
    plain, watched = (make_trainer(tmp_path / n, max_steps=3) for n in ("plain", "watched"))
    before = hooks(watched.model)
    audited(watched, bank, audit_steps=1)
    plain.train()
    watched.train()
    assert_same(weights(watched.model), weights(plain.model), rtol=0, atol=0)
    assert hooks(watched.model) == before


def test_full_fine_tuning_goes_on_with_the_base_of_step_0(bank: Path, tmp_path: Path) -> None:
    def run(folder: Path, checkpoint: Path | None = None, **changes: Any) -> AuditCallback:
        trainer = make_trainer(folder, make_base(), save_strategy="steps", save_steps=2, **changes)
        found = audited(trainer, bank)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return found

    whole = run(tmp_path / "run", max_steps=4)
    at = tmp_path / "run" / "checkpoint-2"
    again = run(tmp_path / "run", at, max_steps=4)
    assert "text" not in again.history[-1][1].facts  # nothing to switch off, no second reading
    for name, fact in whole.history[-1][1].facts.items():
        assert again.history[-1][1].facts[name].value == pytest.approx(
            fact.value, abs=1e-4, nan_ok=True
        )
    assert abs(whole.history[-1][1].facts["own_colon"].value) > 1e-3  # control: it has moved
    with pytest.raises(ConfigError, match=r"copy emoreg-audit\.safetensors"):
        run(tmp_path / "elsewhere", at, max_steps=4)


@pytest.mark.parametrize("problem", ["", "it is gone"])
def test_what_the_first_process_has_of_the_base_or_lacks_holds_for_all(
    bank: Path, tmp_path: Path, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audited(make_trainer(tmp_path), bank)
    view = None if problem else found.auditor.base(make_base())
    monkeypatch.setattr("emoreg.auditing.first_process", lambda: False)
    with pytest.raises(ConfigError, match="cannot be read"):  # control: this process has no file
        audit_kept.read(tmp_path / audit_kept.FILE, found.about)
    monkeypatch.setattr("emoreg.auditing.shared", lambda _own: (view, problem))
    if problem:
        with pytest.raises(ConfigError, match=problem):
            _kept(tmp_path / audit_kept.FILE, found.about)
    else:
        assert _kept(tmp_path / audit_kept.FILE, found.about) is view


def test_a_base_of_other_texts_is_refused_and_its_own_comes_back_whole(
    bank: Path, tmp_path: Path
) -> None:
    found = audited(make_trainer(tmp_path), bank)
    view = found.auditor.base(make_base())
    audit_kept.write(tmp_path / "base", view, {"bank": "a"})
    again = audit_kept.read(tmp_path / "base", {"bank": "a"})
    assert torch.equal(again.labelled, view.labelled)
    assert again.texts == view.texts
    assert again.words is not None
    assert view.words is not None
    for name in ("ids", "said", "more", "less"):
        pairs = zip(getattr(again.words, name), getattr(view.words, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ConfigError, match="another bank"):
        audit_kept.read(tmp_path / "base", {"bank": "b"})
    (tmp_path / "base").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="cannot be read"):
        audit_kept.read(tmp_path / "base", {"bank": "a"})


def test_knobs_come_from_the_configuration(bank: Path, tmp_path: Path) -> None:
    config = EmoRegConfig.of(
        penalize={"calm": 0.1, "desperate": 0.2}, bank=str(bank), blocks=[0], facets=["stories"],
        drift_prompts=str(PROMPT_FILE), audit_steps=7,
    )  # fmt: skip
    found = AuditCallback.of(make_trainer(tmp_path), make_vectors(), config)
    assert found.audit_steps == 7
    assert found.auditor.own.rows == (("stories", "desperate"),)  # the heavier weight
    assert found.auditor.own.blocks == (0,)


def test_what_cannot_be_audited_is_refused_before_training(bank: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(ConfigError, match="audit_steps must be a whole number"):
        audited(trainer, bank, audit_steps=-1)
    with pytest.raises(UnknownEmotionError, match="No emotion 'desparate'"):
        audited(trainer, bank, emotion="desparate")
    with pytest.raises(BankError, match="audit of 'afraid' needs"):
        audited(trainer, bank, emotion="afraid")
