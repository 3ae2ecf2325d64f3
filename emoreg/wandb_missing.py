"""What a killed run had logged to wandb offline and wandb had not yet written, logged once more.

wandb's service writes blocks of 32 KiB, and dies with the run: the last lines before a kill, in a
short run all of them, are not in its file. The journal has them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import rewrite_logs

from emoreg.wandb_metrics import STEP, define

BLOCK, HEADER, START = 32768, struct.Struct("<IHB"), 7  # of LevelDB's log; bytes before the first
WHOLE, LAST = 1, 4  # kinds of parts that end a record
SUMMARY = (  # what the trainer's WandbCallback puts into the summary alone
    *("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"),
    "total_flos",
)


def fill(run: Any, lines: Iterable[tuple[int, Mapping[str, Any]]], defined: set[str]) -> int:
    """Log the lines that the earlier pieces of a run which goes on offline do not hold.

    Args:
        run: The run, opened with the id of the earlier pieces.
        lines: Step and values of every line of the trainer's log up to the checkpoint.
        defined: Names that wandb knows the summary of, see `define`.

    Returns:
        How many lines were missing.
    """
    pieces = earlier(run) if run.offline else []
    held: dict[int, set[str]] = {}
    for piece in pieces:
        for row in history(piece):
            held.setdefault(int(row.get(STEP, -1)), set()).update(row)
    missing = 0
    for step, logs in lines if pieces else ():
        known = {k: v for k, v in logs.items() if v is not None and k not in SUMMARY}
        row = rewrite_logs(known)
        if row.keys() - held.get(step, set()):
            define(run, row, defined)
            run.log({**row, STEP: step})
            missing += 1
    return missing


def earlier(run: Any) -> list[Path]:
    """The files of the pieces before this one, which lie beside its own."""
    own = Path(run.settings.sync_file)
    return sorted(p for p in own.parent.parent.glob(f"*-{run.id}/{own.name}") if p != own)


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ``.wandb`` file; the parts of a nested name joined by ``/``."""
    for record in records(path.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            yield {
                i.key or "/".join(i.nested_key): json.loads(i.value_json)
                for i in record.history.item
            }


def records(data: bytes) -> Iterator[Any]:
    """The records of a ``.wandb`` file, up to the first that is not all there."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

    at, parts = START, b""
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:  # none fits before the end of a block
            at += left
            continue
        _checksum, size, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        if at + size > len(data):
            return
        parts += data[at : at + size]
        at += size
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""
