"""Directions that an audit fits on the activations it holds, by the recipe of extraction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emoreg.moments import Scatter

VARIANCE = 0.5  # of neutral tokens, explained by what is projected out


def noise(neutral: Tensor) -> list[Tensor]:
    """The leading components of neutral tokens at each block, (components, width) each.

    Args:
        neutral: (tokens, blocks, width).
    """
    scatter = Scatter()
    for token in neutral.double():
        scatter.add(token)
    return [rows.float() for rows in scatter.components(VARIANCE)]


def without(rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Project components out of (..., blocks, width): one (components, width) for each block."""
    return torch.stack(
        [rows[..., b, :] - rows[..., b, :] @ p.T @ p for b, p in enumerate(parts)], -2
    )


def direction(
    acts: Tensor, sides: tuple[Sequence[int], Sequence[int]], parts: Sequence[Tensor]
) -> Tensor:
    """From texts without the emotion to texts with it, of unit length, (blocks, width).

    Args:
        acts: (texts, blocks, width).
        sides: Positions of the texts with the emotion, and without it.
        parts: Components of neutral tokens, which are projected out.
    """
    own, others = (acts[list(at)].mean(0) for at in sides)
    found = without(own - others, parts)
    unit: Tensor = found / found.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit
