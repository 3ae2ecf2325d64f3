"""The oracle: terms from first principles, one unpadded row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trainers import BLOCKS, make_tokenizer, make_vectors

from emoreg.config import EmoRegConfig

Readings = dict[tuple[str, str, int], Tensor]  # facet, emotion, block -> (tokens,)


def ids_and_labels(rows: Dataset) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of prompt-completion rows, without TRL."""
    tokenizer = make_tokenizer()
    found = []
    for row in rows:
        start = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        assert ids[: len(start)] == start
        found.append((ids, [-100] * len(start) + ids[len(start) :]))
    return found


def by_hand(model: Any, rows: Dataset, config: EmoRegConfig) -> Tensor:
    """The weighted terms over all rows, as a mean over their counted tokens."""
    total, tokens = torch.zeros(()), 0
    for ids, labels in ids_and_labels(rows):
        first = next(i for i, label in enumerate(labels) if label != -100)
        parts = {
            "completion": range(first, len(ids)),
            "colon": [first - 1],
            "prompt": range(1, first),
        }
        at = sorted({i for name in config.emoreg_scope for i in parts[name]})
        reading = read_by_hand(model, ids, at)
        base = {}
        if config.needs_base:
            with torch.no_grad(), model.disable_adapter():
                base = read_by_hand(model, ids, at)
        total = total + _terms_by_hand(reading, base, config)
        tokens += len(at)
    return total / tokens


def _terms_by_hand(
    reading: Readings,
    base: Readings,
    config: EmoRegConfig,
) -> Tensor:
    """The weighted terms of one row, times its number of counted tokens."""
    blocks = config.emoreg_blocks or [1]
    facets = config.emoreg_facets or ["stories", "transcripts"]
    used = [k for k in reading if k[0] in facets and k[2] in blocks]
    total = torch.zeros(())
    for sign, weighted in ((1, config.penalize), (-1, config.reward)):
        for emotion, weight in weighted.items():
            own = [k for k in used if k[1] == emotion]
            anchor = [base[k] if config.emoreg_anchor == "base" else 0.0 for k in own]
            beyond = [
                sign * (reading[k] - c - config.emoreg_margin)
                for k, c in zip(own, anchor, strict=True)
            ]
            value = torch.stack(beyond).clamp(min=0).square().mean(0)  # (counted tokens,)
            if config.emoreg_pool == "top":
                value = value.topk(-(-len(value) // 10)).values.mean().expand(len(value))
            total = total + weight * value.sum()
    if config.emoreg_keep:
        others = [k for k in used if k[1] not in {**config.penalize, **config.reward}]
        excess = torch.stack([(reading[k] - base[k]).square() for k in others])
        total = total + config.emoreg_keep * excess.mean(0).sum()
    return total


def read_by_hand(model: Any, ids: Sequence[int], at: Sequence[int]) -> Readings:
    """Readings of one unpadded row at some of its tokens: (facet, emotion, block) -> (tokens,)."""
    vectors, seen = make_vectors(), []
    layers = getattr(model, "get_base_model", lambda: model)().model.layers
    handles = [layer.register_forward_hook(lambda *a: seen.append(a[-1])) for layer in layers]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {
        (f.name, emotion, b): (seen[b][0, at] - vectors.mu[b]) @ f.directions[e, b] / f.sigma[e, b]
        for f in vectors.facets
        for e, emotion in enumerate(f.emotions)
        for b in range(BLOCKS)
    }
