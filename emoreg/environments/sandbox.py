"""Run a function that a model wrote on tests, in a process that can reach nothing.

What is in the way of the code is listed in `emoreg.environments.runner`. It is meant for what a
language model writes while it trains. Against somebody who attacks the sandbox itself it is no more
than a first wall: for that, put the whole training into a container without a network.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emoreg.errors import ConfigError

RUNNER = Path(__file__).parent / "runner.py"
Test = Sequence[Any]  # the function's arguments as a list, and what it should give


@dataclass(frozen=True)
class Limits:
    """What one process may use."""

    processor: int = 2  # seconds
    seconds: float = 10.0  # by the clock
    memory: int = 512  # MiB of address space

    def kernel(self) -> dict[str, int]:
        """The same as names of ``setrlimit``; nothing may be opened, written or started."""
        nothing = dict.fromkeys(("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CORE"), 0)
        return {**nothing, "RLIMIT_CPU": self.processor, "RLIMIT_AS": self.memory << 20}


def run_tests(
    code: str, function: str, tests: Sequence[Test], limits: Limits | None = None
) -> list[bool]:
    """Whether a function of the code passes each test.

    Args:
        code: Python source.
        function: Its name in the source.
        tests: Plain data: numbers, strings, lists, mappings with string keys.
        limits: Of the process.

    Returns:
        A value per test; all False for code that is refused, does not start or passes a limit.

    Raises:
        ConfigError: No sandbox can be had on this machine.
    """
    check_works()
    return _run(code, function, tests, limits or Limits())


@cache
def check_works() -> None:
    """Run something that must pass, once.

    Raises:
        ConfigError: It does not.
    """
    if os.name != "posix" or not _run("def f(x): return x", "f", [[[1], 1]], Limits())[0]:
        raise ConfigError(
            f"The sandbox does not run here ({sys.platform}); it needs Linux and Python's "
            "`resource` module. Train on Linux, or give another reward function."
        )


def _run(code: str, function: str, tests: Sequence[Test], limits: Limits) -> list[bool]:
    key = secrets.token_hex(16)  # lest the code answers for the runner
    job = {"key": key, "code": code, "function": function, "tests": tests}
    text = json.dumps(job | {"limits": limits.kernel()})
    with (
        TemporaryDirectory(prefix="emoreg-") as folder,
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(RUNNER)],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        ) as process,
    ):
        try:
            said = process.communicate(text, timeout=limits.seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[0]
    found, _, digits = said.partition(" ")
    if found != key or len(digits) != len(tests):
        return [False] * len(tests)
    return [digit == "1" for digit in digits]
