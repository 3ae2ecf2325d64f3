"""Runs a script of this folder in one or two processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
QUIET = {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def launch(script: str, *arguments: str, processes: int = 1, minutes: float = 10) -> str:
    """Run to the end, well or not, or stop after some minutes; the end of what was said."""
    launcher = TORCHRUN if processes == 2 else []
    with subprocess.Popen(
        [sys.executable, *launcher, str(HERE / script), *arguments],
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            said, _ = running.communicate(timeout=60 * minutes)
        except subprocess.TimeoutExpired:  # processes that wait for each other
            running.terminate()  # torchrun ends those that it started
            said, _ = running.communicate()
    return said[-12000:]
