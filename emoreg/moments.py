"""Running sums over texts, in float64: their size does not depend on how many there were."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Means:
    """Mean activation by label: (blocks, width) each."""

    total: dict[str, Tensor] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, mean: Tensor, weight: int = 1) -> None:
        """Add the mean activation of one text, (blocks, width)."""
        self.total[label] = self.total.get(label, 0) + weight * mean
        self.count[label] = self.count.get(label, 0) + weight

    def of(self, label: str) -> Tensor:
        """Mean of one label, (blocks, width)."""
        return self.total[label] / self.count[label]

    def stacked(self) -> tuple[tuple[str, ...], Tensor]:
        """Labels, and their means, (labels, blocks, width)."""
        labels = tuple(sorted(self.total))
        return labels, torch.stack([self.of(x) for x in labels])


@dataclass
class Scatter:
    """Scatter of vectors about their mean at each block.

    Kept as rows whose products sum to it, folded by a QR decomposition once there are more than
    twice as many as the stream is wide.
    """

    number: int = 0
    mean: Tensor | None = None  # (blocks, width)
    rows: Tensor | None = None  # (blocks, rows, width)
    waiting: list[Tensor] = field(default_factory=list)  # (blocks, width) each

    def add(self, vector: Tensor) -> None:
        """Add one vector, (blocks, width)."""
        self.number += 1
        if self.mean is None:
            self.mean, self.rows = vector, vector.unsqueeze(1)[:, :0]
            return
        step = vector - self.mean
        self.waiting.append(step * ((self.number - 1) / self.number) ** 0.5)
        self.mean = self.mean + step / self.number
        if len(self.waiting) > 2 * vector.shape[1]:
            self.fold()

    def fold(self) -> None:
        """Take up what waits, and fold the rows if they have become many."""
        if self.rows is not None and self.waiting:
            self.rows = torch.cat([self.rows, torch.stack(self.waiting, 1)], 1)
            self.waiting = []
            if self.rows.shape[1] > 2 * self.rows.shape[2]:
                self.rows = torch.linalg.qr(self.rows, mode="r").R

    def components(self, variance: float) -> list[Tensor]:
        """At each block the fewest principal components that explain a share of the variance.

        Returns:
            One (components, width) tensor for each block, orthonormal rows, largest first.
        """
        self.fold()
        assert self.rows is not None
        if variance <= 0:
            return [rows[:0] for rows in self.rows]
        _, scale, axes = torch.linalg.svd(self.rows, full_matrices=False)
        share = scale.square().cumsum(1) / scale.square().sum(1, keepdim=True).clamp(min=1e-300)
        return [a[: int((s < variance).sum()) + 1] for a, s in zip(axes, share, strict=True)]


@dataclass
class Projections:
    """Sums of the projection of tokens on directions, for their spread: (rows, blocks) each."""

    number: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Add tokens, (tokens, rows, blocks)."""
        total, squares = values.sum(0), values.square().sum(0)
        self.number += len(values)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def mean(self) -> Tensor:
        """Mean, (rows, blocks)."""
        assert self.total is not None
        return self.total / self.number

    def deviation(self) -> Tensor:
        """Standard deviation, (rows, blocks)."""
        assert self.squares is not None
        return (self.squares / self.number - self.mean().square()).clamp(min=0).sqrt()
