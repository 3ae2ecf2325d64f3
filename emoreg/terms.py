"""From captured block outputs to the terms of the loss; for trainers and for plain loops alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emoreg.config import EmoRegConfig
from emoreg.errors import UnknownEmotionError
from emoreg.losses import Pool, Unit, keep, penalty, pooled_sum, reward
from emoreg.probe import Facet, Probe
from emoreg.tokens import Counted
from emoreg.vectors import EmotionVectors
from emoreg.vitals import Acts, Names, Sums, Vitals

OTHERS, ALL, MORE = "others", "all", "more"  # rows: of the keep term, read, fitted since

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Sums over what counts in a batch; divided by their number they are means."""

    loss: Tensor  # scalar, task-loss units times `number`, with gradient
    number: Tensor  # scalar, how many tokens or sequences the loss is summed over
    sums: Sums  # metrics without prefix -> sums, (metrics,), and their number, detached
    peaks: dict[Names, Tensor]  # metrics without prefix -> maxima, (metrics,), detached
    watched: Tensor  # readings of what is watched at each counted token, (counted, watched)
    beyond: Tensor  # of what is watched, summed over what the terms act on, and its number

    def mean(self, name: str) -> float:
        """The mean of one metric, 0 where nothing counts.

        Raises:
            KeyError: There is no metric of this name.
        """
        for names, (totals, number) in self.sums.items():
            if name in names:
                return float(totals[names.index(name)] / number.clamp(min=1))
        raise KeyError(name)


@dataclass(frozen=True)
class Rows:
    """The rows of some emotions, side by side."""

    emotions: tuple[str, ...]
    at: Tensor  # int64, (rows,), where they are
    whose: Tensor  # int64, (rows,), the place of each one's emotion
    number: Tensor  # float32, (emotions,), how many each has

    @classmethod
    def of(cls, probe: Probe, rows: Mapping[str, Sequence[int]]) -> Rows:
        """The rows of each emotion, where the probe lies."""
        at = [row for found in rows.values() for row in found]
        whose = [i for i, found in enumerate(rows.values()) for _ in found]
        number = probe.mu.new_tensor([float(len(found)) for found in rows.values()])
        return cls(tuple(rows), probe.index(at), probe.index(whose), number)

    def pick(self, values: Tensor) -> Tensor:
        """These rows of all there are: (..., all) -> (..., rows)."""
        return values.index_select(-1, self.at)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each emotion's: (counted, rows) -> (counted, emotions)."""
        found = values.new_zeros(len(values), len(self.emotions))
        return found.index_add(1, self.whose, values)


@dataclass(frozen=True)
class Factors:
    """What the terms of some emotions are multiplied with."""

    given: tuple[float, ...]  # all their weights
    at: Tensor  # int64, those whose weight is not 0
    weights: Tensor  # of those, float32
    facets: Tensor  # float32, (emotions,), each one's in the set


class EmotionTerms:
    """The penalise, reward and keep terms of one configuration.

    The terms also act on facets that were fitted since (`extend`); what is logged as the reading of
    an emotion is always that of the set's own, so that a curve has one meaning.

    Args:
        vectors: The vector set.
        config: The knobs.

    Raises:
        UnknownEmotionError: The set lacks an emotion, facet or block that is asked for.
        VectorFileError: The set holds values that are not directions.

    Attributes:
        weights: Emotion -> weight of its term; those of the configuration until they are changed.
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
        self.weights = {**config.penalize, **config.reward}
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
        self._more: Probe | None = None
        self._place()

    def extend(self, facets: Sequence[Facet]) -> None:
        """Let the terms act on these facets too, in the place of those that were given before.

        Args:
            facets: Of watched emotions, at the blocks of the probe.
        """
        self._more = self.probe.beside(facets) if facets else None
        self._place()

    def _place(self) -> None:
        """What is made of the probe, where it lies."""
        # A facet chosen by the user need not hold every emotion.
        held = tuple(e for e in self.emotions if self.probe.of(e))
        self.vitals = Vitals(self.probe, held, self.watched)
        own, more = self.probe, self._more
        self._whole = own if more is None else own.joined(more)
        rows = [*self._rows, *range(len(own.rows), len(self._whole.rows))]
        self._acting = self._whole.only(rows)
        acting = self._acting.rows
        of_set = {e: [i for i in self._acting.of(e) if i < len(self._rows)] for e in self.watched}
        others = [i for i, (_, e) in enumerate(acting) if e not in self.watched]
        at = {OTHERS: others, ALL: rows, MORE: list(range(len(self._rows), len(rows)))}
        # Tensors, for a list would be sent to the device, and waited for, at every use.
        self._at = {k: own.index(v) for k, v in at.items()}
        self._own = Rows.of(own, of_set)
        self._all = {
            kind: Rows.of(own, {e: self._acting.of(e) for e in weights})
            for kind, weights in (("penalty", self.config.penalize), ("reward", self.config.reward))
        }
        # Facets that are added leave those of the set as heavy as they were.
        self._facets = {e: len(found) for e, found in of_set.items()}
        self._factors: dict[str, Factors] = {}

    def read(self, acts: Acts, at: Tensor) -> Tensor:
        """Readings at flat positions of outputs (batch, tokens, width).

        Returns:
            In σ, (blocks, positions, rows).
        """
        self._follow(acts)
        return self._read(acts, at, self._whole)

    def _read(self, acts: Acts, at: Tensor, probe: Probe) -> Tensor:
        return probe.read({b: h.flatten(0, 1)[at.to(h.device)] for b, h in acts.items()})

    def _follow(self, acts: Acts) -> None:
        """Move to where the outputs are."""
        device = next(iter(acts.values())).device
        if self.probe.mu.device != device:
            self.probe = self.probe.to(device)
            self._more = self._more and self._more.to(device)
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
        own = base[..., : len(self.probe.rows)] if isinstance(base, Tensor) else base
        sums = self.vitals.means(acts, counted, own)
        watched = self._watched(reading.detach())
        anchor = 0.0 if before is None or not self._anchored else self._watched(before)
        sequence = counted.read_sequences.to(device)
        sums |= self.vitals.spread(watched, anchor, self.config.emoreg_margin, sequence)
        blind = self._anchored and before is None  # nothing to compare with: only measured
        if blind:
            del sums[self._names("over_margin")]
        if self._more is not None:
            found = reading.detach().index_select(-1, self._at[MORE]).mean(0).sum(0)
            names = tuple(f"reading/{emotion}/{facet}" for facet, emotion in self._more.rows)
            sums[names] = (found, torch.full((), len(at), device=device))
        gap = watched - anchor
        peaks = {self._names("max"): watched.amax(0)} if len(watched) else {}
        if counted.acting is not None:
            kept = counted.acting.to(device)
            reading, gap = reading[:, kept], gap[kept]
            before = None if before is None else before[:, kept]
        loss, terms = self._weighted(reading, before, counted.sequences.to(device), scale, by)
        terms = {} if blind else terms
        terms["loss"] = loss.detach()
        sums[tuple(terms)] = (torch.stack(list(terms.values())), number)
        beyond = torch.cat([gap.sum(0), number.new_full((1,), len(gap))])
        return Terms(loss, number, sums, peaks, watched, beyond)

    @property
    def _anchored(self) -> bool:
        return self.config.emoreg_anchor == "base"

    def _names(self, kind: str) -> Names:
        return tuple(f"{kind}/{emotion}" for emotion in self.watched)

    def _watched(self, reading: Tensor) -> Tensor:
        """Mean over blocks and facets: (blocks, counted, rows) -> (counted, watched)."""
        return self._own.sum(self._own.pick(reading.mean(0))) / self._own.number

    def _weighted(
        self, reading: Tensor, before: Tensor | None, sequence: Tensor, scale: float, by: Unit
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all terms, and each term by itself."""
        config, loss = self.config, reading.new_zeros(())
        sums: dict[str, Tensor] = {}
        pool: Pool = "top" if config.emoreg_pool == "top" else "mean"
        for kind, term in (("penalty", penalty), ("reward", reward)):
            rows, factors = self._all[kind], self._factors_of(kind)
            if not rows.emotions:
                continue
            anchor = self._anchor(before, rows.at)
            values = term(rows.pick(reading), anchor, config.emoreg_margin).mean(0)
            totals = pooled_sum(rows.sum(values) / factors.facets, sequence, pool, by)
            names = (f"{kind}/{emotion}" for emotion in rows.emotions)
            sums |= dict(zip(names, totals.detach().unbind(), strict=True))
            if len(factors.at) and config.adds:
                loss = loss + scale * (factors.weights * totals.index_select(0, factors.at)).sum()
        if before is not None and len(self._at[OTHERS]):
            excess = keep((reading - before).index_select(-1, self._at[OTHERS])).mean(0)
            total = pooled_sum(excess, sequence, "mean", by)
            sums["keep"] = total.detach()
            if config.emoreg_keep > 0 and config.adds:
                loss = loss + scale * config.emoreg_keep * total
        return loss, sums

    def _factors_of(self, kind: str) -> Factors:
        """What the terms of a kind are multiplied with, sent to the device when it changes."""
        emotions = self._all[kind].emotions
        weights = tuple(self.weights[e] for e in emotions)
        known = self._factors.get(kind)
        if known is None or known.given != weights:
            acting = [i for i, weight in enumerate(weights) if weight > 0]
            facets = [float(self._facets[e]) for e in emotions]
            own, new = self.probe, self.probe.mu.new_tensor
            known = Factors(
                weights, own.index(acting), new([weights[i] for i in acting]), new(facets)
            )
            self._factors[kind] = known
        return known

    def _anchor(self, before: Tensor | None, rows: Tensor) -> Tensor | float:
        """What a reading is compared with: the base's of the same token, or 0."""
        if before is not None and self._anchored:
            return before.index_select(-1, rows)
        return 0.0
