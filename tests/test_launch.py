"""How processes are started: what would read nothing, or run fewer than asked for, is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainers import control, make_trainer, make_vectors
from transformers import Trainer

from emoreg.errors import TrainerError
from emoreg.regularizer import EmotionRegularizer


def cells(row: str, why: str) -> Any:
    """Cells of the works-with table: the same check stands before every trainer."""

    def marked(test: Any) -> Any:
        for column in ("SFT", "DPO", "GRPO"):
            test = pytest.mark.cell("ways", row, column, refused=why)(test)
        return test

    return marked


@cells("several GPUs in one process (DataParallel)", "its threads copy the model; one process each")
def test_data_parallel_threads_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer.args), "n_gpu", property(lambda _self: 2))
    with pytest.raises(TrainerError, match=r"sees 2 GPUs.*accelerate launch"):
        EmotionRegularizer(trainer, make_vectors())


LAUNCHED = """
import sys
sys.path[:0] = [{tests!r}]
import conftest
from pathlib import Path
from trainers import *
from emoreg.errors import TrainerError
trainer = make_trainer(Path({folder!r}))
try:
    control(trainer)
except TrainerError as error:
    print("refused:", error)
else:
    print("accepted", trainer.accelerator.num_processes)
"""


@pytest.mark.slow
@cells("accelerate launch --cpu, 2 processes", "accelerate starts one; torchrun starts two")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_launch_that_starts_fewer_processes_than_asked_is_refused(
    processes: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    options = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    said = subprocess.run(
        [*launch, *options, "--dynamo_backend", "no", str(script)],
        capture_output=True, text=True, timeout=300, check=True,
        env={k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "WORLD_SIZE")},
    ).stdout  # fmt: skip
    assert ("refused: accelerate launch was asked for several" in said) == (processes == 2)
    assert ("accepted 1" in said) == (processes == 1)


def test_the_same_refusal_by_what_the_launcher_leaves_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Trainer = make_trainer(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    control(make_trainer(tmp_path))  # control: one process was asked for
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(TrainerError, match=r"started one.*torchrun"):
        control(trainer)
