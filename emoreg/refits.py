"""Directions fitted again from activations at hand: on halves, on shuffled labels, block by block.

None of this runs the model, so that hundreds of refits cost seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from emoreg.controls import shuffle_within
from emoreg.extract import centred
from emoreg.gates import separation
from emoreg.samples import Sample

Array = NDArray[np.float64]
NEW = 0.2  # of a direction's length that earlier facets lack: less is what they read already
USEFUL = 0.6  # AUROC: a facet that tells less of the state is noise


def fit(sample: Sample, labels: Sequence[str], noise: Sequence[Tensor]) -> dict[str, Tensor]:
    """Unit directions by label, (blocks, width), by the recipe of extraction."""
    names = sorted(set(labels))
    at = torch.tensor([names.index(x) for x in labels])
    means = torch.stack([sample.acts[at == i].mean(0) for i in range(len(names))])
    rows = normalize(centred(means, [n.float() for n in noise]), dim=-1)
    return dict(zip(names, rows, strict=True))


def halves(topics: Sequence[str], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which texts are in the first half of the topics, bool, (texts,)."""
    names = sorted(set(topics))
    first = set(generator.permutation(names)[: len(names) // 2])
    return np.array([t in first for t in topics])


def split_half(
    sample: Sample,
    labels: Sequence[str],
    noise: Sequence[Tensor],
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """Cosine of each label's directions from two halves of the topics, (blocks,)."""
    first = halves(sample.topics, generator)
    parts = []
    for half in (first, ~first):
        at = np.flatnonzero(half).tolist()
        part = Sample(tuple(sample.texts[i] for i in at), sample.acts[at])
        parts.append(fit(part, [labels[i] for i in at], noise))
    return {x: (parts[0][x] * parts[1][x]).sum(-1) for x in parts[0] if x in parts[1]}


def predict(
    fitted: Sample, labels: Sequence[str], test: Sample, noise: Sequence[Tensor]
) -> tuple[list[str], Tensor]:
    """Label whose reading, standardised over the fitted texts, is the highest.

    Returns:
        The labels, and scores averaged over the blocks, (texts, labels).
    """
    names, rows = zip(*fit(fitted, labels, noise).items(), strict=True)
    directions = torch.stack(rows)
    own, other = (torch.einsum("tbw,rbw->trb", s.acts, directions) for s in (fitted, test))
    scores = (other - own.mean(0)) / own.std(0).clamp(min=1e-12)
    return list(names), scores.mean(-1)


def accuracy(names: Sequence[str], scores: Tensor, labels: Sequence[str]) -> float:
    """Share of texts whose own label has the highest score."""
    best = scores.argmax(1).tolist()
    return float(np.mean([names[i] == x for i, x in zip(best, labels, strict=True)]))


def auroc(scores: Tensor, labels: Sequence[str], label: str) -> float:
    """AUROC of a score, (texts,), for one label against the others."""
    own = np.array([x == label for x in labels])
    values = scores.double().numpy()
    return separation(values[own].tolist(), values[~own].tolist())


def shuffled(sample: Sample, count: int, seed: int) -> list[list[str]]:
    """Labels shuffled within topics, so many times; over all texts where topics hold one each."""
    generator, topics = np.random.default_rng(seed), [t.topic for t in sample.texts]
    if len(set(zip(topics, sample.labels, strict=True))) == len(set(topics)):
        topics = [""] * len(topics)
    return [shuffle_within(sample.labels, topics, generator) for _ in range(count)]


def by_block(sample: Sample, noise: Sequence[Tensor], seed: int = 0) -> Array:
    """Accuracy at each block, fitted on one half of the topics and tested on the other, (blocks,).

    The mean of both directions of two splits. Only the fit split may come here: blocks are chosen
    by it.
    """
    generator, found = np.random.default_rng(seed), []
    for _ in range(2):
        first = halves(sample.topics, generator)
        for half in (first, ~first):
            ins, outs = (
                Sample(tuple(sample.texts[i] for i in at), sample.acts[at])
                for at in (np.flatnonzero(half).tolist(), np.flatnonzero(~half).tolist())
            )
            found.append(
                [
                    accuracy(*predict(ins.at([b]), ins.labels, outs.at([b]), [n]), outs.labels)
                    for b, n in enumerate(noise)
                ]
            )
    mean: Array = np.array(found).mean(0)
    return mean


def beyond(
    sample: Sample, emotion: str, noise: Sequence[Tensor], earlier: Tensor
) -> tuple[Tensor, float]:
    """The emotion's direction by the recipe of extraction, without its earlier facets.

    Args:
        sample: Texts of several states.
        emotion: One of them.
        noise: At each block orthonormal rows, (components, width).
        earlier: Orthonormal at each block, (facets, blocks, width).

    Returns:
        Unit length, (blocks, width), 0 at a block of which less than `NEW` is left, and the share
        of the direction's length that is left at the block of most.
    """
    names = sorted(set(sample.labels))
    at = torch.tensor([names.index(x) for x in sample.labels])
    averages = torch.stack([sample.acts[at == i].mean(0) for i in range(len(names))])
    whole = row = centred(averages, noise)[names.index(emotion)]
    for _ in range(2):  # once more: rounding leaves a little along what was near
        along = torch.einsum("bw,fbw->fb", row, earlier)
        row = row - torch.einsum("fb,fbw->bw", along, earlier)
    share = row.norm(dim=-1) / whole.norm(dim=-1).clamp(min=1e-12)
    return normalize(row, dim=-1) * (share >= NEW).unsqueeze(-1), float(share.max())


def auroc_beyond(sample: Sample, emotion: str, noise: Sequence[Tensor], earlier: Tensor) -> float:
    """AUROC of what is new of an emotion, fitted on one half of the topics, read on the other."""
    first = halves(sample.topics, np.random.default_rng(0))
    scores = []
    for half in (first, ~first):
        ins, outs = (
            Sample(tuple(sample.texts[i] for i in at), sample.acts[at])
            for at in (np.flatnonzero(half).tolist(), np.flatnonzero(~half).tolist())
        )
        if emotion not in ins.labels or len(set(outs.labels)) < 2 or emotion not in outs.labels:
            return 0.0
        direction, _ = beyond(ins, emotion, noise, earlier)
        scores.append(auroc_along(outs, direction, emotion))
    return float(np.mean(scores))


def bar(sample: Sample, emotion: str) -> float:
    """AUROC that a new direction needs: two standard errors more than noise has by chance.

    Those of a mean over two halves are those of the whole (Hanley and McNeil 1982, Radiology 143).
    """
    own = sample.labels.count(emotion)
    pairs = own * (len(sample.labels) - own)
    chance: float = ((len(sample.labels) + 2) / (12 * max(pairs, 1))) ** 0.5
    return max(USEFUL, 0.5 + 2 * chance)


def auroc_along(sample: Sample, direction: Tensor, emotion: str) -> float:
    """AUROC of the projection on a direction, standardised at each block, mean over blocks.

    One half where there is nothing to tell apart.
    """
    if set(sample.labels) <= {emotion} or emotion not in sample.labels:
        return 0.5
    along = torch.einsum("tbw,bw->tb", sample.acts, direction)
    return auroc((along / along.std(0).clamp(min=1e-12)).mean(1), sample.labels, emotion)
