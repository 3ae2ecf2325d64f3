"""What is logged of a batch: means of readings over groups of its tokens, by one small product.

A reading is linear in the activation, so the mean reading of many tokens is the reading of their
mean activation: whatever the number of emotions, each block costs one product of the groups'
weights with its output. Only what is not linear, the top tenth, the maximum and the share beyond
the margin, needs every token's own reading, and is taken of the emotions that are watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from emoreg.losses import pooled_sum
from emoreg.probe import Probe
from emoreg.tokens import COUNTED, Counted

Acts = Mapping[int, Tensor]
Names = tuple[str, ...]
Sums = dict[Names, tuple[Tensor, Tensor]]  # names -> a sum for each, (names,), and the number
CHUNK = 4096  # tokens whose float32 copies are alive at a time


@dataclass(frozen=True)
class Vitals:
    """What is logged of one probe's readings.

    Attributes:
        probe: Every row, on its device.
        emotions: Logged by their means; every one has a row.
        watched: Logged in full.
    """

    probe: Probe
    emotions: tuple[str, ...]
    watched: tuple[str, ...]

    @cached_property
    def _average(self) -> Tensor:
        """Mean over the facets of each emotion, (rows, emotions)."""
        table = self.probe.mu.new_zeros(len(self.probe.rows), len(self.emotions))
        for column, emotion in enumerate(self.emotions):
            rows = self.probe.of(emotion)
            table[rows, column] = 1 / len(rows)
        return table

    @cached_property
    def _columns(self) -> Tensor:
        return self._index([self.emotions.index(e) for e in self.watched])

    @cached_property
    def _rows(self) -> Tensor:
        return self._index([row for e in self.watched for row in self.probe.of(e)])

    @cached_property
    def _facets(self) -> Names:
        rows = (self.probe.rows[row] for e in self.watched for row in self.probe.of(e))
        return tuple(f"reading/{emotion}/{facet}" for facet, emotion in rows)

    def _index(self, at: list[int]) -> Tensor:
        """A tensor: a list would be sent to the device, and waited for, at every use."""
        return torch.tensor(at, dtype=torch.long, device=self.probe.mu.device)

    def means(self, acts: Acts, counted: Counted, base: Acts | Tensor | None = None) -> Sums:
        """Mean readings by place and side, by facet and block, the excess, and norms.

        Args:
            acts: Block -> output of the policy, (batch, tokens, width).
            counted: Which tokens are read.
            base: The same of the base, or its readings (blocks, counted, rows).

        Returns:
            Sums over tokens, without gradient, on the probe's device.
        """
        names, at, groups = counted.groups
        sums, norms = summed(self.probe, acts, at, groups)
        number = groups.sum(1).to(sums.device)
        by_emotion = sums.mean(0) @ self._average  # (groups, emotions)
        found: Sums = {}
        for i, group in enumerate(names):
            everything = group in (COUNTED, "colon", "completion")
            kind = "reading" if group == COUNTED else f"reading_{group}"
            keys = self._named(kind, self.emotions if everything else self.watched)
            mean = by_emotion[i]
            found[keys] = (mean if everything else mean[self._columns], number[i])
        at_all = names.index(COUNTED)
        own, count = sums[:, at_all], number[at_all]
        found |= self._in_detail(own, norms[at_all], count)
        if base is not None:
            before = self._before(base, counted)
            found[self._named("excess", self.emotions)] = (
                (own - before).mean(0) @ self._average,
                count,
            )
        return found

    def _before(self, base: Acts | Tensor, counted: Counted) -> Tensor:
        """Sums of the base's readings over what counts, (blocks, rows)."""
        if isinstance(base, Tensor):
            return base.sum(1)
        names, at, groups = counted.groups
        return summed(self.probe, base, at, groups)[0][:, names.index(COUNTED)]

    def _in_detail(self, own: Tensor, norms: Tensor, count: Tensor) -> Sums:
        """Facets and blocks of what is watched, and the length of the activation."""
        found: Sums = {self._facets: (own.mean(0)[self._rows], count)} if self._facets else {}
        by_block = (own @ self._average)[:, self._columns]  # (blocks, watched)
        for i, block in enumerate(self.probe.blocks):
            found[self._named(f"reading_block_{block}", self.watched)] = (by_block[i], count)
        lengths = tuple(f"norm_block_{block}" for block in self.probe.blocks)
        return found | {lengths: (norms, count), ("norm",): (norms.mean(0, keepdim=True), count)}

    def spread(self, reading: Tensor, anchor: Tensor | float, margin: float, at: Tensor) -> Sums:
        """Of every token's own reading: the top tenth of each sequence, and the share beyond.

        Args:
            reading: Of the watched emotions, mean over blocks and facets, (counted, watched).
            anchor: What it is compared with, shaped alike or 0.
            margin: In σ.
            at: The sequence of each token, (counted,).

        Returns:
            Sums over tokens.
        """
        count = torch.full((), len(reading), device=reading.device)
        beyond = (reading - anchor > margin).sum(0)
        return {
            self._named("over_margin", self.watched): (beyond, count),
            self._named("top", self.watched): (pooled_sum(reading, at, "top"), count),
        }

    @staticmethod
    def _named(kind: str, emotions: Sequence[str]) -> Names:
        return tuple(f"{kind}/{e}" for e in emotions)


def summed(probe: Probe, acts: Acts, at: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of readings and of lengths over groups of tokens.

    Args:
        probe: Which directions.
        acts: Block -> output, (batch, tokens, width).
        at: Flat positions of the tokens that are in any group, (tokens,).
        groups: Which token is in which group, bool, (groups, tokens).

    Returns:
        Readings in σ, (blocks, groups, rows), and lengths, (groups, blocks).
    """
    device, readings, norms = probe.mu.device, [], []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        number = groups.sum(1, keepdim=True).to(device, torch.float32)
        for i, block in enumerate(probe.blocks):
            total = number.new_zeros(len(groups), probe.mu.shape[1])
            length = number.new_zeros(len(groups))
            for place, which in zip(at.split(CHUNK), groups.split(CHUNK, 1), strict=True):
                h = picked(acts[block], place)
                weights, lengths = which.to(h.device, torch.float32), h.norm(dim=-1)
                # 0 times infinity is NaN: it is to be one in the groups that hold it alone.
                off = ~lengths.isfinite()
                lost = weights @ off.float() > 0
                part = weights @ h.masked_fill_(off[:, None], 0)
                total += part.masked_fill(lost[:, None], torch.nan).to(device)
                part = weights @ lengths.masked_fill(off, 0)
                length += part.masked_fill(lost, torch.nan).to(device)
            found = (total - number * probe.mu[i]) @ probe.directions[i].mT
            readings.append(found / probe.sigma[i])
            norms.append(length)
    return torch.stack(readings), torch.stack(norms, 1)


def picked(act: Tensor, at: Tensor) -> Tensor:
    """Outputs at flat positions, float32 and a copy, (tokens, width), where the block lies."""
    return act.detach().flatten(0, 1)[at.to(act.device)].float()
