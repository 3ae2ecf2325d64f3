"""The tables of a validation, beside its gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emoreg import refits
from emoreg.bench import WATCHED, Array, Bench
from emoreg.catalogue import CATALOGUE


def block_rows(bench: Bench, curve: Array) -> Iterator[dict[str, Any]]:
    """The block table: what each block gives on the fit and on the held-out split."""
    fit, test = (bench.all.raw["story"].split(name) for name in ("fit", "held-out"))
    talk = bench.all.talk["response"].split("held-out")
    for i, block in enumerate(bench.whole.blocks):
        one = refits.predict(fit.at([i]), fit.labels, test.at([i]), [bench.all.noise[i]])
        row: dict[str, Any] = {
            "block": block,
            "fit_accuracy": round(float(curve[i]), 4),
            "held_out_accuracy": round(refits.accuracy(*one, test.labels), 4),
        }
        for emotion in WATCHED:
            for facet in bench.whole.facets:
                if emotion in facet.emotions and emotion in talk.labels:
                    part, j = facet.only([i]), facet.emotions.index(emotion)
                    values = talk.at([i]).read(part, bench.whole.mu[[i]])[:, j]
                    value = refits.auroc(values, talk.labels, emotion)
                    row[f"auroc_{emotion}_{facet.name}"] = round(value, 4)
        row["sigma"] = round(float(bench.whole.facets[0].sigma[:, i].median()), 4)
        row["norm_mu"] = round(float(bench.whole.mu[i].norm()), 3)
        row["suggested"] = i in bench.at
        yield row


def confusion(bench: Bench) -> dict[str, dict[str, float]]:
    """Share of the held-out stories of each emotion that read as each."""
    test = bench.story["held-out"]
    best = [bench.labels[i] for i in bench.scores(test).argmax(1).tolist()]
    return {
        e: {
            other: round(
                sum(a == e and b == other for a, b in zip(test.labels, best, strict=True))
                / test.labels.count(e),
                4,
            )
            for other in bench.labels
        }
        for e in bench.labels
    }


def emotion_map(bench: Bench) -> dict[str, dict[str, float]]:
    """Each rated emotion on the two leading components, and in the catalogue.

    Components have no sign of their own: pleasant is right, aroused is up.
    """
    names, places = bench.components()
    if len(names) < 3:
        return {}
    rows = places.double().numpy()
    rated = {a: np.array([getattr(CATALOGUE, a)(e) for e in names]) for a in ("valence", "arousal")}
    second = (
        max((1, 2), key=lambda c: abs(np.corrcoef(rows[:, c], rated["arousal"])[0, 1]))
        if rows.shape[1] > 2
        else 1
    )
    axes = []
    for column, axis in ((0, "valence"), (second, "arousal")):
        sign = np.sign(np.corrcoef(rows[:, column], rated[axis])[0, 1]) or 1.0
        axes.append(sign * rows[:, column])
    return {
        e: {
            "x": round(float(axes[0][i]), 4),
            "y": round(float(axes[1][i]), 4),
            "component": second + 1,
            "valence": round(float(rated["valence"][i]), 3),
            "arousal": round(float(rated["arousal"][i]), 3),
        }
        for i, e in enumerate(names)
    }


def typical(bench: Bench) -> dict[str, dict[str, float]]:
    """Readings in σ: what an own story, another's, a deflection and a transcript give."""
    test, hidden = bench.story["held-out"], bench.all.raw["deflection"].at(bench.at)
    talk = bench.talk("response", "held-out")
    rows = {}
    for i, e in enumerate(bench.stories.emotions):
        if e in bench.labels:
            reading = test.read(bench.stories, bench.mu)[:, i]
            own = torch.tensor([x == e for x in test.labels])
            rows[e] = {"own": _mean(reading[own]), "others": _mean(reading[~own])}
            for name, sample, facet in (
                ("deflected", hidden, bench.stories),
                (
                    "transcripts",
                    talk,
                    next(
                        (f for f in reversed(bench.facets.values()) if e in f.emotions),
                        bench.stories,
                    ),
                ),
            ):
                if e in sample.labels:
                    mine = torch.tensor([x == e for x in sample.labels])
                    values = sample.read(facet, bench.mu)[:, facet.emotions.index(e)]
                    rows[e][name] = _mean(values[mine])
                    rows[e][f"{name}_others"] = _mean(values[~mine])
    return rows


def urgency_levels(bench: Bench) -> dict[str, dict[str, float]]:
    """Mean readings at the colon of crises and of near misses, σ."""
    found = bench.all.prompts["urgency"].at(bench.at)
    if not found.texts:
        return {}
    readings = found.read(bench.stories, bench.mu)
    return {
        e: {
            label: _mean(readings[[x == label for x in found.labels], i])
            for label in sorted(set(found.labels))
        }
        for i, e in enumerate(bench.stories.emotions)
    }


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 4)
