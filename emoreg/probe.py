"""Directions of one facet, and several facets stacked for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emoreg.losses import readings

UNIT_TOLERANCE = 1e-3


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

    def problems(self, blocks: int, width: int) -> list[str]:
        """What is wrong with it, if it is to be of so many blocks and of this width."""
        if not all(isinstance(e, str) for e in self.emotions):
            return [f"{self.name}: emotions are names, found {self.emotions!r:.99}"]
        if len(set(self.emotions)) != len(self.emotions) or not self.emotions:
            return [f"{self.name}: an emotion stands twice, or there is none"]
        shape = (len(self.emotions), blocks, width)
        found = (tuple(self.directions.shape), tuple(self.sigma.shape))
        if found != (shape, shape[:2]):
            return [f"{self.name}: shapes {found[0]}, {found[1]}; wanted {shape}"]
        types = {self.directions.dtype, self.sigma.dtype}
        if types != {torch.float32}:
            return [f"{self.name}: {' and '.join(map(str, types))}; wanted torch.float32"]
        return list(self._bad_values())

    def _bad_values(self) -> Iterator[str]:
        finite = self.directions.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            bad = [e for e, whole in zip(self.emotions, finite, strict=True) if not whole]
            yield f"{self.name}: NaN or infinite directions for {', '.join(bad)}"
            return
        off = (self.directions.norm(dim=-1) - 1).abs()
        if bool((off > UNIT_TOLERANCE).any()):
            worst = f"{self.emotions[int(off.amax(1).argmax())]} is off by {off.max():.3g}"
            yield f"{self.name}: directions are not of unit length ({worst})"
        if not bool((self.sigma.isfinite() & (self.sigma > 0)).all()):
            yield f"{self.name}: sigma must be positive and finite"


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
