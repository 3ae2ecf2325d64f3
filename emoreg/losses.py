"""The terms of the loss: pure functions of tensors, in float32, each averaged over counted tokens.

For a penalised emotion the term is relu(r - (c + m))², for a rewarded one relu((c + m) - r)²,
and the keep term is the squared excess of all others over the base; r is a reading in σ, c the
anchor and m the margin. Each is zero, with zero gradient, where it is satisfied.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu

Pool = Literal["mean", "top"]
Unit = Literal["tokens", "sequences"]
TOP_SHARE = 0.1  # of a sequence's counted tokens, at least one


def readings(acts: Tensor, directions: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Readings r = ((h - mu) · v) / sigma.

    Args:
        acts: Output of one block, (..., width), any float dtype.
        directions: Unit rows, (emotions, width).
        mu: Mean activation over the neutral texts, (width,).
        sigma: Standard deviation of the projection over the neutral texts, (emotions,).

    Returns:
        Readings in σ, float32, (..., emotions).
    """
    with torch.autocast(acts.device.type, enabled=False):
        return ((acts.float() - mu) @ directions.mT) / sigma


def penalty(reading: Tensor, anchor: Tensor | float, margin: float) -> Tensor:
    """relu(r - (c + m))² per token, in σ², shaped as `reading`."""
    return relu(reading - (anchor + margin)).square()


def reward(reading: Tensor, anchor: Tensor | float, margin: float) -> Tensor:
    """relu((c + m) - r)² per token, in σ², shaped as `reading`: enough of it costs nothing."""
    return relu((anchor + margin) - reading).square()


def keep(excess: Tensor) -> Tensor:
    """Squared excess, mean over the last axis, in σ²: (..., emotions) -> (...)."""
    return excess.square().mean(-1)


def pooled_sum(
    values: Tensor, sequence: Tensor, pool: Pool = "mean", by: Unit = "tokens"
) -> Tensor:
    """Sum over counted tokens or sequences; divided by their number it is the pooled mean.

    With ``top`` each sequence is represented by the mean of its highest tenth instead of the mean
    of all its tokens. By tokens it weighs as many as it has counted tokens, by sequences 1; both
    pools weigh sequences alike and have the same divisor.

    Args:
        values: One value per counted token, (counted,), or several, (counted, kinds).
        sequence: Which sequence each token belongs to, int64, (counted,), in order, and each below
            the number of tokens.
        pool: ``mean`` or ``top``.
        by: What the sum is divided by afterwards, the number of ``tokens`` or ``sequences``.

    Returns:
        Scalar, or one for each kind; zero where nothing counts.
    """
    if pool == "mean" and by == "tokens":
        return values.sum(0)
    # As long as there could be sequences at most: their number would have to be waited for.
    size = torch.zeros_like(sequence).index_add(0, sequence, torch.ones_like(sequence))
    weight = size if by == "tokens" else (size > 0).to(size)
    kinds = [1] * (values.dim() - 1)  # of each token's own numbers, to go beside its values
    if pool == "mean":
        return (values / size[sequence].view(-1, *kinds)).sum(0)
    order = torch.argsort(values.detach(), dim=0, descending=True)
    order = order.gather(0, torch.argsort(sequence[order], dim=0, stable=True))
    row = sequence[order]
    place = torch.arange(len(values), device=values.device).view(-1, *kinds)
    rank = place - (size.cumsum(0) - size)[row]
    kept = (size * TOP_SHARE).ceil()
    share = (weight / kept.clamp(min=1))[row]
    return torch.where(rank < kept[row], values.gather(0, order) * share, 0.0).sum(0)
