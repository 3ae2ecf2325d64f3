"""From captured block outputs to the terms of the loss; for trainers and for plain loops alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emoreg.config import EmoRegConfig
from emoreg.errors import UnknownEmotionError
from emoreg.losses import Pool, keep, penalty, pooled_sum, reward
from emoreg.probe import Probe
from emoreg.tokens import Counted
from emoreg.vectors import EmotionVectors

Acts = Mapping[int, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Sums over the counted tokens of a batch; divided by `tokens` each is a mean."""

    loss: Tensor  # scalar, task-loss units times tokens, with gradient
    tokens: Tensor  # scalar, how many tokens count
    sums: dict[str, Tensor]  # metric name without prefix -> scalar, detached


class EmotionTerms:
    """The penalise, reward and keep terms of one configuration.

    Args:
        vectors: The vector set.
        config: The knobs.

    Raises:
        UnknownEmotionError: The set lacks an emotion, facet or block that is asked for.
        VectorFileError: The set holds values that are not directions.
    """

    def __init__(self, vectors: EmotionVectors, config: EmoRegConfig) -> None:
        vectors.verify()
        if vectors.caveat:
            log.warning(vectors.caveat)
        vectors.require([*config.penalize, *config.reward])
        self.config = config
        self.probe: Probe = vectors.probe(config.emoreg_facets, config.emoreg_blocks)
        self.emotions = vectors.emotions
        watched = {**config.penalize, **config.reward}
        for emotion in (*config.penalize, *config.reward):
            if not self.probe.of(emotion):
                raise UnknownEmotionError(
                    f"None of the facets {config.emoreg_facets} holds {emotion!r}; the set has "
                    + "; ".join(f"{f.name}: {', '.join(f.emotions)}" for f in vectors.facets)
                )
        self._others = [i for i, (_, e) in enumerate(self.probe.rows) if e not in watched]

    def __call__(
        self, acts: Acts, counted: Counted, base: Acts | None = None, scale: float = 1.0
    ) -> Terms:
        """The terms of one batch.

        Args:
            acts: Block -> output of the policy, (batch, tokens, width).
            counted: Which tokens count, (batch, tokens).
            base: The same of the base, for the anchor and the keep term.
            scale: Factor on every weight, as from a warm-up.

        Returns:
            Sums over the counted tokens.
        """
        device = next(iter(acts.values())).device
        if self.probe.mu.device != device:
            self.probe = self.probe.to(device)
        at = counted.mask.to(device).flatten().nonzero().squeeze(1)
        sequence = counted.sequence.to(device).flatten()[at]
        picked = {b: acts[b].flatten(0, 1)[at] for b in self.probe.blocks}
        reading = self.probe.read(picked)  # (blocks, counted, rows)
        before = None
        if base is not None:
            before = self.probe.read({b: base[b].flatten(0, 1)[at] for b in self.probe.blocks})
        loss, sums = self._weighted(reading, before, sequence, scale)
        sums |= self._vitals(reading.detach(), before)
        norms = [h.detach().float().norm(dim=-1).sum() for h in picked.values()]
        sums["norm"] = torch.stack(norms).mean()
        sums["loss"] = loss.detach()
        return Terms(loss, torch.tensor(len(at), device=device), sums)

    def _weighted(
        self, reading: Tensor, before: Tensor | None, sequence: Tensor, scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and each term by itself."""
        config, loss, sums = self.config, reading.new_zeros(()), {}
        pool: Pool = "top" if config.emoreg_pool == "top" else "mean"
        for kind, term, weights in (
            ("penalty", penalty, config.penalize),
            ("reward", reward, config.reward),
        ):
            for emotion, weight in weights.items():
                rows = self.probe.of(emotion)
                anchor = self._anchor(before, rows)
                value = term(reading[..., rows], anchor, config.emoreg_margin).mean((0, -1))
                total = pooled_sum(value, sequence, pool)
                sums[f"{kind}/{emotion}"] = total.detach()
                if weight > 0:
                    loss = loss + scale * weight * total
        if before is not None and self._others:
            total = keep((reading - before)[..., self._others]).mean(0).sum()
            sums["keep"] = total.detach()
            if config.emoreg_keep > 0:
                loss = loss + scale * config.emoreg_keep * total
        return loss, sums

    def _anchor(self, before: Tensor | None, rows: list[int]) -> Tensor | float:
        """What a reading is compared with: the base's of the same token, or 0."""
        if before is not None and self.config.emoreg_anchor == "base":
            return before[..., rows]
        return 0.0

    def _vitals(self, reading: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        """Readings of every emotion, and how much of what is watched lies beyond the margin."""
        sums = {}
        by_row = reading.mean(0).sum(0)  # (rows,)
        for emotion in self.emotions:
            rows = self.probe.of(emotion)
            if not rows:
                continue  # a facet chosen by the user need not hold every emotion
            sums[f"reading/{emotion}"] = by_row[rows].mean()
            if before is not None:
                sums[f"excess/{emotion}"] = (reading - before)[..., rows].mean((0, -1)).sum()
        for emotion in self.config.penalize:
            rows = self.probe.of(emotion)
            for row in rows:
                sums[f"reading/{emotion}/{self.probe.rows[row][0]}"] = by_row[row]
            beyond = (reading[..., rows] - self._anchor(before, rows)).mean((0, -1))
            sums[f"over_margin/{emotion}"] = (beyond > self.config.emoreg_margin).float().sum()
        return sums
