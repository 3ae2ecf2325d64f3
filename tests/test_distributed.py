"""Two processes, however they share a model, have the gradient of a direct computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import CASES, Case, regularize, trainer_of
from launch import launch
from trainers import Recorder
from ways import COLUMNS, Grads, Step, apart, by_hand, marks, silence, unpadded
from worker import texts_of


class Row(NamedTuple):
    """A row of the table: its cases, and how accelerate calls it."""

    cases: tuple[str, ...]
    name: str
    stage: int | None = None  # of ZeRO


NATIVE = "FSDP 2 as transformers shards it"
ROWS = {
    "DDP": Row(("ddp", "ddp_ga", "ddp_checkpoint", "ddp_reentrant"), "MULTI_CPU"),
    "FSDP 2": Row(("fsdp2", "fsdp2_ga", "fsdp2_checkpoint", "fsdp2_activation"), "FSDP"),
    NATIVE: Row(("native", "native_ga", "native_checkpoint"), "MULTI_CPU"),
    "ZeRO-1": Row(("zero1", "zero1_ga"), "DEEPSPEED", 1),
    "ZeRO-2": Row(("zero2", "zero2_ga"), "DEEPSPEED", 2),
    "ZeRO-3": Row(("zero3", "zero3_ga", "zero3_init", "zero3_checkpoint"), "DEEPSPEED", 3),
}
SHARDED = ("FSDP 2", "ZeRO-3")  # all parameters, when the optimizer steps
WITH_BASE, WITH_DRIFT = ("DDP", *SHARDED), SHARDED
LOGGED = (
    "emoreg/loss", "emoreg/keep", "emoreg/excess/desperate", "emoreg/max/calm",
    "emoreg/top/desperate", "emoreg/reading_colon/desperate", "emoreg/reading_completion/calm",
)  # fmt: skip
Job = tuple[str, str, str]  # case, column, how


def jobs(row: str) -> list[Job]:
    """What a row's processes run, one after the other."""
    cases = ROWS[row].cases
    found = [(case, column, "neutral") for column in COLUMNS for case in cases]
    found += [(cases[0], "SFT", "base")] * (row in WITH_BASE)
    return found + [(cases[0], "SFT", "drift")] * (row in WITH_DRIFT)


def parameters(how: str) -> list[Any]:
    """Row, case and column of every job of a kind, with the marks of their cells."""
    return [
        pytest.param(row, case, column, marks=marks(row, column, slow=True), id=f"{case}-{column}")
        for row in ROWS
        for case, column, kind in jobs(row)
        if kind == how
    ]


class Found(NamedTuple):
    """What two processes wrote of a job."""

    told: dict[str, Any]
    grads: Grads


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Found]:
    """Reads a job of a row, whose processes run all its jobs at the first call."""

    @cache
    def ran(row: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("row")
        words = [":".join(job) for job in jobs(row)]
        return folder, launch("worker.py", str(folder), *words, processes=2)

    def found(row: str, case: str, column: str, how: str) -> Found:
        folder, said = ran(row)
        path = folder / f"{case}:{column}:{how}.json"
        assert path.exists(), said
        return Found(json.loads(path.read_text()), torch.load(path.with_suffix(".pt")))

    return found


def one_process(folder: Path, column: str, how: str) -> Step:
    """The same step here."""
    trainer = trainer_of(column, folder, Case(size=4, steps=2), how)
    batches, recorder = silence(trainer), Recorder()
    regularize(trainer, how)
    trainer.add_callback(recorder)
    trainer.train()
    return Step(trainer, recorder.grads[0], batches)


class Alone(NamedTuple):
    """What one process has of a column: the logged loss, and gradients by hand."""

    loss: float
    wanted: Grads
    half: Grads  # of half of the sequences
    naive: Grads  # mean of both halves, each as a window of its own


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Alone]:
    """Computes a column directly."""

    @cache
    def found(column: str) -> Alone:
        done = one_process(tmp_path_factory.mktemp("alone"), column, "neutral")
        rows = unpadded(done.batches)
        rows.sort(key=lambda row: row.ids.tolist())  # GRPO's like samples are of one process
        middle = len(rows) // 2
        one, other = by_hand(done, rows[:middle]), by_hand(done, rows[middle:])
        naive = {n: (one[n] + other[n]) / 2 for n in one}
        return Alone(done.log("emoreg/loss")[0], by_hand(done, rows), one, naive)

    return found


@pytest.mark.parametrize(("row", "case", "column"), parameters("neutral"))
def test_the_gradient_is_that_of_one_direct_computation(
    row: str, case: str, column: str, on_two: Any, alone: Any
) -> None:
    (told, grads), (loss, wanted, half, naive) = on_two(row, case, column, "neutral"), alone(column)
    assert apart(grads, wanted) < 1e-5
    assert told["logs"]["emoreg/loss"] == pytest.approx(loss, rel=1e-5)
    assert apart(half, wanted) > 1e-2  # control: half of the sequences have another
    if column != "DPO":  # control: so has a mean over processes that do not know of each other
        assert apart(naive, wanted) > 1e-2


@pytest.mark.parametrize(("row", "case", "column"), parameters("neutral"))
def test_the_model_is_shared_as_the_case_says(
    row: str, case: str, column: str, on_two: Any
) -> None:
    told, setting = on_two(row, case, column, "neutral").told, CASES[case]
    assert (told["distributed"], told["stage"]) == (ROWS[row].name, ROWS[row].stage)
    assert told["micro_batches"] == [setting.steps] * 2
    each = 8 if column == "DPO" else 4  # both sides of a pair
    assert told["sequences"] == [each] * 2
    shards, parameters = told["sharded"], told["parameters"]
    if row == NATIVE:  # the adapter, which came later, is whole
        assert 0 < shards < parameters
    else:
        assert shards == (parameters if row in SHARDED else 0)
    recomputed = case.endswith(("checkpoint", "reentrant", "activation"))
    assert told["checkpointed"] == (3 if recomputed else 0)


@pytest.mark.parametrize(("row", "case", "column"), parameters("base"))
def test_the_base_and_what_is_kept_are_those_of_one_process(
    row: str, case: str, column: str, on_two: Any, tmp_path: Path
) -> None:
    told, grads = on_two(row, case, column, "base")
    wanted = one_process(tmp_path / "base", column, "base")
    assert apart(grads, wanted.grads) < 1e-5
    for key in LOGGED:
        assert told["logs"][key] == pytest.approx(wanted.log(key)[-1], rel=1e-4)
    assert told["texts"] == [list(row) for row in texts_of(tmp_path / "base")]  # over both
    neutral = one_process(tmp_path / "neutral", column, "neutral")
    assert apart(grads, neutral.grads) > 1e-2  # control: the base makes a difference


@pytest.mark.parametrize(("row", "case", "column"), parameters("drift"))
def test_drift_is_that_of_one_process(
    row: str, case: str, column: str, on_two: Any, tmp_path: Path
) -> None:
    told, grads = on_two(row, case, column, "drift")
    wanted = one_process(tmp_path, column, "drift")
    assert apart(grads, wanted.grads) < 1e-5
    measured = {k: v for k, v in told["logs"].items() if k.startswith("emoreg/drift")}
    measured.pop("emoreg/drift_seconds")
    assert measured == pytest.approx({k: wanted.log(k)[-1] for k in measured}, rel=1e-4)
    keys = {k for log in wanted.trainer.state.log_history for k in log if "emoreg/drift" in k}
    assert measured.keys() == keys - {"emoreg/drift_seconds"}
    assert max(map(abs, measured.values())) > 0.01  # control: the adapter has moved the model
