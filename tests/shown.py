"""The commands that the pages show, and a folder like a clone in which they are run."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import pytest
from markdown_pages import ROOT, pages

from emoreg.cli import main

LINKED = ("emoreg", "recipes", "accelerate_configs", "examples")
BANK = "small-bank.jsonl"  # in the folder
NOT_RUN = ("make", "pip")


def kind(words: Sequence[str]) -> str:
    """What a command runs: a script's name, or a command of emoreg."""
    at = 0 if words[0] in ("accelerate", *NOT_RUN) else 1
    return Path(words[at]).name


def hub(words: Sequence[str]) -> bool:
    """Whether a command needs a model of the hub, or what such a one has left."""
    return any("qwen" in word.lower() for word in words) or "my-bank" in words


def block_commands() -> dict[str, list[list[str]]]:
    """Every bash block by its page and number, as commands."""
    found = {}
    for page in pages():
        for number, block in enumerate(page.blocks("bash"), 1):
            lines = [shlex.split(line, comments=True) for line in block.splitlines()]
            found[f"{page.path.name} {number}"] = [words for words in lines if words]
    return found


BLOCKS = block_commands()
RUN = {  # what can be run here
    name: found
    for name, block in BLOCKS.items()
    if (found := [w for w in block if not hub(w) and w[0] not in NOT_RUN])
}


def run(words: Sequence[str], more: Sequence[str] = ()) -> None:
    """A command, with more flags, in this process; `accelerate launch` is its script alone."""
    if words[0] == "emoreg":
        main([*words[1:], *more])
        return
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words[at:], *more])
        runpy.run_path(words[at], run_name="__main__")


def clone(root: Path, copied: Sequence[str] = ()) -> Path:
    """Make a folder hold what a clone holds, and a small bank."""
    for name in LINKED:
        if name in copied:
            shutil.copytree(ROOT / name, root / name)
        else:
            (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "vectors/tiny", root / "vectors/tiny")
    small_bank(root / BANK)
    return root


def small_bank(path: Path) -> None:
    """Enough for an extraction, a validation, an audit and a refit of the embedded model."""
    rows: list[dict[str, Any]] = []
    for split, i in product(("fit", "held-out"), range(6)):
        about = {"split": split, "topic": f"{split} {i}"}
        for label in ("desperate", "calm", "neutral"):
            said = [
                {"role": "user", "content": f"{label} {i}, what now?"},
                {"role": "assistant", "content": f"{split} {label}."},
            ]
            rows.append({"kind": "transcript", "label": label, "messages": said, **about})
            if label != "neutral":
                text = f"{split} {i} {label} " * 16  # something is left after the fiftieth token
                rows.append({"kind": "story", "label": label, "text": text, **about})
    notes = (f"The {thing} lies on the table. " * 10 for thing in ("cup", "pen"))
    rows += [{"kind": "neutral", "text": note} for note in notes]
    path.write_text("\n".join(map(json.dumps, rows)))


def enter(root: Path, patch: Any) -> None:
    """Work in a folder, with caches of its own, and give back what recipes set."""
    patch.chdir(root)
    patch.setenv("EMOREG_CACHE", str(root / "cache"))
    patch.setenv("WANDB_PROJECT", "")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "data")
