"""Which forward of a trainer is the policy's, and which one the host runs for the base anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from emoreg.batches import Batch
from emoreg.errors import CaptureError
from emoreg.tap import Call, Edit, Tap
from emoreg.tokens import Counted

Read = Callable[[dict[int, Tensor], Tensor], Tensor]  # outputs, at (tokens,) -> readings


class Forwards:
    """Watches a trainer's forwards for as long as it is open and armed.

    In training the policy's forward is the one with gradients; in evaluation the first one of the
    batch's tokens with the adapters on. The base's is one without gradients of the
    same tokens: of the model with its adapters off, or of a fixed reference model where there are
    no adapters. It may run beside the policy's, as in DPO, or while the rollout is made, as in
    GRPO; then its readings are kept by row until the next rollout.

    Args:
        model: The trainer's model.
        reference: The model the host takes for the base, if that is another one.
        blocks: Decoder blocks, counted from 0.
        read: Readings of block outputs at the given flat positions, (blocks, positions, rows).
        media: Ids in the place of images; rollouts with them are not told apart by their tokens.
        edit: What the policy's forward in training goes on with in place of a block's output.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        blocks: Sequence[int],
        read: Read,
        media: Sequence[int] = (),
        edit: Edit | None = None,
    ) -> None:
        self.read, self._media = read, list(media)
        self.policy = Tap(model, blocks, edit, when=self._is_policy)
        self.host = Tap(reference or model, blocks, when=self._is_base, done=self._keep)
        self.arm(False)
        self._adapters = next((m for m in model.modules() if isinstance(m, BaseTunerLayer)), None)
        self._apart = reference is not None
        self.renew()
        self._beside: dict[int, Tensor] = {}
        self._before: tuple[Counted, Tensor | None] | None = None
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
        self.renew()

    def renew(self) -> None:
        """Forget the base's readings of rollouts: from now on other rows are read."""
        self._rollouts = {True: Rollout(), False: Rollout()}  # of training, of evaluation

    def expect(self, batch: Batch | None, training: bool, counted: Counted | None = None) -> None:
        """Watch for the forward of a batch; None if its tokens are not known beforehand."""
        self.forget()
        self.batch, self.training = batch, training
        if batch is not None and counted is not None:  # now, lest a device is waited for later
            self._before = (counted, self._rollouts[training].of(batch, counted))
        self.arm(True)

    def arm(self, armed: bool) -> None:
        """Watch, or let forwards pass: those between the steps are other callbacks' own."""
        self.policy.armed = self.host.armed = armed

    def forget(self) -> None:
        """Let go of what was seen since `expect`."""
        self.policy.clear()
        self._beside, self._before = {}, None
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
            calls = [call for call in calls if self.batch and self.batch.is_of(call.ids)]
        if len(calls) != 1:
            raise CaptureError(
                f"{len(seen)} forwards with gradients went through the decoder blocks in one loss "
                f"of {trainer}, {len(calls)} of them of the batch's tokens; wanted exactly one. "
                "Was the model replaced after emoreg was attached, or does the trainer run the "
                "policy several times, or on other tokens than its batch holds?"
            )
        return calls[0]

    def base(self, batch: Batch, counted: Counted) -> dict[int, Tensor] | Tensor | None:
        """What the host has of the base: its outputs, or its readings of the counted tokens.

        The outputs are (batch, tokens, width) for each block, the readings (blocks, counted, rows).

        Args:
            batch: The policy's tokens.
            counted: Which of them count, virtual tokens not included.
        """
        if self._beside:
            return self._beside
        if self._before is not None and self._before[0] is counted:
            return self._before[1]
        return self._rollouts[self.training].of(batch, counted)

    def _is_policy(self, call: Call) -> bool:
        if self.training:
            return torch.is_grad_enabled()
        if self.policy.calls or self._adapters_off():
            return False
        return self.batch is not None and self.batch.is_of(call.ids)

    def _is_base(self, _call: Call) -> bool:
        return not torch.is_grad_enabled() and (self._apart or self._adapters_off())

    def _adapters_off(self) -> bool:
        return self._adapters is not None and bool(self._adapters.disable_adapters)

    def _keep(self, call: Call) -> None:
        """Keep a forward of the base: its outputs beside the policy's, else its readings."""
        if self.batch is not None:
            if self.batch.is_of(call.ids):
                self._beside = call.acts
            return
        ids, width = call.ids, next(iter(call.acts.values())).shape[1]
        mask = call.given.get("attention_mask", call.kwargs.get("attention_mask"))
        if ids is None or not isinstance(mask, Tensor) or mask.shape != ids.shape:
            return
        if ids.shape[1] != width or torch.isin(ids, torch.tensor(self._media).to(ids)).any():
            return  # a step of a generation, or tokens that do not tell the whole
        self._rollouts[self.training].add(ids, mask, lambda at: self.read(call.acts, at))


class Rollout:
    """The base's readings of the rollout in use, by the tokens of its rows."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Tensor] = {}  # (blocks, tokens of the row, rows of the probe)
        self._used = False

    def add(self, ids: Tensor, mask: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        """Keep some rows; the first after any was used begins another rollout."""
        if self._used:
            self._rows, self._used = {}, False
        real = mask.bool().cpu()
        found = read(real.flatten().nonzero().squeeze(1))
        lengths = real.sum(1).tolist()
        for key, part in zip(row_keys(ids, real), found.split(lengths, 1), strict=True):
            self._rows[key] = part

    def of(self, batch: Batch, counted: Counted) -> Tensor | None:
        """Readings of the counted tokens, (blocks, counted, rows), if all rows are kept."""
        self._used = True
        if not self._rows:
            return None
        mask = batch.attention_mask
        real = torch.ones_like(batch.ids).bool().cpu() if mask is None else mask.bool().cpu()
        keys = row_keys(batch.ids, real)
        if not all(key in self._rows for key in keys):
            return None
        place, counts = real.long().cumsum(1) - 1, counted.mask.cpu()
        kept = [self._rows[key] for key in keys]
        at = [place[i][counts[i]].to(part.device) for i, part in enumerate(kept)]
        return torch.cat([part[:, where] for part, where in zip(kept, at, strict=True)], 1)


def row_keys(ids: Tensor, real: Tensor) -> list[bytes]:
    """The tokens of each row without its padding, as a key."""
    return [row[here].numpy().tobytes() for row, here in zip(ids.cpu(), real, strict=True)]
