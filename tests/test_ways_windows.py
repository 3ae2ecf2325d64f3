"""Accumulation windows of any size, on any number of processes, and what is logged of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from datasets import Dataset
from trainers import Recorder
from transformers import TrainerCallback
from ways import (
    Step,
    apart,
    by_hand,
    columns_of,
    control,
    silence,
    step,
    terms,
    trained,
    unit_of,
    unpadded,
)

from emoreg.metrics import described

ONE_EPOCH = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 2}
ROLLOUT = {"steps_per_generation": 3, "per_device_train_batch_size": 4, "num_iterations": 1}


def windows(trainer: Any) -> list[Step]:
    """Every optimizer step of a run, each with its own batches and gradients."""
    batches, recorder = silence(trainer), Recorder()
    control(trainer)
    trainer.add_callback(recorder)
    ends: list[int] = []
    recorder.on_step_end = lambda *_, **__: ends.append(len(batches))  # type: ignore[method-assign]
    trainer.train()
    starts = [0, *ends[:-1]]
    return [
        Step(trainer, grads, batches[first:end])
        for grads, first, end in zip(recorder.grads, starts, ends, strict=True)
    ]


@pytest.mark.parametrize("column", columns_of("short last window", ["SFT", "DPO"]))
def test_a_shorter_last_window_is_a_mean_of_its_own(column: str, tmp_path: Path) -> None:
    columns = {name: texts[:6] for name, texts in zoo.TRAINERS[column].columns.items()}
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    whole, last = windows(trained(column, tmp_path, rows=rows, **ONE_EPOCH))
    assert (len(whole.batches), len(last.batches)) == (2, 1)
    for found in (whole, last):
        assert apart(found.grads, by_hand(found)) < 1e-5
    halved = {n: g / 2 for n, g in last.grads.items()}
    assert apart(halved, by_hand(last)) > 0.1  # control: half of it would show


@pytest.mark.parametrize("column", columns_of("short last window", ["GRPO"]))
def test_a_rollout_that_ends_in_a_shorter_window_weighs_its_tokens_as_the_host_does(
    column: str, tmp_path: Path
) -> None:
    """A window's share of the rollout is that of its micro-batches, as in TRL's own loss."""
    args = {**ONE_EPOCH, **ROLLOUT}
    columns = {"prompt": zoo.PROMPTS[:6]}
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    whole, last = windows(trained(column, tmp_path, rows=rows, **args))
    assert (len(whole.batches), len(last.batches)) == (2, 1)
    counts = [sum(len(r.at) for r in unpadded(found.batches)) for found in (whole, last)]
    for found, own, part in zip((whole, last), counts, (2, 1), strict=True):
        scale = own / (sum(counts) * part / 3)
        wanted = {n: g * scale for n, g in by_hand(found).items()}
        assert apart(found.grads, wanted) < 1e-5
        assert abs(scale - 1) > 1e-2  # control: the windows are ragged


# --- two processes --------------------------------------------------------------------------

PROCESS = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from trainers import weights
from test_ways_windows import ACROSS
from ways import COLUMNS, step, trained

rank = int(os.environ["RANK"])
for column in COLUMNS:
    for average in (True, False):
        folder = Path({folder!r}) / f"{{column}}-{{average}}"
        args = {{**ACROSS[column], "average_tokens_across_devices": average}}
        trainer = trained(column, folder / f"rank{{rank}}", **args)
        assert trainer.accelerator.num_processes == 2
        now = weights(trainer.model)
        found = step(trainer)
        torch.save((now, found.grads, found.batches), folder / f"{{rank}}.pt")
"""
ACROSS: dict[str, dict[str, Any]] = {
    "SFT": {"per_device_train_batch_size": 2},
    "DPO": {"per_device_train_batch_size": 2},
    "GRPO": {"max_steps": 1},
}
Ranks = list[tuple[Any, Any, Any]]  # trained weights, gradients and batches


@pytest.fixture(scope="module")
def across(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw in one step of every column, with and without the average."""
    folder = tmp_path_factory.mktemp("across")
    script = folder / "process.py"
    script.write_text(PROCESS.format(tests=str(Path(__file__).parent), folder=str(folder)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*torchrun, str(script)], env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("column", columns_of("average_tokens_across_devices off", slow=True))
def test_processes_are_averaged_as_the_host_averages_them(
    column: str, across: Path, tmp_path: Path
) -> None:
    """Only SFT asks for the average of tokens; without it each process has a mean of its own."""
    trainer = trained(column, tmp_path)
    for average in (True, False):
        folder = across / f"{column}-{average}"
        ranks: Ranks = [torch.load(folder / f"{i}.pt", weights_only=False) for i in range(2)]
        trainer.model.load_state_dict(ranks[0][0], strict=False)
        grads = ranks[0][1]
        assert apart(ranks[1][1], grads) < 1e-6  # they have the same gradient
        whole = by_hand(Step(trainer, grads, ranks[0][2] + ranks[1][2]))
        each = [by_hand(Step(trainer, grads, batches)) for _, _, batches in ranks]
        halves = {n: (each[0][n] + each[1][n]) / 2 for n in grads}
        assert apart(halves, whole) > 1e-3 or column == "DPO"  # control: the processes are ragged
        wanted = halves if column == "SFT" and not average else whole
        assert apart(grads, wanted) < 1e-5


# --- what is logged -------------------------------------------------------------------------


class Report(TrainerCallback):
    """What `report_to` sends things to: added with the trainer, and so before any guest."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *_args: Any, logs: Any = None, **_kwargs: Any) -> None:
        self.logs.append(dict(logs))


def halves(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chosen and the rejected part of every batch, each as a batch."""
    keys = ("input_ids", "attention_mask", "labels")
    sides = ("chosen", "rejected")
    return [{key: batch[f"{side}_{key}"] for key in keys} for batch in batches for side in sides]


@pytest.mark.parametrize("column", [*columns_of("logging"), "CPO"])
def test_what_is_logged_reaches_the_history_and_every_report(column: str, tmp_path: Path) -> None:
    report = Report()
    few = Dataset.from_dict(dict(zoo.TRAINERS[column].columns)).select(range(4))
    more = {"callbacks": [report], "eval_dataset": few}
    found = step(trained(column, tmp_path, eval_strategy="steps", eval_steps=1, more=more))
    assert hasattr(found.trainer, "_metrics") == (column != "CPO")  # control: of either kind
    for prefix in ("", "eval_"):
        (history,) = [r for r in found.trainer.state.log_history if f"{prefix}emoreg/norm" in r]
        (reported,) = [r for r in report.logs if f"{prefix}emoreg/norm" in r]
        own = {k: v for k, v in history.items() if "emoreg/" in k}
        assert own == {k: v for k, v in reported.items() if "emoreg/" in k}
        assert all(map(described, own))
        assert f"{prefix}emoreg/reading/desperate/transcripts" in own
    rows = unpadded(halves(found.batches) if column == "CPO" else found.batches)
    value = terms(found.trainer.model.eval(), rows, unit_of(found.trainer))
    assert found.log("emoreg/loss") == pytest.approx([value.item()], rel=1e-5)
