"""Whatever a file holds: a typed error or a correct load; no crash, hang or code that it brings."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzz_binary import BINARY
from fuzz_harness import RAN, Bomb, Hang, Target, fuzz, judged
from fuzz_text import TEXT
from hypothesis import strategies as st

from emoreg.errors import BankError

CASES, SLOW_CASES = 35, 900
TARGETS = TEXT | BINARY
Each = pytest.mark.parametrize("name", TARGETS)


@Each
def test_a_damaged_file_is_refused_in_words_or_read_as_it_stands(name: str, tmp_path: Path) -> None:
    outcomes = fuzz(TARGETS[name], tmp_path, CASES)
    assert outcomes["refused"] >= 5  # control: the damage is seen
    assert outcomes["loaded"] >= 1  # control: not every file is refused


@pytest.mark.slow
@Each
def test_many_damaged_files_are_refused_in_words_or_read(name: str, tmp_path: Path) -> None:
    assert len(TARGETS) * SLOW_CASES >= 10_000
    outcomes = fuzz(TARGETS[name], tmp_path, SLOW_CASES, same=False)
    assert sum(outcomes.values()) >= SLOW_CASES
    assert min(outcomes["refused"], outcomes["loaded"]) >= SLOW_CASES // 100


def reads(line: Callable[[bytes], Any]) -> Target:
    """A reader that refuses what does not begin with a zero, and does `line` with the rest."""

    def load(folder: Path) -> Any:
        data = (folder / "x").read_bytes()
        if data[:1] != b"\x00":
            raise BankError("wanted a zero")
        return line(data)

    files = st.binary(min_size=1, max_size=3).map(lambda data: {"x": data})
    return Target(files, load, lambda _: None)


def endless(_: bytes) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (lambda data: {}[data], KeyError),
        (lambda data: data.missing, AttributeError),
        (lambda data: (b"\xff" + data).decode(), UnicodeDecodeError),
        (lambda data: [].pop(len(data)), IndexError),
    ],
)
def test_an_error_without_a_type_of_ours_is_caught(line: Any, error: Any, tmp_path: Path) -> None:
    with pytest.raises(error):
        fuzz(reads(line), tmp_path, 300)


def test_a_load_that_is_not_what_was_promised_is_caught(tmp_path: Path) -> None:
    def check(_: Any) -> None:
        raise AssertionError("not unit length")

    sound = reads(len)
    with pytest.raises(AssertionError, match="not unit length"):
        fuzz(Target(sound.files, sound.load, check), tmp_path, 300)


def test_a_hang_is_caught(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00")
    with pytest.raises(Hang):
        judged(reads(endless), tmp_path, 0.2)


def _pickled() -> bytes:
    torch.save(Bomb(), buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "read",
    [
        lambda _: yaml.unsafe_load("!!python/object/apply:fuzz_harness.ran []"),
        lambda _: pickle.loads(pickle.dumps(Bomb())),
        lambda _: torch.load(io.BytesIO(_pickled()), weights_only=False),
    ],
)
def test_code_that_a_file_brings_would_be_seen(read: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00")
    with pytest.raises(AssertionError, match="ran code"):
        judged(reads(read), tmp_path)
    RAN.clear()
