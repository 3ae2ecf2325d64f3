"""Every trainer on two processes has the gradient and the log of a direct computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launch import launch
from windows import NEWEST, cells


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes found, which ran all trainers one after the other."""
    out: Path = tmp_path_factory.mktemp("two") / "found.json"
    said = launch("two.py", str(out), *NEWEST, processes=2)
    assert out.exists(), said
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", cells("2 processes", NEWEST, fast=NEWEST))
def test_two_processes_have_the_gradient_and_the_log_of_one_direct_computation(
    name: str, on_two: dict[str, dict[str, Any]]
) -> None:
    found = on_two[name]
    assert found["error"] < 1e-5
    assert found["apart"] == 0
    assert found["loss"] == pytest.approx([found["wanted"]], rel=1e-5)
    assert found["alone"] > 1e-2  # control: the sequences of one process have another gradient
