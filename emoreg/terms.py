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
        return self.probe.read({b: h.to(device) for b, h in picked(acts, at)})

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
            counted: Which tokens count, (batch, tokens), and which of them the terms act on.
            base: The same of the base, or its readings (blocks, counted, rows); for the anchor, the
                keep term and the excess.
            scale: Factor on every weight, as from a warm-up.
            by: Whether the loss is a sum over ``tokens``, or over ``sequences`` of each one's mean.

        Returns:
            Sums over what counts; the loss over the sides that the terms act on.
        """
        if counted.rows is None:
            counted = counted.of(self.config.emoreg_sides or ())
        at = counted.positions
        reading = self.read(acts, at)  # (blocks, counted, rows)
        device = reading.device
        before = base if base is None or isinstance(base, Tensor) else self.read(base, at)
        tokens, number = (torch.tensor(n, device=device) for n in (len(at), counted.number(by)))
        sums = {k: (v, tokens) for k, v in self._vitals(reading.detach(), before).items()}
        sums |= dict(self._by_side(reading.detach(), counted))
        norms = [h.detach().float().norm(dim=-1).sum().to(device) for _, h in picked(acts, at)]
        sums["norm"] = (torch.stack(norms).mean(), tokens)
        if counted.acting is not None:
            kept = counted.acting.to(device)
            reading = reading[:, kept]
            before = None if before is None else before[:, kept]
        loss, terms = self._weighted(reading, before, counted.sequences.to(device), scale, by)
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
        self, reading: Tensor, counted: Counted
    ) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Readings of what is penalised or rewarded, by the side of the sequence."""
        row = counted.positions // counted.mask.shape[1]
        for side, rows in counted.sides.items():
            here = rows[row].to(reading)
            for emotion in (*self.config.penalize, *self.config.reward):
                value = reading[..., self.probe.of(emotion)].mean((0, -1))
                yield f"reading_{side}/{emotion}", ((value * here).sum(), here.sum())

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


def picked(acts: Acts, at: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Block and outputs at flat positions, (positions, width), each where its block lies."""
    return ((block, h.flatten(0, 1)[at.to(h.device)]) for block, h in acts.items())
