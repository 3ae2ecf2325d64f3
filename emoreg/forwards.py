"""Which forward of a trainer is the policy's, and which one the host runs for the base anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from emoreg.batches import Batch
from emoreg.errors import CaptureError
from emoreg.tap import Call, Tap, policy_forward
from emoreg.tokens import Counted

Read = Callable[[dict[int, Tensor], Tensor], Tensor]  # outputs, at (tokens,) -> readings


class Forwards:
    """Watches a trainer's forwards for as long as it is open.

    In training the policy's forward is the one with gradients in training mode; in evaluation the
    first one of the batch's tokens with the adapters on. The base's is one without gradients of the
    same tokens: of the model with its adapters off, or of a fixed reference model where there are
    no adapters. It may run beside the policy's, as in DPO, or while the rollout is made, as in
    GRPO; then its readings are kept by row until the next rollout.

    Args:
        model: The trainer's model.
        reference: The model the host takes for the base, if that is another one.
        blocks: Decoder blocks, counted from 0.
        read: Readings of block outputs at the given flat positions, (blocks, positions, rows).
    """

    def __init__(
        self, model: nn.Module, reference: nn.Module | None, blocks: Sequence[int], read: Read
    ) -> None:
        self.model, self.read = model, read
        self.policy = Tap(model, blocks, when=self._is_policy)
        self.host = Tap(reference or model, blocks, when=self._is_base, done=self._keep)
        self._adapters = next((m for m in model.modules() if isinstance(m, BaseTunerLayer)), None)
        self._apart = reference is not None
        self._rows: dict[bytes, Tensor] = {}  # ids of a row -> (blocks, its tokens, rows)
        self._rows_used = False
        self._beside: dict[int, Tensor] = {}
        self.batch: Batch | None = None
        self.training = False

    def open(self) -> None:
        """Put the hooks in place."""
        self.policy.open()
        self.host.open()

    def close(self) -> None:
        """Take the hooks away and forget everything."""
        self.policy.close()
        self.host.close()
        self.forget()
        self._rows = {}

    def expect(self, batch: Batch | None, training: bool) -> None:
        """Watch for the forward of a batch; None if its tokens are not known beforehand."""
        self.forget()
        self.batch, self.training = batch, training
        self.arm(True)

    def arm(self, armed: bool) -> None:
        """Watch, or let forwards pass: those between the steps are other callbacks' own."""
        self.policy.armed = self.host.armed = armed

    def forget(self) -> None:
        """Let go of what was seen since `expect`."""
        self.policy.clear()
        self._beside = {}
        self.batch = None

    def found(self, trainer: str) -> Call | None:
        """The policy's forward, or None in evaluation if there was none.

        Raises:
            CaptureError: In training: none, several, or one of other tokens than the batch's.
        """
        seen = calls = [call for call in self.policy.calls if call.acts]
        if not self.training:
            return calls[0] if calls else None
        if len(calls) > 1:  # a trainer of one's own may run other texts with gradients too
            calls = [call for call in calls if self.batch and same(call.ids, self.batch.ids)]
        if len(calls) != 1:
            raise CaptureError(
                f"{len(seen)} forwards with gradients went through the decoder blocks in one loss "
                f"of {trainer}, {len(calls)} of them of the batch's tokens; wanted exactly one. "
                "Was the model replaced, or compiled and run before emoreg was attached, or does "
                "the trainer run the policy several times?"
            )
        return calls[0]

    def base(self, batch: Batch, counted: Counted) -> Tensor | None:
        """The base's readings of the counted tokens, (blocks, counted, rows), if the host has them.

        Args:
            batch: The policy's tokens.
            counted: Which of them count, virtual tokens not included.
        """
        at = counted.mask.flatten().nonzero().squeeze(1)
        if self._beside:
            return self.read(self._beside, at)
        self._rows_used = True
        if not self._rows:
            return None
        keys = row_keys(batch.ids, batch.attention_mask)
        if not all(key in self._rows for key in keys):
            return None
        real = torch.ones_like(batch.ids) if batch.attention_mask is None else batch.attention_mask
        place = real.long().cumsum(1) - 1  # of a token in its row without padding
        kept = [self._rows[key][:, place[i][counted.mask[i]]] for i, key in enumerate(keys)]
        return torch.cat(kept, 1)

    def _is_policy(self, call: Call) -> bool:
        if self.training:
            return policy_forward(call)
        if self.policy.calls or self._adapters_off():
            return False
        return self.batch is not None and same(call.ids, self.batch.ids)

    def _is_base(self, _call: Call) -> bool:
        return not torch.is_grad_enabled() and (self._apart or self._adapters_off())

    def _adapters_off(self) -> bool:
        return self._adapters is not None and bool(self._adapters.disable_adapters)

    def _keep(self, tap: Tap) -> None:
        """Keep a forward of the base: its outputs beside the policy's, else its readings."""
        call = tap.calls[-1]
        tap.clear()
        if self.batch is not None:
            if same(call.ids, self.batch.ids):
                self._beside = call.acts
            return
        ids = call.ids
        mask = call.given.get("attention_mask", call.kwargs.get("attention_mask"))
        width = next(iter(call.acts.values())).shape[1]
        known = isinstance(mask, Tensor) and ids is not None and mask.shape == ids.shape
        if ids is None or not known or ids.shape[1] != width:
            return  # a step of a generation, or tokens that cannot be told apart
        if self._rows_used:
            self._rows, self._rows_used = {}, False
        for i, key in enumerate(row_keys(ids, mask)):
            at = mask[i].nonzero().squeeze(1) + i * width
            self._rows[key] = self.read(call.acts, at)


def same(ids: Tensor | None, wanted: Tensor) -> bool:
    """Whether a forward is of the tokens that are wanted."""
    return ids is not None and ids.shape == wanted.shape and torch.equal(ids, wanted.to(ids.device))


def row_keys(ids: Tensor, attention_mask: Tensor | None) -> list[bytes]:
    """The tokens of each row without its padding, as a key."""
    rows: Any = ids.cpu().numpy()
    if attention_mask is None:
        return [row.tobytes() for row in rows]
    real = attention_mask.bool().cpu().numpy()
    return [row[here].tobytes() for row, here in zip(rows, real, strict=True)]
