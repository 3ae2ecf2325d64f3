"""What the README shows is run nearly as it stands: for minutes, so all of it is slow."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_pages import ROOT
from models import causal_lm, tokenizer
from shown import BANK, BLOCKS, RUN, clone, enter, kind, run
from test_recipes import ROWS, small
from zoo import at_home

from emoreg.journal import Run

pytestmark = pytest.mark.slow
GPU = "recipes/qwen2.5-0.5b-instruct/sft/emoreg.yaml"
SHORT = {"max_steps": 4, "eval_steps": 4, "logging_steps": 1, "emoreg_bank": BANK}
RUNS = Path("runs/qwen2.5-0.5b-instruct/sft")


def rows_of_the_hub(folder: Path, row: dict[str, Any]) -> None:
    """A data set with a row of the hub's columns, in both splits."""
    folder.mkdir(parents=True)
    files = [{"split": split, "path": f"{split}.jsonl"} for split in ("train", "test")]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{head}---\n")
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 8)


def added(arm: str) -> set[float]:
    """What emoreg added to the loss of a run."""
    return {logs["emoreg/loss"] for _, logs in Run.load(RUNS / arm).logs if "emoreg/loss" in logs}


def test_the_block_for_a_gpu_goes_from_a_clone_to_a_controlled_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and data are small ones in folders of the hub's names, so the commands are the same."""
    block = next(b for b in BLOCKS.values() if any(GPU in words for words in b))
    enter(clone(tmp_path), monkeypatch)
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1}
    model = causal_lm("qwen2", bos_token_id=None, max_position_embeddings=2048, **ids)
    at_home(model, Path("Qwen/Qwen2.5-0.5B-Instruct"))
    rows_of_the_hub(Path("trl-lib/Capybara"), ROWS["trl-lib/Capybara"])
    texts, training = ["--bank", BANK], [*small(ROOT / GPU), "--emoreg_bank", BANK]
    more = {"extract": texts, "validate": texts, "accelerate": training}
    ran = [words for words in block if words[0] != "pip"]
    for words in ran:
        run(words, more.get(kind(words), []))
    assert [*map(kind, ran)] == ["extract", "validate", "accelerate", "accelerate", "report"]
    assert min(added("emoreg")) > 0
    assert added("baseline") == {0.0}  # control
    assert "baseline" in (RUNS / "emoreg/report.html").read_text()


def labels(text: str) -> list[str]:
    """The first cells of the rows of printed tables."""
    return re.findall(r"^│ (.+?) +│", text, flags=re.MULTILINE)


@pytest.fixture(name="demo", scope="module")
def _demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a short demo was run, and what it printed."""
    root, said = clone(tmp_path_factory.mktemp("demo"), copied=("recipes",)), io.StringIO()
    for path in (root / "recipes/tiny/sft").glob("*.yaml"):  # 60 steps would take minutes
        text = path.read_text()
        for name, value in SHORT.items():
            text, count = re.subn(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.M)
            assert count == 1, f"{path} has no {name}"
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        enter(root, patch)
        run(["emoreg", "demo"])
    return root, said.getvalue()


def test_make_demo_is_the_command_that_is_run_here() -> None:
    assert re.search(r"^demo:.*\n\t.*/emoreg demo ", (ROOT / "Makefile").read_text(), flags=re.M)


def test_the_demo_prints_what_the_readme_shows(demo: tuple[Path, str]) -> None:
    root, printed = demo
    pasted = labels((ROOT / "README.md").read_text())
    assert len(pasted) >= 8
    assert [label for label in pasted if label not in labels(printed)] == []
    assert "emoreg: demo done in" in printed
    assert (root / "runs/demo/report.html").exists()


def test_what_is_measured_after_the_demo_runs_as_it_stands(
    demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(demo[0], monkeypatch)
    measured = [w for b in RUN.values() for w in b if kind(w) in ("drift", "report", "audit")]
    assert {*map(kind, measured)} == {"drift", "report", "audit"}
    for words in measured:
        run(words)
        assert capsys.readouterr().out
