"""From captured block outputs to the terms of the loss; for trainers and for plain loops alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from emoreg.config import EmoRegConfig
from emoreg.errors import UnknownEmotionError
from emoreg.losses import Pool, Unit, keep, penalty, pooled_sum, reward
from emoreg.probe import Probe
from emoreg.tokens import Counted
from emoreg.vectors import EmotionVectors

Acts = Mapping[int, Tensor]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Sums over what counts in a batch; divided by their number they are means."""

    loss: Tensor  # scalar, task-loss units times `number`, with gradient
    number: Tensor  # scalar, how many tokens or sequences the loss is summed over
    sums: dict[str, tuple[Tensor, Tensor]]  # metric without prefix -> sum and number, detached

    def mean(self, name: str) -> float:
        """The mean of one metric, 0 where nothing counts."""
        total, number = self.sums[name]
        return float(total / number.clamp(min=1))


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

    def read(self, acts: Acts, at: Tensor) -> Tensor:
        """Readings at flat positions of outputs (batch, tokens, width).

        Returns:
            In σ, (blocks, positions, rows).
        """
        device = next(iter(acts.values())).device
        if self.probe.mu.device != device:
            self.probe = self.probe.to(device)
        at = at.to(device)
        return self.probe.read({b: acts[b].flatten(0, 1)[at] for b in self.probe.blocks})

    def __call__(
        self,
        acts: Acts,
        counted: Counted,
        base: Acts | Tensor | None = None,
        scale: float = 1.0,
        by: Unit = "tokens",
    ) -> Terms:
        """The terms of one batch.

        Args:
            acts: Block -> output of the policy, (batch, tokens, width).
            counted: Which tokens count, (batch, tokens).
            base: The same of the base, or its readings (blocks, counted, rows); for the anchor, the
                keep term and the excess.
            scale: Factor on every weight, as from a warm-up.
            by: Whether the loss is a sum over ``tokens``, or over ``sequences`` of each one's mean.

        Returns:
            Sums over what counts; the loss over the sides that the terms act on.
        """
        at = counted.mask.flatten().nonzero().squeeze(1)
        reading = self.read(acts, at)  # (blocks, counted, rows)
        at = at.to(reading.device)
        before = base if base is None or isinstance(base, Tensor) else self.read(base, at)
        tokens = torch.tensor(len(at), device=reading.device)
        sums = {k: (v, tokens) for k, v in self._vitals(reading.detach(), before).items()}
        sums |= dict(self._by_side(reading.detach(), counted, at))
        norms = [h.detach().flatten(0, 1)[at].float().norm(dim=-1).sum() for h in acts.values()]
        sums["norm"] = (torch.stack(norms).mean(), tokens)
        acted = counted.of(self.config.emoreg_sides or ())
        number = acted.number(by).to(reading.device)
        if acted is not counted:
            kept = acted.mask.to(at.device).flatten()[at]
            reading, at = reading[:, kept], at[kept]
            before = None if before is None else before[:, kept]
        sequence = counted.sequence.to(at.device).flatten()[at]
        loss, terms = self._weighted(reading, before, sequence, scale, by)
        terms["loss"] = loss.detach()
        return Terms(loss, number, sums | {k: (v, number) for k, v in terms.items()})

    def _weighted(
        self, reading: Tensor, before: Tensor | None, sequence: Tensor, scale: float, by: Unit
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
                total = pooled_sum(value, sequence, pool, by)
                sums[f"{kind}/{emotion}"] = total.detach()
                if weight > 0:
                    loss = loss + scale * weight * total
        if before is not None and self._others:
            excess = keep((reading - before)[..., self._others]).mean(0)
            total = pooled_sum(excess, sequence, "mean", by)
            sums["keep"] = total.detach()
            if config.emoreg_keep > 0:
                loss = loss + scale * config.emoreg_keep * total
        return loss, sums

    def _anchor(self, before: Tensor | None, rows: list[int]) -> Tensor | float:
        """What a reading is compared with: the base's of the same token, or 0."""
        if before is not None and self.config.emoreg_anchor == "base":
            return before[..., rows]
        return 0.0

    def _by_side(
        self, reading: Tensor, counted: Counted, at: Tensor
    ) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Readings of what is penalised or rewarded, by the side of the sequence."""
        watched = (*self.config.penalize, *self.config.reward)
        for side, rows in counted.sides.items():
            here = rows.to(at.device)[at // counted.mask.shape[1]]
            for emotion in watched:
                total = reading[:, here][..., self.probe.of(emotion)].mean((0, -1)).sum()
                yield f"reading_{side}/{emotion}", (total, here.sum())

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
