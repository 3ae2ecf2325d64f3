"""Directions of one facet, and several facets stacked for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emoreg.losses import readings


@dataclass(frozen=True)
class Facet:
    """One direction per emotion and block, from one kind of text."""

    name: str
    emotions: tuple[str, ...]
    directions: Tensor  # (emotions, blocks, width), float32, unit norm over width
    sigma: Tensor  # (emotions, blocks), float32, residual-stream units

    def only(self, blocks: list[int]) -> Facet:
        """The same facet at some of its blocks, given by position."""
        return replace(self, directions=self.directions[:, blocks], sigma=self.sigma[:, blocks])


@dataclass(frozen=True)
class Probe:
    """Directions stacked for reading: one row per facet and emotion, at some blocks."""

    rows: tuple[tuple[str, str], ...]  # (facet, emotion)
    blocks: tuple[int, ...]
    directions: Tensor  # (blocks, rows, width)
    mu: Tensor  # (blocks, width)
    sigma: Tensor  # (blocks, rows)

    def to(self, device: torch.device) -> Probe:
        """The same probe on a device."""
        moved = {k: getattr(self, k).to(device) for k in ("directions", "mu", "sigma")}
        return replace(self, **moved)

    def read(self, acts: Mapping[int, Tensor]) -> Tensor:
        """Readings in σ: block -> (..., width) gives (blocks, ..., rows), float32."""
        return torch.stack(
            [
                readings(acts[b].to(self.mu.device), self.directions[i], self.mu[i], self.sigma[i])
                for i, b in enumerate(self.blocks)
            ]
        )

    def only(self, rows: Sequence[int]) -> Probe:
        """The same probe with some of its rows, given by position."""
        at = list(rows)
        return replace(
            self,
            rows=tuple(self.rows[row] for row in at),
            directions=self.directions[:, at],
            sigma=self.sigma[:, at],
        )

    def beside(self, facets: Sequence[Facet]) -> Probe:
        """Other facets, of these blocks, read with the same mean activation."""
        return replace(
            self,
            rows=tuple((f.name, e) for f in facets for e in f.emotions),
            directions=torch.cat([f.directions for f in facets]).transpose(0, 1).to(self.mu),
            sigma=torch.cat([f.sigma for f in facets]).T.to(self.mu),
        )

    def joined(self, other: Probe) -> Probe:
        """The same probe with the rows of another one behind its own."""
        return replace(
            self,
            rows=(*self.rows, *other.rows),
            directions=torch.cat([self.directions, other.directions], 1),
            sigma=torch.cat([self.sigma, other.sigma], 1),
        )

    def index(self, rows: Sequence[int]) -> Tensor:
        """Rows as a tensor where the probe lies."""
        return torch.tensor(list(rows), dtype=torch.long, device=self.mu.device)

    def of(self, emotion: str) -> list[int]:
        """Rows that belong to an emotion."""
        return [i for i, (_, e) in enumerate(self.rows) if e == emotion]
