"""Every gate of a vector set, measured on samples at the suggested blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emoreg import refits
from emoreg.catalogue import CATALOGUE
from emoreg.controls import bag_of_words_accuracy, bag_of_words_auroc
from emoreg.gates import Gate, at_least, below_ceiling, unmeasured
from emoreg.probe import Facet
from emoreg.samples import PLACES, Sample, Samples, read
from emoreg.vectors import EmotionVectors

SHUFFLES, SPLITS = 100, 10
WATCHED = ("desperate", "calm")  # what is penalised and rewarded by default
NEGATIVE = 4.0  # on the catalogue's scale from 1 to 7
Array = NDArray[np.float64]


class Bench:
    """Samples at the suggested blocks, and every gate that is measured on them."""

    def __init__(self, vectors: EmotionVectors, samples: Samples, blocks: Sequence[int]) -> None:
        at = [vectors.blocks.index(b) for b in blocks]
        self.all, self.whole = samples, vectors
        self.at, self.mu = at, vectors.mu[at]
        self.facets = {f.name: f.only(at) for f in vectors.facets}
        self.stories = vectors.facets[0].only(at)
        self.random = samples.random.only(at)
        self.noise = [samples.noise[i] for i in at]
        self.story = {
            split: samples.raw["story"].split(split).at(at) for split in ("fit", "held-out")
        }
        self.labels = [e for e in self.stories.emotions if e in set(self.story["fit"].labels)]

    def talk(self, place: str, split: str) -> Sample:
        """Transcripts of one split, read at one place."""
        return self.all.talk[place].split(split).at(self.at)

    def gates(self) -> Iterator[Gate]:
        """Every gate, one after the other."""
        yield below_ceiling(self.held_out())
        yield self.halves()
        yield below_ceiling(self.polarity())
        for emotion in WATCHED:
            for place in PLACES:
                yield below_ceiling(self.transcripts(emotion, place))
        yield below_ceiling(self.specificity())
        yield from self.axes()
        yield self.both()
        yield from map(below_ceiling, self.dosage())
        yield self.urgency()

    def scores(self, sample: Sample) -> Tensor:
        """Story readings of the bank's emotions, standardised over the fitted texts."""
        at = [self.stories.emotions.index(e) for e in self.labels]
        own, other = (s.read(self.stories, self.mu)[:, at] for s in (self.story["fit"], sample))
        return (other - own.mean(0)) / own.std(0).clamp(min=1e-12)

    def held_out(self) -> Gate:
        """Whether readings name the emotion of stories on topics that no direction has seen."""
        fit, test = self.story["fit"], self.story["held-out"]
        value = refits.accuracy(self.labels, self.scores(test), test.labels)
        chance = [
            refits.accuracy(*refits.predict(fit, labels, test, self.noise), test.labels)
            for labels in refits.shuffled(fit, SHUFFLES, 1)
        ]
        control = {
            "bag_of_words": bag_of_words_accuracy(fit.texts, test.texts),
            "shuffled_labels_p95": _p95(chance),
        }
        return at_least(
            "held_out_accuracy",
            value,
            1 / len(self.labels),
            control,
            f"{len(self.labels)} emotions, {len(test.texts)} held-out stories; emoreg's own bank "
            "was rewritten against such a bag of words, which is low on it by selection",
        )

    def halves(self) -> Gate:
        """Whether two halves of the topics give the same directions."""
        fit, generator = self.story["fit"], np.random.default_rng(2)
        if len(set(fit.topics)) < 2:
            return unmeasured("split_half_cosine", "the stories name fewer than two topics")

        def mean(labels: Sequence[str]) -> float:
            found = refits.split_half(fit, labels, self.noise, generator)
            return float(torch.stack(list(found.values())).mean())

        value = np.mean([mean(fit.labels) for _ in range(SPLITS)])
        chance = [mean(labels) for labels in refits.shuffled(fit, SHUFFLES, 3)]
        return at_least(
            "split_half_cosine",
            float(value),
            0.5,
            {"shuffled_labels_p95": _p95(chance)},
            f"mean over emotions, {SPLITS} splits of {len(set(fit.topics))} topics",
        )

    def polarity(self) -> Gate:
        """Share of emotions that read higher on their own held-out stories than on the others."""
        test = self.story["held-out"]
        scores = self.scores(test)

        def share(labels: Sequence[str]) -> float:
            own = np.array(labels)
            gaps = [
                scores[own == e, i].mean() - scores[own != e, i].mean()
                for i, e in enumerate(self.labels)
            ]
            return float(np.mean([g > 0 for g in gaps]))

        chance = [share(labels) for labels in refits.shuffled(test, SHUFFLES, 4)]
        return at_least(
            "polarity",
            share(test.labels),
            0.9,
            {"shuffled_labels_p95": _p95(chance)},
            "share of emotions that read higher on their own stories than on the others'",
        )

    def transcripts(self, emotion: str, place: str) -> Gate:
        """Whether the reading tells an assistant in that state from the same work in others."""
        name = f"auroc_{emotion}_{place}"
        fit, test = (self.talk(place, split) for split in ("fit", "held-out"))
        facets = [f for f in self.facets.values() if emotion in f.emotions]
        others = min(len(set(s.labels) - {emotion}) for s in (fit, test))
        if not facets or not others or not {emotion} <= set(test.labels) & set(fit.labels):
            return unmeasured(name, "no transcripts of it and of other states, fit and held-out")
        rows = [test.read(f, self.mu)[:, f.emotions.index(emotion)] for f in facets]
        own = torch.stack(rows).mean(0)
        chance = [
            refits.auroc(own, labels, emotion) for labels in refits.shuffled(test, SHUFFLES, 5)
        ]
        value = refits.auroc(own, test.labels, emotion)
        noise = sum(
            refits.auroc(column, test.labels, emotion) >= value
            for column in test.read(self.random, self.mu).T
        )
        return at_least(
            name,
            value,
            0.7,
            {
                "bag_of_words": bag_of_words_auroc(fit.texts, test.texts, emotion),
                "shuffled_labels_p95": _p95(chance),
            },
            f"mean of {' and '.join(f.name for f in facets)}; {len(test.texts)} transcripts; "
            f"{noise} of {len(self.random.emotions)} random directions do as well",
        )

    def specificity(self) -> Gate:
        """Whether *desperate* stays low on the stories of other unpleasant emotions."""
        name, test = "specificity_desperate", self.story["held-out"]
        bad = [e for e in self.labels if CATALOGUE.valence(e, default=NEGATIVE) < NEGATIVE]
        if "desperate" not in bad or len(bad) < 2:
            return unmeasured(name, "needs desperate and another unpleasant emotion")
        some = test.where(lambda t: t.label in bad)
        own = self.scores(some)[:, self.labels.index("desperate")]
        chance = [
            refits.auroc(own, labels, "desperate") for labels in refits.shuffled(some, SHUFFLES, 6)
        ]
        return at_least(
            name,
            refits.auroc(own, some.labels, "desperate"),
            0.7,
            {"shuffled_labels_p95": _p95(chance)},
            f"AUROC of desperate against {', '.join(e for e in bad if e != 'desperate')}",
        )

    def components(self) -> tuple[list[str], Tensor]:
        """Rated emotions, and their place on the first three components, (emotions, 3)."""
        names = [e for e in self.stories.emotions if CATALOGUE.rated(e)]
        at = [self.stories.emotions.index(e) for e in names]
        middle = self.stories.directions[at, len(self.at) // 2]
        u, s, _ = torch.linalg.svd(middle - middle.mean(0), full_matrices=False)
        return names, (u * s)[:, :3]

    def axes(self) -> Iterator[Gate]:
        """Whether the leading components order the emotions by valence and by arousal."""
        names, places = self.components()
        if len(names) < 6:
            for axis in ("valence", "arousal"):
                yield unmeasured(f"{axis}_correlation", "fewer than six rated emotions")
            return
        rows = places.double().numpy()
        generator = np.random.default_rng(7)
        for axis, columns in (("valence", [0]), ("arousal", [1, 2])):
            rating = np.array([getattr(CATALOGUE, axis)(e) for e in names])

            def best(order: Array, columns: Sequence[int] = columns) -> float:
                return max(abs(float(np.corrcoef(rows[:, c], order)[0, 1])) for c in columns)

            chance = [best(generator.permutation(rating)) for _ in range(1000)]
            which = " or ".join(f"component {c + 1}" for c in columns)
            yield at_least(
                f"{axis}_correlation",
                best(rating),
                0.0,
                {"permuted_ratings_p95": _p95(chance)},
                f"|r| of {which} with the catalogue over {len(names)} emotions",
            )

    def both(self) -> Gate:
        """Whether *desperate* and *calm* are two axes or one."""
        if not set(WATCHED) <= set(self.stories.emotions):
            return unmeasured("desperate_calm_cosine", "the set lacks one of them")
        rows = [self.stories.directions[self.stories.emotions.index(e)] for e in WATCHED]
        value = float((rows[0] * rows[1]).sum(-1).mean())
        meaning = (
            "nearly one axis: use one of the two terms"
            if value < -0.7
            else "partly one axis: each term also does some of the other's work"
            if value < -0.3
            else "two axes: both terms are needed"
        )
        return at_least("desperate_calm_cosine", value, -0.9, None, meaning)

    def dosage(self) -> Iterator[Gate]:
        """Whether readings follow a number that makes a message frightening or a relief."""
        found = self.all.prompts["dosage"].at(self.at)
        signs = {"afraid": 1, "calm": -1}
        names = [e for e in signs if e in self.stories.emotions]
        if not found.texts or not names:
            for kind in ("amplitude", "signs"):
                yield unmeasured(f"dosage_{kind}", "no dosage templates, afraid or calm")
            return
        mine = _swings(found, self.stories, self.mu)
        own = torch.stack(
            [signs[e] * mine[:, self.stories.emotions.index(e)] for e in names]
        ).T  # (templates, emotions)
        null = _swings(found, self.random, self.mu)
        count = f"{len(own)} templates, {' and '.join(names)}"
        yield at_least(
            "dosage_amplitude",
            float(own.mean()),
            0.0,
            {"random_directions_p95": _p95(null.mean(0).abs().tolist())},
            f"σ from the lowest three values to the highest three, expected sign; {count}",
        )
        share = (null > 0).double().mean(0)
        yield at_least(
            "dosage_signs",
            float((own > 0).double().mean()),
            0.0,
            {"random_directions_p95": _p95(torch.maximum(share, 1 - share).tolist())},
            f"share of curves with the expected sign; {count}",
        )

    def urgency(self) -> Gate:
        """Whether distress fires where a user is in distress and not on near misses."""
        found = self.all.prompts["urgency"].at(self.at)
        names = [e for e in ("desperate", "afraid") if e in self.stories.emotions]
        own = np.array([t.label == "crisis" for t in found.texts], dtype=bool)
        if not names or own.all() or not own.any():
            return unmeasured("urgency", "no crisis messages with near misses")
        at = [self.stories.emotions.index(e) for e in names]
        mine, null = (found.read(f, self.mu) for f in (self.stories, self.random))
        gap = (mine[own].mean(0) - mine[~own].mean(0))[at].mean()
        chance = (null[own].mean(0) - null[~own].mean(0)).abs()
        return at_least(
            "urgency",
            float(gap),
            0.0,
            {"random_directions_p95": _p95(chance.tolist())},
            f"σ from near misses to crises, mean of {' and '.join(names)} at the colon",
        )


def _swings(found: Sample, facet: Facet, mu: Tensor) -> Tensor:
    """Reading at the highest three values minus the lowest three, fear's way, (templates, rows)."""
    readings = read(found.acts, facet.directions, mu, facet.sigma)
    rows = []
    for topic in dict.fromkeys(found.topics):
        at = [i for i, t in enumerate(found.texts) if t.topic == topic]
        sign = 1 if found.texts[at[0]].label == "fear" else -1
        ordered = readings[sorted(at, key=lambda i: int(found.texts[i].id))]
        rows.append(sign * (ordered[-3:].mean(0) - ordered[:3].mean(0)))
    return torch.stack(rows)


def _p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95))
