"""The logit lens: which tokens a direction pushes up and down through the unembedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from emoreg.blocks import unwrap
from emoreg.probe import Facet

TOKENS = 8


@dataclass(frozen=True)
class Lens:
    """One emotion's tokens."""

    emotion: str
    up: tuple[str, ...]
    down: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


@torch.no_grad()
def logit_lens(model: nn.Module, tokenizer: Any, facet: Facet) -> Iterator[Lens]:
    """Tokens at both ends of the unembedding of each direction, at the facet's last block.

    The final norm's scale is left out: a direction has no length of its own. Nothing is given for
    a model without an output embedding.
    """
    head = unwrap(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.dim() != 2 or weight.shape[-1] != facet.directions.shape[-1]:
        return
    rows = facet.directions[:, -1].to(weight.device)
    known = min(len(tokenizer), len(weight))
    logits = torch.cat([w.float() @ rows.T for w in weight[:known].split(8192)])
    for i, emotion in enumerate(facet.emotions):
        order = logits[:, i].argsort()
        up, down = (
            tuple(tokenizer.decode([int(at)]) for at in part)
            for part in (order.flip(0)[:TOKENS], order[:TOKENS])
        )
        yield Lens(emotion, up, down)
