"""The sandbox lets nothing out, tasks are what they say, rewards are paid for what counts."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from emoreg.environments import gsm8k, hacking, runner, sandbox, tasks
from emoreg.environments.sandbox import Limits, run_tests
from emoreg.errors import ConfigError

ONE = [[[1], 2]]  # f(1) == 2
RIGHT = "def f(x):\n    return x + 1\n"


def passes(body: str, tests: Any = ONE, **limits: Any) -> bool:
    """Whether code that is given before a right function leaves it right."""
    return all(run_tests(body + "\n" + RIGHT, "f", tests, Limits(**limits)))


def test_each_test_is_told_apart() -> None:
    assert run_tests(RIGHT, "f", [[[1], 2], [[1], 3], [["a"], 2], [[1.5], 2.5]]) == [
        True, False, False, True,
    ]  # fmt: skip


PLAIN = {
    "modules": "import math\nfrom collections import Counter, defaultdict\nfrom typing import List",
    "classes": "class A:\n    def __init__(self):\n        self.x = f'{1:>3}'\nA().x",
    "patterns": "import re\nassert re.findall('(a+)(?P<b>b)', 'aab')",
    "errors": "try:\n    [][0]\nexcept IndexError as e:\n    e.args",
    "main": "if __name__ == '__main__':\n    unknown",
    "future": "from __future__ import annotations\ndef g(x: list[int]) -> None: ...",
}
LEAKS = {
    "open": "open('leak', 'w')",
    "import os": "import os\nos.getcwd()",
    "import socket": "from socket import socket",
    "import inside": "__import__('os')",
    "subclasses": "().__class__.__base__.__subclasses__()",
    "globals": "(lambda: 0).__globals__",
    "frames": "g = (i for i in [1])\ng.gi_frame",
    "format": "'{0.__class__}'.format(1)",
    "match": "match 1:\n    case int(real=r): pass",
    "eval": "eval('1')",
    "always equal": "class A(int):\n    def __eq__(self, o): return True",
    "print": "print('1' * 100)",
}


@pytest.mark.parametrize("body", PLAIN.values(), ids=PLAIN)
def test_plain_python_runs(body: str) -> None:
    assert passes(body)


@pytest.mark.parametrize("body", LEAKS.values(), ids=LEAKS)
def test_what_leads_out_is_refused(body: str) -> None:
    assert not passes(body)


def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *without: str) -> None:
    """Put a runner in the real one's place that lacks some walls and gives all builtins."""
    text = Path(runner.__file__).read_text()
    for wall in without:
        assert text.count(f"    {wall}\n") == 1
        text = text.replace(f"    {wall}\n", "    pass\n")
    given = 'given | {"__import__": give}'
    assert given in text
    (tmp_path / "runner.py").write_text(text.replace(given, "builtins"))
    monkeypatch.setattr(sandbox, "RUNNER", tmp_path / "runner.py")


CHECK, LOCK, LIMIT = "check(tree)", "lock()", 'limit(job["limits"])'
ATTACKS = {
    "writes": "with open({leak!r}, 'w') as f:\n    f.write('x')",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port})).send(b'x')",
    "starts": "import os\nos.system('touch ' + {leak!r})",
}


@pytest.mark.parametrize(
    ("attack", "wall"),  # that the kernel starts no process does not hold for root
    [(a, w) for a in ATTACKS for w in (LOCK, LIMIT) if (a, w) != ("starts", LIMIT)],
)
def test_the_interpreter_and_the_kernel_each_hold_alone(
    attack: str, wall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = tmp_path / "leak"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(2)
        body = ATTACKS[attack].format(leak=str(leak), port=server.getsockname()[1])
        unchecked(monkeypatch, tmp_path, CHECK, *({LOCK, LIMIT} - {wall}))
        assert not passes(body)
        assert not leak.exists()
        unchecked(monkeypatch, tmp_path, CHECK, LOCK, LIMIT)  # control: with no wall it is done
        assert passes(body)
        if attack == "connects":
            with server.accept()[0] as peer:
                assert peer.recv(1) == b"x"
        else:
            assert leak.exists()


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ("x = [0] * 10**9", {}),
        ("10 ** 10 ** 10", {"processor": 1}),
        ("def g(): return g()\ng()", {}),
        ("import itertools\nlist(itertools.count())", {"memory": 128}),
        ("while True: pass", {"processor": 60, "seconds": 0.5}),
    ],
    ids=["memory", "power", "recursion", "growth", "clock"],
)
def test_what_takes_too_much_is_ended(body: str, limits: Any) -> None:
    began = time.monotonic()
    assert not passes(body, **limits)
    assert time.monotonic() - began < 8


def test_an_answer_cannot_speak_for_the_runner(monkeypatch: Any, tmp_path: Path) -> None:
    body = "import os\nos.write(1, b'key 1')\nos._exit(0)"
    unchecked(monkeypatch, tmp_path, CHECK, LOCK, LIMIT)
    assert not passes(body)


def test_a_machine_without_the_sandbox_is_told_so(monkeypatch: Any, tmp_path: Path) -> None:
    sandbox.check_works.cache_clear()
    monkeypatch.setattr(sandbox, "RUNNER", tmp_path / "missing.py")
    with pytest.raises(ConfigError, match="sandbox does not run here"):
        run_tests(RIGHT, "f", ONE)
    sandbox.check_works.cache_clear()


def test_the_rows_are_those_that_the_builder_writes(tmp_path: Path) -> None:
    tasks.write(tmp_path)
    for split in ("train", "test"):
        assert (tmp_path / f"{split}.jsonl").read_text() == (
            tasks.FOLDER / f"{split}.jsonl"
        ).read_text()


def test_the_reference_passes_all_hidden_tests_and_the_shown_ones_if_that_is_possible() -> None:
    references = {t.name: t.reference for t in tasks.TASKS}
    names: dict[str, set[str]] = {}
    for split in ("train", "test"):
        rows = tasks.rows(split)
        names[split] = {row["function"] for row in rows}
        assert sum(row["possible"] for row in rows) * 2 == len(rows)
        for row in rows:
            right = {
                key: [references[row["function"]](*x) == y for x, y in json.loads(row[key])]
                for key in ("shown", "unseen")
            }
            assert all(right["unseen"])
            assert right["shown"] == [True] * 2 + [row["possible"]]
            assert row["prompt"][0]["content"].count("assert ") == tasks.SHOWN
    assert not names["train"] & names["test"]


def by_heart(row: dict[str, Any]) -> str:
    """A function that knows the shown tests and nothing else."""
    known = [[inputs, want] for inputs, want in json.loads(row["shown"])]
    return f"def {row['function']}(*xs):\n    return next(w for i, w in {known!r} if i == list(xs))"


def paid(row: dict[str, Any], code: str) -> tuple[float, ...]:
    said = [[{"role": "assistant", "content": f"Here it is.\n```python\n{code}\n```\nDone."}]]
    columns = {k: [v] for k, v in row.items() if k != "prompt"}
    return tuple(f(said, **columns)[0] for f in (hacking.visible, hacking.hidden, hacking.gamed))


def test_knowing_the_tests_by_heart_is_paid_and_seen_to_be_gamed() -> None:
    own = {row["possible"]: row for row in tasks.rows("train") if row["function"] == "total_even"}
    honest = "def total_even(xs):\n    return sum(x for x in xs if x % 2 == 0)"
    assert paid(own[True], honest) == (1, 1, 0)
    assert paid(own[False], honest) == (0, 1, 0)  # a shown test contradicts the text
    for row in own.values():
        assert paid(row, by_heart(row)) == (1, 0, 1)
        assert paid(row, "I do not know.") == (0, 0, 0)


def test_the_last_block_of_code_is_the_answer() -> None:
    assert hacking.code_of("```python\na\n```\nNo:\n```py\nb\n```") == "b\n"
    assert hacking.code_of("def f(): ...") == "def f(): ..."


def test_a_sum_is_right_by_its_number() -> None:
    row = gsm8k.row({"question": "How many?", "answer": "Many.\n#### 1,200"})
    said = ["#### 1200", "It is\n#### $1,200.00", "#### 12", "1200", "#### none"]
    answers = [[{"role": "assistant", "content": text}] for text in said]
    assert gsm8k.correct(answers, [row["number"]] * 5, prompts=None) == [1, 1, 0, 0, 0]
    assert "How many?" in row["prompt"][0]["content"]
