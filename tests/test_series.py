"""A resumed run goes on as if it had never stopped, or says what it lacks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import (
    PROMPT_FILE,
    make_base,
    make_model,
    make_prompted,
    make_tokenizer,
    make_trainer,
    make_vectors,
)
from transformers import TrainerCallback

from emoreg import kept
from emoreg.callbacks import DriftCallback
from emoreg.errors import ConfigError
from emoreg.journal import Run
from emoreg.prompts import load_prompts
from emoreg.series import BASE, EARLIER, Series
from emoreg.snapshot import Gauge, Snapshot

KINDS: dict[str, Callable[[], Any]] = {
    "lora": make_model, "full": make_base, "learned prompt": make_prompted
}  # fmt: skip
STEPS = 7  # measured at 0, 2, 4, 6 and 7; a checkpoint at every third


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMOREG_CACHE", str(tmp_path / "cache"))


def train(
    folder: Path, model: Any, resume: str | None = None, checkpoints: bool = True, **knobs: Any
) -> Run:
    trainer = make_trainer(
        folder, model, max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-3,
        save_strategy="steps" if checkpoints else "no", save_steps=3,
    )  # fmt: skip
    settings = {"prompts": PROMPT_FILE, "drift_steps": 2, "response_tokens": 5, **knobs}
    trainer.add_callback(DriftCallback(trainer, make_vectors(), **settings))
    trainer.train(resume_from_checkpoint=resume and str(folder / resume))
    return Run.load(folder)


def told(run: Run) -> list[Any]:
    """Everything of each measurement that does not depend on the clock."""
    return [
        [event["step"], event["final"], numbers(event["places"]), numbers(event["stats"])]
        for event in run.drifts
    ]


def numbers(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: numbers(v) for k, v in found.items()}
    return pytest.approx(found, rel=1e-4, abs=1e-5) if isinstance(found, float) else found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that never stopped, the first time it is asked for."""

    @cache
    def ran(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        train(folder, KINDS[kind]())
        return folder

    return ran


def stopped(folder: Path, to: Path) -> Path:
    """A copy of a run that did not come to its end."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    lines = (to / "emoreg.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (to / "emoreg.jsonl").write_text("".join(lines[:-2]), encoding="utf-8")
    return to


@pytest.mark.parametrize(
    ("kind", "checkpoint"), [("lora", 3), ("lora", 6), ("full", 3), ("learned prompt", 3)]
)
def test_a_resumed_run_measures_what_one_that_never_stopped_does(
    kind: str, checkpoint: int, whole: Any, tmp_path: Path
) -> None:
    wanted, folder = Run.load(whole(kind)), stopped(whole(kind), tmp_path)
    assert [event["step"] for event in wanted.drifts] == [0, 2, 4, 6, 7]
    first = wanted.drifts[1]["places"]["colon"]["emotions"]["calm"]
    assert abs(first["change"]["drift"]) > 1e-4  # control: there is a change to go on from
    resumed = train(folder, KINDS[kind](), f"checkpoint-{checkpoint}")
    assert told(resumed) == told(wanted)
    assert resumed.drifts[-1]["places"]["colon"]["emotions"]["calm"]["start"] is not None
    way = "adapters off" if kind == "lora" else "step-0 snapshot"
    assert resumed.baseline["base"] == wanted.baseline["base"] == way


def test_full_fine_tuning_drifts_from_its_own_start(whole: Any) -> None:
    first, *_, last = (event["stats"]["mean_abs"] for event in Run.load(whole("full")).drifts)
    assert first == 0
    assert last > 1e-3


def another_start(folder: Path) -> None:
    """A later run wrote into the same folder."""
    keep = folder.parent / "keep"
    shutil.move(folder / "checkpoint-3", keep)
    train(folder, make_base(seed=5), checkpoints=False)
    shutil.move(keep, folder / "checkpoint-3")


SPOILT: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "missing": (lambda f: (f / BASE).unlink(), {}, "is missing"),
    "damaged": (lambda f: (f / BASE).write_bytes(b"x" * 99), {}, "cannot be used: it is damaged"),
    "other knobs": (lambda _: None, {"response_tokens": 4}, "made with other response_tokens"),
    "other blocks": (lambda _: None, {"blocks": [0]}, "made with other probe"),
    "another run's": (another_start, {}, "is not of the run"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_without_its_base_full_fine_tuning_does_not_resume_and_says_what_to_do(
    what: str, whole: Any, tmp_path: Path
) -> None:
    (spoil, knobs, said), folder = SPOILT[what], stopped(whole("full"), tmp_path / "run")
    spoil(folder)
    with pytest.raises(ConfigError, match=rf"(?s){said}.*Copy {BASE} .* or start at step 0"):
        train(folder, make_base(), "checkpoint-3", **knobs)


@pytest.mark.parametrize("knobs", [{}, {"response_tokens": 4}])
def test_without_earlier_readings_adapters_go_on_and_measure_at_once(
    knobs: dict[str, Any], whole: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(whole("lora"), tmp_path)
    if not knobs:
        (tmp_path / "checkpoint-3" / EARLIER).unlink()
    run = train(tmp_path, make_model(), "checkpoint-3", **knobs)
    assert [event["step"] for event in run.drifts] == [0, 2, 3, 4, 6, 7]
    third, fourth = (run.drifts[i]["places"]["colon"]["emotions"]["calm"] for i in (2, 3))
    assert third["change"] is third["start"] is fourth["start"] is None
    assert fourth["change"] is not None
    assert "hange since earlier measurements is not known" in caplog.text


def test_a_disk_that_is_full_is_a_warning_each_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "write_atomic", full)
    assert len(train(tmp_path, make_base()).drifts) == 5
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert sum(BASE in m and "No space left" in m for m in said) == 1
    assert not (tmp_path / BASE).exists()


def test_snapshots_come_back_from_a_file_as_they_went_in(tmp_path: Path) -> None:
    prompts, probe = load_prompts(PROMPT_FILE), make_vectors().probe(None, [0, 2])
    gauge = Gauge(make_tokenizer(), prompts, probe, 5)
    base = gauge.base(make_base())
    series = Series(gauge, base)
    series.measure(make_model(), 0, own=True)
    series.keep(tmp_path)
    found = kept.read(tmp_path / EARLIER, gauge.identity)
    assert set(found) == {"start", "previous"}
    assert set(found["start"].places) == {"colon", "response", "own"}
    for name, snapshot in found.items():
        assert kept.digest(snapshot) == kept.digest(series.earlier[name])
        assert snapshot.texts == base.texts
    colon = Gauge(make_tokenizer(), prompts, probe, 0).base(make_base())
    assert kept.digest(Snapshot.of(colon.tensors())) == kept.digest(colon) != kept.digest(base)
    assert not torch.tensor(colon.places["colon"]).isnan().any()


def test_a_step_that_is_measured_twice_is_compared_with_the_one_before(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *args: Any, **_kwargs: Any) -> None:
            args[2].should_training_stop = args[1].global_step == 2

    trainer = make_trainer(tmp_path, max_steps=4, learning_rate=0.1)
    trainer.add_callback(DriftCallback(trainer, make_vectors(), PROMPT_FILE, drift_steps=1))
    trainer.add_callback(Stop())
    trainer.train()
    run = Run.load(tmp_path)
    assert [(d["step"], d["final"]) for d in run.drifts] == [(0, False), (1, False), (2, True)]
    before, last = (d["places"]["colon"]["emotions"]["calm"] for d in run.drifts[-2:])
    change = last["change"]["drift"]
    assert change == pytest.approx(last["now"] - before["now"], abs=1e-6)
    assert abs(change) > 1e-3
