"""Rows that accelerate repeats at the end of an evaluation, so that every process has as many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from emoreg.tokens import Counted


def without_repeats(counted: Counted, accelerator: Any, branches: int) -> Counted:
    """The same without the rows that other processes have read already.

    Args:
        counted: What is read of a batch of an evaluation, on this process.
        accelerator: Of the trainer, whose loader has just given the batch.
        branches: How many sequences one item of the data set has.
    """
    found = _own(accelerator)
    if found is None:
        return counted
    size, own = found
    item = _items(counted, size, max(branches, 1))
    if item is None:
        return counted
    first = item < own  # bool, (batch, tokens)
    places = {name: mask & first for name, mask in counted.places.items()}
    return replace(counted, mask=counted.mask & first, places=places)


def _own(accelerator: Any) -> tuple[int, int] | None:
    """Items of this process in the batch, and how many of them are its own.

    None if all are: every other batch, one process, and where nothing is repeated. The rule is that
    of `Accelerator.gather_for_metrics`: of the last batches of all processes, one behind the other,
    so many are no repeats.
    """
    number, state = accelerator.num_processes, accelerator.gradient_state
    if number == 1 or not accelerator.even_batches or not state.end_of_dataloader:
        return None
    left, loader = state.remainder, state.active_dataloader
    if left <= 0 or loader is None:
        return None
    size = int(loader.total_batch_size) // number
    own = min(max(left - accelerator.process_index * size, 0), size)
    return None if own == size else (size, own)


def _items(counted: Counted, size: int, branches: int) -> Tensor | None:
    """The place in its batch of the item that a token is of, (batch, tokens); None if not known.

    The rows of a batch of preferences are those of one side, then those of the next.
    """
    rows = len(counted.mask)
    if rows % size == 0:
        at = torch.arange(rows, device=counted.mask.device)
        return (at % size)[:, None].expand_as(counted.mask)
    flat = counted.sequence  # all in one row, without padding
    if rows == 1 and int(flat.max()) + 1 == size * branches:
        return flat % size
    return None
