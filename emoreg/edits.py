"""The edits of a block's output that `prevent`, `ablate` and `cap` make: pure functions of tensors.

Each is computed in float32 at least, whatever the model's dtype and autocast, and rounded once to
the dtype it came in; what a reading becomes holds up to that rounding. The output itself, which is
the model's, is never changed in place, and gradients go through every edit. For all of them:

    h           output of one block, (batch, tokens, width), any float dtype
    directions  unit rows, (rows, width); those of one emotion are orthonormal, of several not
    sigma       standard deviation along each row over the neutral texts, (rows,)
    mu          mean activation over the neutral texts, (width,)
    mask        tokens that are edited, bool, (batch, tokens); all if None; others keep every bit
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 3  # of `cap` over its rows
SAME = 1e-5  # of the longest: a row that is shorter, outside the span of the others, is rounding


def prevent(
    h: Tensor, directions: Tensor, sigma: Tensor, strength: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Add directions: every reading along orthonormal rows rises by the strength.

    Preventative steering: with the emotion supplied from outside, training need not add it (Chen
    et al. 2025, Persona Vectors, arXiv:2507.21509).

    Args:
        h: See the module, as for all that is not named here.
        directions: What is added.
        sigma: Their scales.
        strength: In σ, (rows,); negative takes away, as for an emotion that is wanted.
        mask: Where.
    """
    with torch.autocast(h.device.type, enabled=False):
        rows, scale, share = (x.to(_wide(h)) for x in (directions, sigma, strength))
        return _moved(h, (share * scale) @ rows, mask)


def span(directions: Tensor) -> Tensor:
    """Orthonormal rows with the span of the given ones, float32, (rank, width).

    By singular values and not by QR, which makes up a direction for a row that depends on others.
    """
    basis: Tensor
    _, lengths, basis = torch.linalg.svd(directions.float(), full_matrices=False)
    return basis[lengths > SAME * lengths[:1]]


def ablate(
    h: Tensor, mu: Tensor, basis: Tensor, share: float, mask: Tensor | None = None
) -> Tensor:
    """Take out a share of h - mu within a span: each reading there falls to (1 - share) of itself.

    Concept ablation fine-tuning (Casademunt et al. 2025, arXiv:2507.16795); with all of it out,
    readings are 0 and training sees nothing of the span.

    Args:
        h: See the module, as for all that is not named here.
        mu: What is not taken out.
        basis: From `span`, (rank, width).
        share: From 0 to 1.
        mask: Where.
    """
    with torch.autocast(h.device.type, enabled=False):
        wide = _wide(h)
        rows = basis.to(wide)
        return _moved(h, -share * ((wide - mu.to(wide)) @ rows.mT @ rows), mask)


def cap(
    h: Tensor,
    mu: Tensor,
    directions: Tensor,
    sigma: Tensor,
    ceiling: Tensor,
    sign: Tensor,
    mask: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Clip readings at a ceiling or a floor by the least move of h; those within it stay.

    Row by row, h moves along the row to the ceiling if it is beyond, or back as far as it was moved
    before (Hildreth 1957, A quadratic programming procedure). One pass is exact for orthonormal
    rows, as those of one emotion are. Of two correlated rows each pass leaves cos² of the error of
    the one before: after three, for a cosine of 0.5 or -0.5, at most 5 % of the excess.

    Args:
        h: See the module, as for all that is not named here.
        mu: Where readings are 0.
        directions: What is read.
        sigma: Their scales.
        ceiling: In σ, (rows,), or (batch, tokens, rows) for one of each token.
        sign: 1 where `ceiling` is one, -1 where it is a floor, (rows,).
        mask: Where.
        share: How much of the way, from 0 to 1.
    """
    with torch.autocast(h.device.type, enabled=False):
        wide = _wide(h)
        rows, scale, out = (x.to(wide) for x in (directions, sigma, sign))
        reading = (wide - mu.to(wide)) @ rows.mT / scale
        beyond = (reading - ceiling.to(wide)) * out * scale  # in the unit of h
        rows = rows * out.unsqueeze(1)  # now each points out of what is allowed
        overlap = rows @ rows.mT
        one = torch.eye(len(rows), dtype=wide.dtype, device=wide.device)
        moved = torch.zeros_like(beyond)
        for row in (*range(len(rows)),) * PASSES:
            step = torch.maximum(beyond[..., row], -moved[..., row]).unsqueeze(-1)
            moved, beyond = moved + step * one[row], beyond - step * overlap[row]
        return _moved(h, -share * (moved @ rows), mask)


def _wide(h: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def _moved(h: Tensor, by: Tensor, mask: Tensor | None) -> Tensor:
    """Moved where the mask is true, in its own dtype."""
    edited = (h + by).to(h.dtype)
    return edited if mask is None else torch.where(mask.to(h.device).unsqueeze(-1), edited, h)
