"""The unit of a reading: how far neutral tokens spread along a direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from emoreg.encode import Encoded
from emoreg.moments import Projections
from emoreg.sweep import Acts, sweep


def spread(
    model: nn.Module,
    neutral: Sequence[Encoded],
    blocks: Sequence[int],
    directions: Tensor,
    mu: Tensor,
    batch_tokens: int,
    tell: Callable[[Sequence[Encoded]], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Spread of neutral tokens along directions, the unit σ, and their mean length.

    Args:
        model: As it stands.
        neutral: Neutral texts, sorted by length.
        blocks: Decoder blocks, counted from 0.
        directions: (rows, blocks, width).
        mu: Mean activation over the counted tokens, (blocks, width).
        batch_tokens: Padded tokens in one forward.
        tell: Called with the texts of each batch.

    Returns:
        Standard deviations, (rows, blocks), and mean norms, (blocks,); float64.
    """
    rows, centre = directions.float(), mu.float()

    def project(acts: Acts, group: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        row = [i for i, e in enumerate(group) for _ in e.counted]
        column = [c for e in group for c in e.counted]
        found, norms = [], []
        for b, h in enumerate(acts.values()):
            kept = h[row, column].float()
            along = (kept - centre[b].to(h.device)) @ rows[:, b].T.to(h.device)
            found.append(along.cpu().double())
            norms.append(kept.norm(dim=-1).cpu().double())
        return torch.stack(found, -1), torch.stack(norms, -1)

    sums, lengths = Projections(), Projections()
    for group, (along, norms) in sweep(model, neutral, blocks, batch_tokens, project):
        sums.add(along)
        lengths.add(norms.unsqueeze(1))
        if tell is not None:
            tell(group)
    return sums.deviation(), lengths.mean()[0]
