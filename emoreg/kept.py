"""Snapshots in a file that is whole or not there, and is known again or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emoreg.files import parse_json, write_atomic
from emoreg.snapshot import Snapshot

FORMAT = "emoreg-readings-1"


class NotThese(Exception):
    """A file that cannot be used, and why; never leaves this package.

    Attributes:
        unlike: Fields that are not those that were wanted.
    """

    def __init__(self, reason: str, unlike: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.unlike = tuple(unlike)


def write(path: Path, snapshots: Mapping[str, Snapshot], about: Mapping[str, Any]) -> None:
    """Write snapshots under their names.

    Args:
        path: The file; its folder is made.
        snapshots: Name -> snapshot; a name holds no slash.
        about: What `read` must find to accept them, as JSON can hold it.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    tensors = {f"{n}/{k}": t for n, s in snapshots.items() for k, t in s.tensors().items()}
    metadata = {
        "format": FORMAT,
        "about": json.dumps(about, sort_keys=True),
        "digest": _digest(tensors),
    }
    write_atomic(path, save(tensors, metadata))


def read(path: Path, about: Mapping[str, Any]) -> dict[str, Snapshot]:
    """Read what `write` wrote.

    Args:
        path: The file.
        about: Fields that must be the same; the file may have more.

    Raises:
        FileNotFoundError: There is none.
        NotThese: It is damaged, of another format, or of something else.
    """
    try:
        with safe_open(path, "np") as held:
            metadata = held.metadata() or {}
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as e:
        raise NotThese(f"it is damaged or cannot be read: {e}") from e
    if metadata.get("format") != FORMAT:
        raise NotThese(f"its format is {metadata.get('format')!r}, wanted {FORMAT!r}")
    if metadata.get("digest") != _digest(tensors):
        raise NotThese("it is damaged: its contents are not those that were written")
    try:
        found = dict(parse_json(metadata["about"]))
    except (KeyError, TypeError, ValueError) as e:
        raise NotThese(f"it is damaged: it does not say what it is of ({e!r})") from e
    wanted = json.loads(json.dumps(about))
    unlike = sorted(k for k in wanted if found.get(k) != wanted[k])
    if unlike:
        raise NotThese(
            "it was made with other "
            + ", ".join(f"{k} ({found.get(k)!r}, now {wanted[k]!r})" for k in unlike),
            unlike,
        )
    names = dict.fromkeys(name.split("/")[0] for name in tensors)
    try:
        return {
            n: Snapshot.of(
                {k.removeprefix(f"{n}/"): t for k, t in tensors.items() if k.startswith(f"{n}/")}
            )
            for n in names
        }
    except (KeyError, ValueError) as e:
        raise NotThese(f"it is damaged: it lacks {e} or has it in another form") from e


def digest(snapshot: Snapshot) -> str:
    """A hash of everything in a snapshot."""
    return _digest(snapshot.tensors())


def _digest(tensors: Mapping[str, Any]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        found.update(json.dumps([name, list(array.shape), str(array.dtype)]).encode())
        found.update(array.tobytes())
    return found.hexdigest()
