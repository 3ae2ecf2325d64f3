"""However a data set is shared out, an evaluation on several processes reads each row once."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from emoreg.repeats import without_repeats
from emoreg.tokens import Counted

TOKENS = 3


def shares(rows: int, processes: int, size: int) -> list[list[list[int]]]:
    """The rows of each batch of each process, as accelerate gives them out."""
    found = []
    for rank in range(processes):
        own = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
        shared = BatchSamplerShard(own, processes, rank, even_batches=True)
        found.append(list(shared if processes > 1 else own))  # of one process it leaves all be
    return found


def accelerator(rows: int, processes: int, size: int, rank: int, last: bool) -> Any:
    """What accelerate says while a batch is evaluated."""
    loader = SimpleNamespace(total_batch_size=size * processes)
    state = SimpleNamespace(
        end_of_dataloader=last, remainder=rows % loader.total_batch_size, active_dataloader=loader
    )
    return SimpleNamespace(
        num_processes=processes, process_index=rank, even_batches=True, gradient_state=state
    )


def counted(items: int, form: str) -> Counted:
    """Every token of a batch, of so many items."""
    sequences = items * (2 if "pairs" in form else 1)
    number = torch.arange(sequences).repeat_interleave(TOKENS)
    sequence = number.reshape(1, -1) if "flat" in form else number.reshape(sequences, TOKENS)
    mask = torch.ones_like(sequence, dtype=torch.bool)
    return Counted(mask, sequence, places={"completion": mask.clone()})


def read(rows: int, processes: int, size: int, form: str) -> Counter[int]:
    """How often each row is read, in whole sequences, over all processes."""
    found: Counter[int] = Counter()
    branches = 2 if "pairs" in form else 0
    for rank, batches in enumerate(shares(rows, processes, size)):
        for at, batch in enumerate(batches):
            told = accelerator(rows, processes, size, rank, at == len(batches) - 1)
            kept = without_repeats(counted(len(batch), form), told, branches)
            assert torch.equal(kept.places["completion"], kept.mask)
            for sequence in kept.sequence[kept.mask].tolist():
                found[batch[sequence % len(batch)]] += 1
    return found


@pytest.mark.parametrize("form", ["rows", "pairs", "flat", "flat pairs"])
def test_each_row_is_read_once_however_many_there_are(form: str) -> None:
    each = TOKENS * (2 if "pairs" in form else 1)
    for rows in range(1, 14):
        for processes in (1, 2, 3):
            for size in (1, 2, 3):
                assert read(rows, processes, size, form) == dict.fromkeys(range(rows), each)


def test_accelerate_does_repeat_rows() -> None:
    """The control of the test above."""
    given = Counter(row for own in shares(7, 2, 2) for batch in own for row in batch)
    assert given == {0: 2, **dict.fromkeys(range(1, 7), 1)}


@pytest.mark.parametrize("form", ["flat", "flat pairs"])
def test_of_packed_texts_nothing_is_left_out(form: str) -> None:
    """They do not tell where an item ends, so what may be repeated stays."""
    told = accelerator(7, 2, 2, 1, last=True)
    packed = counted(3, form)  # two items, one of which is two texts
    assert without_repeats(packed, told, 0) is packed
    told.even_batches = False  # nothing is repeated
    whole = counted(2, form)
    assert without_repeats(whole, told, 2) is whole
