"""Two processes log what one does, and if one of them fails neither waits for the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch import HERE, QUIET, TORCHRUN, launch
from rank_failures import WORDS

Found = dict[str, Any]
Ran = Callable[[str], Found]
FAST = ("trained:SFT:short:1", "trained:SFT:short:2", "fails:loss:1:lora:2")
FILLED = ("SFT", "DPO")
LAYOUTS = (
    ("ddp", "lora"), ("fsdp2", "lora"), ("native", "lora"), ("zero2", "lora"), ("zero3", "lora"),
    ("ddp", "whole"), ("fsdp2", "whole"), ("zero3", "whole"),
)  # fmt: skip
ALONE = {  # what fails, and in which process
    "base": 0, "drift": 0, "refit": 1, "audit": 1,
}  # fmt: skip
SLOW = (
    *(f"trained:{column}:filled:{number}" for column in FILLED for number in (1, 2)),
    "audited:bf16:lora:1", "audited:bf16:lora:2", "audited:ddp:lora:1", "audited:ddp:whole:1",
    *(f"audited:{layout}:{kind}:2" for layout, kind in LAYOUTS if "zero" not in layout),
    *(f"fails:{how}:{rank}:lora:2" for how, rank in ALONE.items()),
    "fails:disk:0:lora:2", "fails:disk:0:whole:2",
)  # fmt: skip
ZERO = tuple(f"audited:{layout}:{kind}:2" for layout, kind in LAYOUTS if "zero" in layout)
SHARDED = ("fsdp2", "native", "zero3")
MINUTE = 60.0


def runs(jobs: tuple[str, ...]) -> Any:
    """A fixture that runs jobs, and gives what is found of one."""

    @pytest.fixture(scope="module")
    def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
        folder: Path = tmp_path_factory.mktemp("ranks")
        said = launch("ranks.py", str(folder), *jobs, minutes=20)

        def found(job: str) -> Found:
            path = folder / f"{job}.json"
            assert path.exists(), said
            return json.loads(path.read_text())  # type: ignore[no-any-return]

        return found

    return ran


fast, slow, zero = runs(FAST), runs(SLOW), runs(ZERO)


def told(found: Found) -> list[Found]:
    """What every process of a job told; all must have ended well."""
    assert set(found["codes"]) == {0}, found["said"]
    return list(found["told"])


def furthest(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> float:
    """The largest difference of a value of a log; relative where a value is beyond 1."""
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    lines = zip(found, wanted, strict=True)
    pairs = ((value, other[key]) for one, other in lines for key, value in one.items())
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


def error(found: Found, wanted: Found) -> float:
    """The largest difference of a gradient, in the largest entry of its step."""
    worst = 0.0
    for one, other in zip(found["grads"], wanted["grads"], strict=True):
        assert one.keys() == other.keys()
        most = max(abs(x) for values in other.values() for x in values)
        apart = (abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True))
        worst = max(worst, max(apart) / most)
    return worst


def same(alone: Found, both: Found) -> None:
    """Every process has the log and the gradients of one that had all rows."""
    [wanted] = told(alone)
    assert len({key for line in wanted["logs"] for key in line}) > 100
    for found in told(both):
        assert furthest(found["logs"], wanted["logs"]) < 1e-5
        assert error(found, wanted) < 1e-5
    first, second = (line for line in wanted["logs"] if "emoreg/loss" in line)
    assert abs(first["emoreg/loss"] - second["emoreg/loss"]) > 1e-2  # control: steps are not alike


def test_every_number_and_gradient_is_that_of_one_process_though_the_last_batch_is_short(
    fast: Ran,
) -> None:
    """Not so in DPO, whose own log gathers as many rows from every process or crashes."""
    same(fast("trained:SFT:short:1"), fast("trained:SFT:short:2"))


def test_a_process_that_fails_in_its_loss_ends_both_and_is_heard(fast: Ran) -> None:
    fails(fast("fails:loss:1:lora:2"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("column", FILLED)
def test_rows_that_fill_the_last_batch_are_trained_on_twice_and_evaluated_once(
    column: str, slow: Ran
) -> None:
    """One process is given in training the rows that accelerate repeats, in evaluation none."""
    alone, both = slow(f"trained:{column}:filled:1"), slow(f"trained:{column}:filled:2")
    same(alone, both)
    lines = [line for line in told(both)[0]["logs"] if "eval_emoreg/reading/desperate" in line]
    assert len(lines) == 2


@pytest.mark.slow
def test_a_row_more_in_the_last_batch_shows(fast: Ran, slow: Ran) -> None:
    """A control of the tests above: what they compare is no more alike than its rows."""
    short, filled = fast("trained:SFT:short:2"), slow("trained:SFT:filled:2")
    lines = [
        [line for line in told(found)[0]["logs"] if "emoreg/loss" in line]
        for found in (short, filled)
    ]
    first, last = zip(*lines, strict=True)
    assert furthest([first[0]], [first[1]]) < 1e-5
    assert furthest([last[0]], [last[1]]) > 1e-3


def fails(found: Found, rank: int) -> None:
    """Both ended, badly and soon, and the one that failed says why."""
    assert 0 not in found["codes"]
    assert found["apart"] < MINUTE
    assert f"CaptureError: {WORDS}" in found["said"][rank]
    assert WORDS not in found["said"][1 - rank]  # control: the other did not fail by itself
    assert "Traceback" in found["said"][1 - rank] or "terminate" in found["said"][1 - rank]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), ALONE.items())
def test_a_process_that_fails_alone_ends_both_and_is_heard(how: str, rank: int, slow: Ran) -> None:
    fails(slow(f"fails:{how}:{rank}:lora:2"), rank)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_a_full_disk_where_files_are_written_ends_nothing(kind: str, slow: Ran) -> None:
    found = slow(f"fails:disk:0:{kind}:2")
    assert [each["steps"] for each in told(found)] == [[1, 2]] * 2
    first, second = told(found)
    assert first["written"] == ["bank-0.jsonl", "bank-1.jsonl"]  # control: before it was full
    warned = "\n".join(first["warned"])
    for file in ("emoreg.jsonl cannot be written", "emoreg-base.safetensors cannot be written",
                 "Base readings cannot be cached", "report.html could not be made"):  # fmt: skip
        assert file in warned
    assert ("emoreg-audit.safetensors cannot be kept" in warned) == (kind == "whole")
    assert not any("cannot" in said for said in second["warned"])


@pytest.mark.slow
def test_torchrun_ends_with_the_error_of_the_process_that_failed(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, *TORCHRUN, str(HERE / "rank_failures.py"), "loss", "1", "lora",
         str(tmp_path)],
        env={**os.environ, **QUIET}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    said = told.stdout + told.stderr
    assert told.returncode != 0
    assert f"CaptureError: {WORDS}" in said
    assert "ChildFailedError" in said


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), LAYOUTS)
def test_drift_and_audit_are_those_of_one_process_however_the_model_is_shared(
    layout: str, kind: str, request: pytest.FixtureRequest, slow: Ran
) -> None:
    if "zero" in layout:
        pytest.importorskip("deepspeed")
    own = request.getfixturevalue("zero" if "zero" in layout else "slow")
    [wanted] = told(slow(f"audited:ddp:{kind}:1"))
    for found in told(own(f"audited:{layout}:{kind}:2")):
        assert found["processes"] == 2
        assert bool(found["sharded"]) == (layout in SHARDED)
        # DeepSpeed steps with an optimizer of its own: what is trained is not quite the same.
        limit = 5e-3 if (layout, kind) == ("zero3", "whole") else 1e-4
        assert furthest(found["logs"], wanted["logs"]) < limit
    names = {key for line in wanted["logs"] for key in line}
    assert {"emoreg/audit_verdict", "emoreg/audit/lean", "emoreg/drift_own/calm"} <= names
    assert ("emoreg/audit/text" in names) == (kind == "lora")  # read again by the base
    assert abs(wanted["logs"][-1]["emoreg/audit/own_colon"]) > 1e-3  # control: there is a move


@pytest.mark.slow
def test_bfloat16_moves_drift_and_audit_by_no_more_than_rounding(slow: Ran) -> None:
    [wanted], [found] = told(slow("audited:ddp:lora:1")), told(slow("audited:bf16:lora:1"))
    assert 1e-5 < furthest(found["logs"], wanted["logs"]) < 0.2
    for both in told(slow("audited:bf16:lora:2")):
        assert furthest(both["logs"], found["logs"]) < 1e-4
