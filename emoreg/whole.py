"""Whether a checkpoint is whole: a run that is killed while it saves leaves one that is not."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer

from emoreg.errors import ConfigError

STATE = "trainer_state.json"  # the last file of a checkpoint that the trainer writes
SENTINEL = "checkpoint-is-incomplete.txt"  # there while the host saves on SIGTERM
NAME = re.compile(r"checkpoint-(\d+)")


def check(trainer: Trainer, given: Any) -> None:
    """Refuse a checkpoint that was cut off, before the trainer fails over it in its own words.

    Args:
        trainer: About to train.
        given: What `train` was given to resume from: a folder, True for the newest, or nothing.

    Raises:
        ConfigError: It is not whole; the message names the newest that is.
    """
    output = Path(str(trainer.args.output_dir))
    found = _newest_first(output)
    checkpoint = (found[0] if found else None) if given is True else given
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_dir():
        return  # a new start, or nothing there: the trainer says so
    problem = missing(Path(checkpoint))
    if not problem:
        return
    whole = next((str(p) for p in found if p != Path(checkpoint) and not missing(p)), None)
    instead = (
        f"Resume from the newest one that is whole: trainer.train(resume_from_checkpoint={whole!r})"
        if whole
        else "There is none that is whole: start at step 0, without resume_from_checkpoint"
    )
    raise ConfigError(
        f"{checkpoint} is not whole ({problem}): the run was cut off, or the disk was full, while "
        f"the trainer saved it. {instead}."
    )


def missing(checkpoint: Path) -> str:
    """What a checkpoint lacks, in words; nothing if it is whole.

    Sizes and frames are looked at, so that it takes no time; not every byte.
    """
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except FileNotFoundError:
        return f"{STATE} is missing"
    except (OSError, ValueError) as e:
        return f"{STATE} is cut off: {e}"
    if not isinstance(state, dict):
        return f"{STATE} is none"
    if (checkpoint / SENTINEL).exists():
        return f"{SENTINEL} is there"
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors" and not _is_framed(path):
            return f"{path.name} is cut off"
        if path.suffix in (".pt", ".pth") and _is_cut(path):
            return f"{path.name} is cut off"
    return ""


def _newest_first(output: Path) -> list[Path]:
    """The checkpoints in an output folder, as `get_last_checkpoint` orders them."""
    numbers = {
        path: int(match[1])
        for path in (output.iterdir() if output.is_dir() else ())
        if (match := NAME.fullmatch(path.name)) and path.is_dir()
    }
    return sorted(numbers, key=lambda path: -numbers[path])


def _is_framed(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with safe_open(path, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _is_cut(path: Path) -> bool:
    """Whether a file of `torch.save` lacks its end; of those that are no archive none is known."""
    with path.open("rb") as file:
        start = file.read(4)
    return not start or (start == b"PK\x03\x04" and not zipfile.is_zipfile(path))
