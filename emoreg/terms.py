"""From captured block outputs to the terms of the loss; for trainers and for plain loops alike."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from emoreg.config import EmoRegConfig
from emoreg.errors import UnknownEmotionError
from emoreg.losses import Pool, Unit, keep, penalty, pooled_sum, reward
from emoreg.probe import Probe
from emoreg.tokens import Counted
from emoreg.vectors import EmotionVectors
from emoreg.vitals import Acts, Names, Sums, Vitals

OTHERS, ALL = "", "*"  # beside emotions: rows that the keep term holds, and all that are needed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Sums over what counts in a batch; divided by their number they are means."""

    loss: Tensor  # scalar, task-loss units times `number`, with gradient
    number: Tensor  # scalar, how many tokens or sequences the loss is summed over
    sums: Sums  # metrics without prefix -> sums, (metrics,), and their number, detached
    peaks: dict[Names, Tensor]  # metrics without prefix -> maxima, (metrics,), detached
    watched: Tensor  # readings of what is watched at each counted token, (counted, watched)

    def mean(self, name: str) -> float:
        """The mean of one metric, 0 where nothing counts.

        Raises:
            KeyError: There is no metric of this name.
        """
        for names, (totals, number) in self.sums.items():
            if name in names:
                return float(totals[names.index(name)] / number.clamp(min=1))
        raise KeyError(name)


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
        self.watched = (*config.penalize, *config.reward)
        for emotion in self.watched:
            if not self.probe.of(emotion):
                raise UnknownEmotionError(
                    f"None of the facets {config.emoreg_facets} holds {emotion!r}; the set has "
                    + "; ".join(f"{f.name}: {', '.join(f.emotions)}" for f in vectors.facets)
                )
        rows = [row for emotion in self.watched for row in self.probe.of(emotion)]
        if config.emoreg_keep > 0:
            rows += [i for i, (_, e) in enumerate(self.probe.rows) if e not in self.watched]
        self._rows = rows  # those whose reading of every token is needed
        self._place()

    def _place(self) -> None:
        """What is made of the probe, where it lies."""
        # A facet chosen by the user need not hold every emotion.
        held = tuple(e for e in self.emotions if self.probe.of(e))
        self.vitals = Vitals(self.probe, held, self.watched)
        self._acting = self.probe.only(self._rows)
        others = [i for i, (_, e) in enumerate(self._acting.rows) if e not in self.watched]
        # Tensors, for a list would be sent to the device, and waited for, at every use.
        rows = {e: self._acting.of(e) for e in self.watched} | {OTHERS: others, ALL: self._rows}
        device = self.probe.mu.device
        self._at = {e: torch.tensor(at, dtype=torch.long, device=device) for e, at in rows.items()}

    def read(self, acts: Acts, at: Tensor) -> Tensor:
        """Readings at flat positions of outputs (batch, tokens, width).

        Returns:
            In σ, (blocks, positions, rows).
        """
        self._follow(acts)
        return self._read(acts, at, self.probe)

    def _read(self, acts: Acts, at: Tensor, probe: Probe) -> Tensor:
        return probe.read({b: h.flatten(0, 1)[at.to(h.device)] for b, h in acts.items()})

    def _follow(self, acts: Acts) -> None:
        """Move to where the outputs are."""
        device = next(iter(acts.values())).device
        if self.probe.mu.device != device:
            self.probe = self.probe.to(device)
            self._place()

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
        self._follow(acts)
        at, device = counted.positions, self.probe.mu.device
        reading = self._read(acts, at, self._acting)  # (blocks, counted, rows that are needed)
        before = None
        if isinstance(base, Tensor):
            before = base.index_select(-1, self._at[ALL])
        elif base is not None:
            before = self._read(base, at, self._acting)
        number = torch.full((), counted.number(by), device=device)
        sums = self.vitals.means(acts, counted, base)
        watched = self._watched(reading.detach())
        anchor = 0.0 if before is None or not self._anchored else self._watched(before)
        sequence = counted.read_sequences.to(device)
        sums |= self.vitals.spread(watched, anchor, self.config.emoreg_margin, sequence)
        blind = self._anchored and before is None  # nothing to compare with: only measured
        if blind:
            del sums[self._names("over_margin")]
        peaks = {self._names("max"): watched.amax(0)} if len(watched) else {}
        if counted.acting is not None:
            kept = counted.acting.to(device)
            reading = reading[:, kept]
            before = None if before is None else before[:, kept]
        loss, terms = self._weighted(reading, before, counted.sequences.to(device), scale, by)
        terms = {} if blind else terms
        terms["loss"] = loss.detach()
        sums[tuple(terms)] = (torch.stack(list(terms.values())), number)
        return Terms(loss, number, sums, peaks, watched)

    @property
    def _anchored(self) -> bool:
        return self.config.emoreg_anchor == "base"

    def _names(self, kind: str) -> Names:
        return tuple(f"{kind}/{emotion}" for emotion in self.watched)

    def _watched(self, reading: Tensor) -> Tensor:
        """Mean over blocks and facets: (blocks, counted, rows) -> (counted, watched)."""
        found = [reading.index_select(-1, self._at[e]).mean((0, -1)) for e in self.watched]
        return torch.stack(found, -1) if found else reading.new_zeros(reading.shape[1], 0)

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
                at = self._at[emotion]
                anchor = self._anchor(before, at)
                own = reading.index_select(-1, at)
                value = term(own, anchor, config.emoreg_margin).mean((0, -1))
                total = pooled_sum(value, sequence, pool, by)
                sums[f"{kind}/{emotion}"] = total.detach()
                if weight > 0:
                    loss = loss + scale * weight * total
        if before is not None and len(self._at[OTHERS]):
            excess = keep((reading - before).index_select(-1, self._at[OTHERS])).mean(0)
            total = pooled_sum(excess, sequence, "mean", by)
            sums["keep"] = total.detach()
            if config.emoreg_keep > 0:
                loss = loss + scale * config.emoreg_keep * total
        return loss, sums

    def _anchor(self, before: Tensor | None, rows: Tensor) -> Tensor | float:
        """What a reading is compared with: the base's of the same token, or 0."""
        if before is not None and self._anchored:
            return before.index_select(-1, rows)
        return 0.0
