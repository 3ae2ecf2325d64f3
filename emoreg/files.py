"""Write files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkstemp


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
            with os.fdopen(number, "wb") as handle:
                handle.write(data.encode("utf-8") if isinstance(data, str) else data)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(name, 0o644)
            written.append((name, path))
        for name, path in written:
            os.replace(name, path)
