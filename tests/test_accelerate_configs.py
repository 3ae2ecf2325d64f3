"""Accelerate's own class reads every configuration, and those that can run on a CPU do."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from trainers import PROMPT_FILE

CONFIGS = {p.stem: p for p in sorted(Path("accelerate_configs").glob("*.yaml"))}
WANTED = {  # distributed type, processes
    "single_cpu": ("NO", 1), "multi_cpu": ("MULTI_GPU", 2), "single_gpu": ("NO", 1),
    "ddp": ("MULTI_GPU", 8), "fsdp1": ("FSDP", 8), "fsdp2": ("FSDP", 8),
    "zero1": ("DEEPSPEED", 8), "zero2": ("DEEPSPEED", 8), "zero3": ("DEEPSPEED", 8),
}  # fmt: skip
RUNS = {  # what a run on the CPU is: type, stage of ZeRO, version of FSDP
    "single_cpu": ("NO", None, None), "multi_cpu": ("MULTI_CPU", None, None),
    "ddp": ("MULTI_CPU", None, None), "fsdp2": ("FSDP", None, 2),
    "zero1": ("DEEPSPEED", 1, None), "zero2": ("DEEPSPEED", 2, None),
    "zero3": ("DEEPSPEED", 3, None),
}  # fmt: skip
HERE = Path(__file__).parent
FLAGS = [
    "--config", "tiny/sft/emoreg", "--use_cpu", "true", "--max_steps", "2", "--report_to", "none",
    "--per_device_train_batch_size", "2", "--eval_strategy", "no", "--eval_on_start", "false",
    "--disable_tqdm", "true", "--logging_steps", "1", "--emoreg_drift_prompts", str(PROMPT_FILE),
    "--emoreg_drift_response_tokens", "0", "--emoreg_drift_on_policy", "never",
]  # fmt: skip


def test_every_configuration_is_there() -> None:
    assert CONFIGS.keys() == WANTED.keys()


@pytest.mark.parametrize("name", WANTED)
def test_accelerate_reads_it(name: str) -> None:
    found = load_config_from_file(str(CONFIGS[name]))
    assert isinstance(found, ClusterConfig)
    assert (found.distributed_type.value, found.num_processes) == WANTED[name]
    assert found.use_cpu == (name == "single_cpu")
    assert found.mixed_precision == ("no" if name.endswith("cpu") else "bf16")
    if name.startswith("fsdp"):
        assert found.fsdp_config["fsdp_version"] == int(name[-1])
    if name.startswith("zero"):
        assert found.deepspeed_config["zero_stage"] == int(name[-1])


def test_a_key_that_accelerate_does_not_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(CONFIGS["ddp"].read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))


@pytest.mark.parametrize("name", WANTED)
def test_it_is_short_and_says_when_and_how(name: str) -> None:
    text = CONFIGS[name].read_text()
    assert 16 <= len(text.splitlines()) <= 26
    command = re.search(r"^# Run: (.+)$", text, flags=re.M)
    assert command
    script, recipe = re.findall(r"recipes/\S+", command[1])
    assert f"--config_file {CONFIGS[name]} {script} --config {recipe}" in command[1]
    assert Path(script).is_file()
    assert Path(recipe).is_file()
    assert ("ACCELERATE_USE_CPU=1 accelerate launch" in command[1]) == (name == "multi_cpu")


def launched(name: str, folder: Path) -> dict[str, Any]:
    """What the worker found, launched as the configuration says, on at most two processes."""
    on_gpus = WANTED[name][1] == 8
    zero, out = name.startswith("zero"), folder / "found.json"
    env = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "0" if zero else "1"}
    fewer = ["--num_processes", "2", "--mixed_precision", "no"] if on_gpus else []
    said = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS[name]),
         *fewer, "--main_process_port", "0", str(HERE / "config_worker.py"), str(out), "sft",
         *FLAGS, "--output_dir", str(folder / "out")],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert out.exists(), (said.stdout + said.stderr)[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_trains_under_it_on_the_cpu(name: str, tmp_path: Path) -> None:
    if name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    found = launched(name, tmp_path)
    assert (found["type"], found["stage"], found["fsdp"]) == RUNS[name]
    assert found["processes"] == min(WANTED[name][1], 2)
    assert found["steps"] == 2
    assert all(loss > 0 for loss in found["losses"])
    assert len(found["losses"]) == 2
