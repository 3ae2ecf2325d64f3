"""One journal a run, whoever takes part in it and however it ends."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from trainers import (
    EMOTIONS,
    PROMPT_FILE,
    Do,
    control,
    make_rows,
    make_trainer,
    make_vectors,
)
from transformers import TrainerCallback

from emoreg import boards
from emoreg.callbacks import DriftCallback
from emoreg.journal import FILE, Run


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where reports were asked for; drawing one is tested where they are made."""
    found: list[Path] = []
    monkeypatch.setattr("emoreg.reporting.write_runs", lambda _runs, path: found.append(path))
    return found


def invite(trainer: Any, drift_first: bool = False) -> None:
    def drift() -> None:
        guest = DriftCallback(trainer, make_vectors(), PROMPT_FILE, 1, response_tokens=0)
        trainer.add_callback(guest)

    if drift_first:
        drift()
    control(trainer)
    if not drift_first:
        drift()


def train(folder: Path, **settings: Any) -> Any:
    trainer = make_trainer(folder, **{"max_steps": 3, **settings})
    invite(trainer)
    trainer.train()
    return trainer


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text("utf-8").splitlines()]


def breaking(trainer: Any, step: int) -> None:
    """Fails at a step, once."""
    left = [OSError("the disk is full")]

    def fail(**_kwargs: Any) -> None:
        if trainer.state.global_step == step and left:
            raise left.pop()

    trainer.add_callback(Do("on_step_end", fail))


@pytest.mark.parametrize("drift_first", [False, True])
def test_every_line_of_the_log_is_in_the_journal_once(drift_first: bool, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=3, eval_strategy="steps", eval_steps=2, eval_rows=make_rows(2)
    )
    invite(trainer, drift_first)
    trainer.train()
    wanted = [
        (row["step"], {k: v for k, v in row.items() if k not in ("step", "total_flos")})
        for row in trainer.state.log_history
    ]
    assert Run.load(tmp_path).logs == wanted
    counts = [sum(key in row for _, row in wanted) for key in ("loss", "emoreg/drift/calm")]
    assert counts == [3, 4]
    assert any("eval_loss" in row for _, row in wanted)


def test_only_numbers_of_a_line_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    invite(trainer)
    odd = {"odd/text": "x", "odd/flag": True, "odd/none": None, "odd/number": 2}
    trainer.add_callback(Do("on_step_end", lambda **_kwargs: trainer.log(dict(odd))))
    trainer.train()
    (logs,) = [logs for _, logs in Run.load(tmp_path).logs if "odd/number" in logs]
    assert {k for k in logs if k.startswith("odd/")} == {"odd/number"}


def test_a_journal_begins_with_who_trains_what(tmp_path: Path) -> None:
    trainer = train(tmp_path, run_name="mine", seed=7, gradient_accumulation_steps=2)
    found = Run.load(tmp_path).header
    assert {k: found[k] for k in ("step", "name", "trainer", "wandb")} == {
        "step": 0, "name": "mine", "trainer": "InOrder", "wandb": None,
    }  # fmt: skip
    assert set(found["versions"]) >= {"emoreg", "python", "torch", "transformers", "trl", "peft"}
    assert found["versions"]["torch"] == version("torch")
    args = trainer.args
    assert found["args"]["learning_rate"] == args.learning_rate
    given = {"max_steps": 3, "processes": 1, "seed": 7, "gradient_accumulation_steps": 2}
    assert given.items() <= found["args"].items()
    lora = trainer.model.peft_config["default"]
    assert found["adapter"]["r"] == lora.r
    assert found["adapter"]["alpha"] == lora.lora_alpha
    assert found["adapter"]["target_modules"] == sorted(lora.target_modules)
    assert found["model"] == make_vectors().card["model"]


def test_a_model_without_adapters_says_so(tmp_path: Path) -> None:
    from trainers import make_base

    trainer = make_trainer(tmp_path, model=make_base())
    control(trainer)
    trainer.train()
    assert Run.load(tmp_path).header["adapter"] is None


def test_both_callbacks_tell_one_journal_in_order(tmp_path: Path) -> None:
    train(tmp_path)
    found = [row["event"] for row in events(tmp_path)]
    assert found[:4] == ["run", "control", "baseline", "drift"]
    assert found[-1] == "end"
    assert {kind: found.count(kind) for kind in ("run", "control", "baseline", "end", "drift")} == {
        "run": 1, "control": 1, "baseline": 1, "end": 1, "drift": 4,
    }  # fmt: skip


def test_the_end_has_the_loss_of_the_task_alone(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    alone = [row["loss"] - row["emoreg/loss"] for row in rows]
    end = Run.load(tmp_path).end
    assert end["loss"] == pytest.approx(sum(alone) / 3)
    assert end["loss"] < sum(row["loss"] for row in rows) / 3  # control: something was added
    assert 0 < end["seconds"] < 600


def test_the_loss_of_the_task_is_less_what_every_regularizer_added() -> None:
    lines = [
        {"loss": 2.0, "emoreg/loss": 0.5, "emoreg/calmer/loss": 0.25, "eval_emoreg/loss": 9.0},
        {"loss": 1.0, "emoreg/loss": None},
        {"emoreg/loss": 7.0},
    ]
    assert boards.task_loss(lines) == pytest.approx((1.25 + 1.0) / 2)
    assert boards.task_loss(lines[2:]) is None


def test_a_run_that_ends_writes_its_report_once(tmp_path: Path, pages: list[Path]) -> None:
    train(tmp_path)
    assert pages == [tmp_path / boards.REPORT]


def test_a_report_that_cannot_be_made_costs_a_warning_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emoreg.reporting.write_runs", refuse)
    train(tmp_path)
    (record,) = [r for r in caplog.records if r.name == "emoreg.boards"]
    assert record.levelno == logging.WARNING
    assert "No space left" in record.getMessage()
    run = Run.load(tmp_path)
    assert [note["text"] for note in run.notes] == [record.getMessage()]
    assert run.end["step"] == 3


def test_a_run_that_fails_leaves_a_journal_without_an_end_and_holds_nothing(
    tmp_path: Path, pages: list[Path]
) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    invite(trainer)
    breaking(trainer, 2)
    before = {name for name in vars(trainer) if name != "train"}
    with pytest.raises(OSError, match="the disk is full"):
        trainer.train()
    run = Run.load(tmp_path)
    assert (run.end, [d["step"] for d in run.drifts]) == ({}, [0, 1, 2])
    assert id(trainer) not in boards._ROOMS
    assert "train" not in vars(trainer)
    assert before  # control: there is something that may stay
    assert pages == []


@pytest.mark.parametrize("trainings", [1, 2])
def test_training_again_after_a_failure_begins_another_journal(
    trainings: int, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    invite(trainer)
    for _ in range(trainings - 1):
        trainer.train()
    breaking(trainer, 2)
    with pytest.raises(OSError, match="the disk is full"):
        trainer.train()
    trainer.train()
    found = [row["event"] for row in events(tmp_path)]
    assert (found[0], found[-1], found.count("run"), found.count("drift")) == ("run", "end", 1, 4)
    cut = [json.loads(line) for line in (tmp_path / f"emoreg.{trainings}.jsonl").open()]
    assert cut[-1]["event"] != "end"
    assert id(trainer) not in boards._ROOMS


@pytest.mark.parametrize("fails", [False, True])
def test_a_trainer_can_be_forgotten_after_a_run(fails: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    invite(trainer)
    if fails:
        breaking(trainer, 2)
        with pytest.raises(OSError, match="the disk is full"):
            trainer.train()
    else:
        trainer.train()
    found = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert found() is None


def test_a_callback_that_is_dropped_before_training_gives_the_trainer_back(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = set(vars(trainer))
    invite(trainer)
    assert "train" in vars(trainer)  # control
    trainer.remove_callback(DriftCallback)
    for guest in trainer.callback_handler.callbacks[-1:]:
        trainer.remove_callback(guest)
    del guest
    gc.collect()
    assert set(vars(trainer)) == before


def test_training_twice_keeps_both_journals(tmp_path: Path) -> None:
    trainer = train(tmp_path)
    trainer.train()
    for name in (FILE, "emoreg.1.jsonl"):
        run = Run.load(tmp_path / name)
        assert (run.end["step"], len(run.drifts)) == (3, 4)


def test_a_run_that_goes_on_from_a_checkpoint_goes_on_in_its_journal(tmp_path: Path) -> None:
    train(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    trainer = make_trainer(tmp_path, max_steps=5)
    invite(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    run = Run.load(tmp_path)
    assert [step for step, logs in run.logs if "loss" in logs] == [1, 2, 3, 4, 5]
    assert [d["step"] for d in run.drifts] == [0, 1, 2, 3, 4, 5]
    assert run.header["step"] == 2
    assert run.end["step"] == 5


def test_a_regularizer_that_is_attached_by_hand_writes_no_journal(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(2))
    with control(trainer):
        found = trainer.evaluate()
    assert "eval_emoreg/reading/calm" in found  # control
    assert not (tmp_path / FILE).exists()


def test_a_guest_that_never_joined_can_leave(tmp_path: Path) -> None:
    trainer, guest = make_trainer(tmp_path), TrainerCallback()
    boards.leave(trainer, guest)
    boards.logged(trainer, guest, {"loss": 1.0})
    boards.join(trainer, guest)
    boards.leave(trainer, TrainerCallback())
    boards.logged(trainer, TrainerCallback(), {"loss": 1.0})
    boards.logged(trainer, guest, {"loss": 2.0})
    boards.leave(trainer, guest)
    run = Run.load(tmp_path)
    assert (run.logs, run.end["step"]) == ([(0, {"loss": 2.0})], 0)


def test_vectors_of_every_guest_are_told_apart(tmp_path: Path) -> None:
    train(tmp_path)
    run = Run.load(tmp_path)
    assert run.controls[""]["emotions"] == list(EMOTIONS)
    assert run.baseline["vectors"]["model"] == run.controls[""]["vectors"]["model"]
