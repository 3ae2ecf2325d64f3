"""What the processes of a run must agree on, lest one waits for another."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

Found = TypeVar("Found")


def first_process() -> bool:
    """Whether this process is the one that reads and writes files."""
    return not _several() or distributed.get_rank() == 0


def shared(found: Found) -> Found:
    """What the first process has, on every process; all must call it."""
    if not _several():
        return found
    box = [found]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def _several() -> bool:
    on = distributed.is_available() and distributed.is_initialized()
    return on and distributed.get_world_size() > 1
