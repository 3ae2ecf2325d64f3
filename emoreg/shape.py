"""What kind of a move it is, over all emotions: one number for each question, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from emoreg.catalogue import CATALOGUE
from emoreg.drift import Move
from emoreg.probe import Probe
from emoreg.published import likeness
from emoreg.resampling import Array, correlation, of_correlation, of_mean, weights

RATED = 3  # emotions with a rating that make a centroid, and that make a profile
COLLINEAR = 1e-6  # of the largest eigenvalue: directions that add nothing to the span
KINDS = ("neutral", "challenging")
SEEDS = {None: 0, "neutral": 1, "challenging": 2}  # prompts of two kinds are drawn apart


def statistics(move: Move, probe: Probe) -> dict[str, Any]:
    """Everything that is told of a measurement beside its emotions, at the colon.

    Args:
        move: From the base to the model.
        probe: Whose directions span what emotions can say of the activation.

    Returns:
        ``mean_abs``, σ; ``structure`` with its two kinds, ``agreement``, ``valence``, ``arousal``,
        ``sonnet``, each a value with an interval; ``span`` and ``moved``, shares. None or NaN where
        the prompts, emotions or ratings are too few, or nothing moved.
    """
    base, now = (side.mean(1) for side in move.pair("colon"))
    shift = now - base
    whole = shift.mean(0)
    return {
        "mean_abs": float(np.abs(whole).mean()),
        "structure": structure(base, now, SEEDS[None]),
        **{f"structure_{kind}": _of_kind(move.kinds, kind, base, now) for kind in KINDS},
        "agreement": agreement(shift, move.kinds),
        "valence": centroid(shift, [_rating("valence", e) for e in move.emotions]),
        "arousal": centroid(shift, [_rating("arousal", e) for e in move.emotions]),
        "sonnet": likeness(move.emotions, whole),
        **span(move, probe),
    }


def structure(base: Array, now: Array, seed: int = 0) -> dict[str, float]:
    """Correlation of the mean profile of emotions, base to now, both (prompts, emotions)."""
    if base.shape[1] < RATED or not len(base):
        return dict.fromkeys(("value", "low", "high"), np.nan)
    value = float(correlation(base.mean(0), now.mean(0)))
    if len(base) == 1:
        return {"value": value, "low": np.nan, "high": np.nan}
    drawn = weights(len(base), seed)
    return of_correlation(value, correlation(drawn @ base, drawn @ now), len(base))


def agreement(shift: Array, kinds: Sequence[str]) -> dict[str, float]:
    """Correlation of the shift, (prompts, emotions), on neutral prompts with that on challenging.

    Each kind is resampled by itself.
    """
    parts = [shift[[k == kind for k in kinds]] for kind in KINDS]
    if shift.shape[1] < RATED or min(map(len, parts)) < 2:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    drawn = [weights(len(p), SEEDS[k]) @ p for p, k in zip(parts, KINDS, strict=True)]
    value = float(correlation(*(p.mean(0) for p in parts)))
    return of_correlation(value, correlation(*drawn), min(map(len, parts)))


def centroid(shift: Array, ratings: Sequence[float | None]) -> dict[str, float] | None:
    """Mean shift weighted by the standardised rating of each emotion, in σ.

    A shift that is the same for all emotions has none; emotions without a rating are left out.

    Args:
        shift: (prompts, emotions).
        ratings: Of each emotion.

    Returns:
        ``value``, ``low`` and ``high``; None for fewer than three ratings, or equal ones.
    """
    at = [i for i, r in enumerate(ratings) if r is not None]
    rated = np.array([r for r in ratings if r is not None])
    if len(at) < RATED or np.ptp(rated) == 0:
        return None
    by_prompt = shift[:, at] @ ((rated - rated.mean()) / rated.std()) / len(at)
    return of_mean(float(by_prompt.mean()), weights(len(shift)) @ by_prompt, len(shift))


def span(move: Move, probe: Probe) -> dict[str, Any]:
    """Where the mean activation at the colon went.

    ``span`` is the share of the squared length of its move that lies in the span of the directions
    at a block, beside the share of a move in a random direction; ``moved`` the length of the move
    as a share of the base's mean activation. Both are means over blocks, ``span`` over those that
    moved.
    """
    moves = (move.now.mean - move.base.mean).astype(np.float64)  # (blocks, width)
    squares = np.square(moves).sum(1)
    inside, ranks = [], []
    for rows, move_of in zip(probe.directions.cpu().double(), torch.from_numpy(moves), strict=True):
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        kept = values > COLLINEAR * values[-1]
        along = (vectors[:, kept].T @ (rows @ move_of)) / values[kept].sqrt()
        inside.append(float(along.square().sum()))
        ranks.append(int(kept.sum()))
    went = squares > 0  # adapters may all lie above the first blocks
    share = float((np.array(inside)[went] / squares[went]).mean()) if went.any() else np.nan
    return {
        "span": {"value": share, "chance": float(np.mean(ranks)) / moves.shape[1]},
        "moved": float((np.sqrt(squares) / move.base.length).mean()),
    }


def _of_kind(kinds: Sequence[str], kind: str, base: Array, now: Array) -> dict[str, float]:
    at = [k == kind for k in kinds]
    return structure(base[at], now[at], SEEDS[kind])


def _rating(name: str, emotion: str) -> float | None:
    return float(getattr(CATALOGUE, name)(emotion)) if CATALOGUE.rated(emotion) else None
