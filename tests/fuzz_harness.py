"""One fuzzed case: a typed error or a load that holds what it promises, in time."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emoreg.errors import EmoregError

SECONDS = 2.0  # of the processor, for one case
LONGEST = 20_000  # characters of an error: a value that was found is quoted in part
RAN: list[str] = []  # what a damaged file has brought to run


class Hang(Exception):
    """A case that took too long."""


def ran(*_args: Any, **_kwargs: Any) -> str:
    """What a file that runs code would call."""
    RAN.append("ran")
    return "ran"


class Bomb:
    """Calls `ran` where it is unpickled."""

    def __reduce__(self) -> Any:
        return ran, ()


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        files: Strategy of name -> content; the name "" is that of the folder's only file.
        load: Reads a folder that holds them.
        check: Takes what was loaded; raises where that is not what the loader promises.
    """

    files: st.SearchStrategy[dict[str, bytes]]
    load: Callable[[Path], Any]
    check: Callable[[Any], object]


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raise `Hang` after so much processor time; waiting for other processes does not count."""

    def late(*_: object) -> None:
        raise Hang(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)  # again: a destructor swallows one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judged(target: Target, folder: Path, seconds: float = SECONDS) -> str:
    """``refused`` or ``loaded``; any other outcome is raised."""
    RAN.clear()
    said = None
    try:
        with limited(seconds):
            target.check(target.load(folder))
    except EmoregError as e:
        said = str(e)
    assert not RAN, "the file ran code"
    assert said is None or 0 < len(said) <= LONGEST, f"an error of {len(said)} characters"
    return "loaded" if said is None else "refused"


def fuzz(target: Target, folder: Path, cases: int, same: bool = True) -> Counter[str]:
    """How often cases were refused and loaded; the first other outcome is raised, made small.

    Args:
        target: What is fuzzed.
        folder: An empty one.
        cases: How many.
        same: The same ones every time; others, and what the last run found, if False.
    """
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=cases,
        derandomize=same,
        database=None,
        deadline=None,
        print_blob=not same,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.files)
    def one(files: dict[str, bytes]) -> None:
        for old in folder.iterdir():
            old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        outcomes[judged(target, folder)] += 1

    one()
    return outcomes
