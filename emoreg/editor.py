"""From a configuration to the edits of the blocks' outputs that its method makes in training."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from emoreg import edits
from emoreg.blocks import find_backbone
from emoreg.config import EmoRegConfig
from emoreg.errors import ConfigError
from emoreg.probe import Probe


class Editor:
    """Edits block outputs as `prevent`, `ablate` or `cap` asks; see `emoreg.edits`.

    Args:
        probe: Every row that is read.
        config: The knobs; emotions with weight 0 are left alone.
    """

    def __init__(self, probe: Probe, config: EmoRegConfig) -> None:
        self.method, self.margin = config.emoreg_method, config.emoreg_margin
        given = {
            **{e: (w, 1.0) for e, w in config.penalize.items()},
            **{e: (w, -1.0) for e, w in config.reward.items()},
        }
        acting = {e: found for e, found in given.items() if found[0] > 0}
        rows = [row for e in acting for row in probe.of(e)]
        self.probe = probe.only(rows)
        pairs = [acting[e] for _, e in self.probe.rows]
        # Penalised up, rewarded down; and of `cap` which side is too far.
        self._weight = torch.tensor([weight for weight, _ in pairs])
        self._sign = torch.tensor([sign for _, sign in pairs])

    def __call__(self, block: int, h: Tensor, mask: Tensor, scale: float) -> Tensor:
        """The output that training goes on with.

        Args:
            block: Decoder block, counted from 0.
            h: Its own output, (batch, tokens, width).
            mask: Tokens that count, bool, (batch, tokens).
            scale: Factor on every weight, as from a warm-up.
        """
        if self.probe.mu.device != h.device:
            self._move(h.device)
        at = self.probe.blocks.index(block)
        rows, sigma = self.probe.directions[at], self.probe.sigma[at]
        if self.method == "prevent":
            # As many blocks as are watched share what is added: it adds up along the stream.
            strength = scale * self._weight * self._sign / len(self.probe.blocks)
            return edits.prevent(h, rows, sigma, strength, mask)
        if self.method == "ablate":
            share = scale * float(self._shares[0])
            return edits.ablate(h, self.probe.mu[at], self._spans[at], share, mask)
        share = scale * float(self._shares.max())
        ceiling = self._sign * self.margin
        return edits.cap(h, self.probe.mu[at], rows, sigma, ceiling, self._sign, mask, share)

    @cached_property
    def _shares(self) -> Tensor:
        return self._weight.cpu()

    @cached_property
    def _spans(self) -> list[Tensor]:
        """Orthonormal rows of each block's span."""
        return [edits.span(rows) for rows in self.probe.directions]

    def _move(self, device: torch.device) -> None:
        self.probe = self.probe.to(device)
        self._weight, self._sign = self._weight.to(device), self._sign.to(device)
        self.__dict__.pop("_spans", None)


def check_checkpointing(model: nn.Module) -> None:
    """Check that an edit would be made once, outside of what checkpointing runs again.

    Some versions of Transformers checkpoint a block's `__call__` and with it the hooks on it, which
    run again in backward, when nothing is edited any more.

    Raises:
        ConfigError: They do here.
    """
    for block in find_backbone(model).blocks:
        inside = type(block).__call__ is not nn.Module.__call__
        if inside and getattr(block, "gradient_checkpointing", False):
            raise ConfigError(
                f"Gradient checkpointing runs the hooks of {type(block).__name__} again in "
                "backward, so edits would give wrong gradients. Update transformers, switch "
                "gradient_checkpointing off, or use emoreg_method: penalty."
            )
