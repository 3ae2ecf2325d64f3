"""Write files whole or not at all, and read JSON that anyone may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Any

PARTS = ("", "checkpoint-*/")  # of an output folder, in which files are written while it trains
DEEPEST = 64  # levels of lists and objects in JSON that is read


def write_atomic(path: Path, data: bytes | str) -> Path:
    """Write through a temporary file in the same folder, which is made if it is missing.

    Raises:
        OSError: The folder cannot be written or the disk is full; nothing is left behind.
    """
    write_together({path: data})
    return path


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """Write several files, none of which is replaced before all are on the disk.

    Raises:
        OSError: A folder cannot be written or the disk is full; nothing is left behind.
    """
    with ExitStack() as undo:
        written = []
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            number, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")
            undo.callback(Path(name).unlink, missing_ok=True)  # renamed files are gone by then
            try:
                with os.fdopen(number, "wb") as handle:
                    handle.write(data.encode("utf-8") if isinstance(data, str) else data)
                    handle.flush()
                    os.fsync(handle.fileno())
            except OSError as e:  # which does not say of what file
                raise OSError(e.errno, e.strerror, str(path)) from e
            os.chmod(name, 0o644)
            written.append((name, path))
        for name, path in written:
            os.replace(name, path)


def sweep(output: Path) -> None:
    """Remove the temporary files that a run which was killed while it wrote left in its folder."""
    for part in PARTS:
        for name in (".emoreg*.????????", ".report.html.????????"):
            for path in output.glob(part + name):
                with suppress(OSError):
                    path.unlink()


def parse_json(text: str, halves: bool = False) -> Any:
    """JSON from outside.

    Args:
        text: Of any origin.
        halves: Whether halves of characters, which no file can hold, are let be.

    Raises:
        ValueError: It is no JSON, is nested deeper than `DEEPEST`, or holds half a character.
    """
    deep = f"lists and objects are nested deeper than {DEEPEST} levels"
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(deep) from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(found):
        raise ValueError(deep)
    if not halves and ("\\ud" in text or "\\uD" in text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        lists = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        level = [inner for outer in lists for inner in outer]
    return bool(level)
