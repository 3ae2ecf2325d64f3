"""Sums, counts and maxima of what is measured between two log lines."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from emoreg.vitals import Names


class Meter:
    """Averages and maxima by name; everything stays on its device until it is drained."""

    def __init__(self) -> None:
        self._sums: dict[Names, tuple[Tensor, Tensor | float]] = {}
        self._peaks: dict[Names, Tensor] = {}

    def add(self, names: Names, totals: Tensor, count: Tensor | float) -> None:
        """Add a sum for each name, (names,), and the number of things they were taken over."""
        before, number = self._sums.get(names, (0.0, 0.0))
        self._sums[names] = (before + totals, number + count)

    def peak(self, names: Names, values: Tensor) -> None:
        """Take in a maximum for each name, (names,)."""
        before = self._peaks.get(names)
        self._peaks[names] = values if before is None else torch.maximum(before, values)

    def drain(self, accelerator: Any, prefix: str = "") -> dict[str, float]:
        """Means and maxima over all processes, then start again; a call of every process.

        Args:
            accelerator: Of the trainer.
            prefix: Of every name that is returned.

        Returns:
            Names without anything counted are left out.
        """
        device = accelerator.device
        sums, peaks = self._sums, self._peaks
        self._sums, self._peaks = {}, {}
        keys, tops = _of_all(accelerator, list(sums)), _of_all(accelerator, list(peaks))
        found: dict[str, float] = {}
        if keys:
            parts = [_row(sums.get(names), len(names), device) for names in keys]
            table = accelerator.reduce(torch.cat(parts, 1), "sum").double().cpu()
            flat = [name for names in keys for name in names]
            means = (table[0] / table[1].clamp(min=1)).tolist()
            counts = table[1].tolist()
            found |= {n: mean for n, mean, c in zip(flat, means, counts, strict=True) if c}
        if tops:
            lowest = float("-inf")
            rows = [
                peaks.get(names, torch.full((len(names),), lowest)).float().to(device)
                for names in tops
            ]
            highest = accelerator.gather(torch.cat(rows)[None]).amax(0).tolist()
            flat = [name for names in tops for name in names]
            found |= {n: x for n, x in zip(flat, highest, strict=True) if x > lowest}
        # Every line of a log has the same names: one copy of each is enough.
        return {sys.intern(prefix + name): value for name, value in found.items()}


def _of_all(accelerator: Any, names: list[Names]) -> list[Names]:
    """The names that any process has, in one order: one may have met nothing of some kind."""
    if accelerator.num_processes == 1:
        return names
    return sorted({name for found in gather_object([names]) for name in found})


def _row(found: tuple[Tensor, Tensor | float] | None, size: int, device: Any) -> Tensor:
    """Sums and counts of some names, (2, names)."""
    if found is None:
        return torch.zeros(2, size, device=device)
    totals, count = found
    number = torch.as_tensor(count, dtype=torch.float32, device=device)
    return torch.stack([totals.float().to(device), number.expand(size)])
