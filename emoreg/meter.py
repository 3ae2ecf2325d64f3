"""Sums and counts of what is measured between two log lines."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor


class Meter:
    """Averages by name; everything stays on its device until it is drained."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum and the number of things it was taken over."""
        before, number = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before + total, number + count)

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Means over all processes, then start again; every process must call it at the same time.

        Names without anything counted are left out.
        """
        names = sorted(self._sums)
        if accelerator.num_processes > 1:  # a process may have met nothing of some kind
            names = sorted({name for found in gather_object([names]) for name in found})
        device = accelerator.device
        flat = [
            torch.as_tensor(x, dtype=torch.float32, device=device)
            for n in names
            for x in self._sums.get(n, (0.0, 0.0))
        ]
        self._sums = {}
        if not flat:
            return {}
        table = accelerator.reduce(torch.stack(flat), "sum").reshape(-1, 2).tolist()
        return {
            name: total / count for name, (total, count) in zip(names, table, strict=True) if count
        }
