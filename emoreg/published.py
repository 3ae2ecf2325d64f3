"""The shift of Claude Sonnet 4.5 in post-training, as published, and how alike another one is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emoreg.resampling import Array, correlation, of_correlation, weights

FILE = Path(__file__).parent / "sonnet45.json"
ENOUGH = 8  # shared emotions for a correlation


@cache
def shift() -> dict[str, float]:
    """Emotion -> post-trained minus pretrained: mean cosine of its probe with the activation.

    Sofroniew et al. 2026 (arXiv:2604.07729), Table 16: at the colon, over all their prompts.
    """
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    return {emotion: float(row["diff"]) for emotion, row in rows.items()}


def likeness(emotions: Sequence[str], drift: Array, seed: int = 0) -> dict[str, Any] | None:
    """Correlation of a drift with the published shift, its interval by bootstrap over emotions.

    Args:
        emotions: Any; those that were not published are left out.
        drift: (emotions,).
        seed: Of the bootstrap, which has its own generator.

    Returns:
        ``value``, ``low``, ``high`` and the number of ``emotions``; None for fewer than eight.
    """
    at = [i for i, e in enumerate(emotions) if e in shift()]
    if len(at) < ENOUGH:
        return None
    own, other = np.asarray(drift)[at], np.array([shift()[emotions[i]] for i in at])
    share = weights(len(at), seed)
    value = float(correlation(own, other))
    return {**of_correlation(value, correlation(own, other, share), len(at)), "emotions": len(at)}
