"""Which tokens of a trainer's micro-batch are read, and which of them are acted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer

from emoreg import quirks
from emoreg.accumulation import weighs
from emoreg.batches import Batch, media_ids, understand
from emoreg.blocks import unwrap
from emoreg.config import EmoRegConfig
from emoreg.errors import CaptureError, ConfigError
from emoreg.host import model_of
from emoreg.losses import Unit
from emoreg.repeats import without_repeats
from emoreg.tap import Call
from emoreg.tokens import Counted

Key = dict[str, tuple[Tensor, int]]  # name -> tensor, and its version


class Counting:
    """Tells the tokens of one micro-batch after the other.

    Args:
        trainer: Whose micro-batches.
        config: Its scope and sides.

    Attributes:
        media: Ids in the place of images, which never count.
        unit: What the trainer weighs alike in the micro-batch under way.
    """

    def __init__(self, trainer: Trainer, config: EmoRegConfig) -> None:
        self.trainer, self.config = trainer, config
        model = model_of(trainer)
        self.media = media_ids(unwrap(model).config)
        self._branches, self._virtual = quirks.branches(trainer), virtual_tokens(model)
        self.unit: Unit = "sequences"
        self._inputs: Any = None
        self._found: Counted | None = None
        self._training = True
        self._foreseen: list[tuple[Key, Counted]] = []  # of the window under way

    def begin(self, inputs: Any, training: bool = True) -> tuple[Batch | None, Counted | None]:
        """The next micro-batch, if its keys tell it already.

        A loss may take keys out of its inputs, and a device is not to be waited for after the
        forward: so what can be told is settled now.
        """
        self._inputs, self.unit = inputs, weighs(self.trainer, inputs)
        self._training = training
        batch = understand(inputs, self._branches)
        known = (found for key, found in self._foreseen if _is_of(key, inputs))
        self._found = None if batch is None else next(known, None) or self._count(batch)
        return batch, self._found

    def end(self) -> None:
        """Let go of the micro-batch."""
        self._inputs = self._found = None

    def foresee(self, inputs: Any) -> Counted | None:
        """What counts in a batch that is still to come, if it tells.

        It is kept until `forget`: counting twice would wait for a device twice.
        """
        batch = understand(inputs, self._branches)
        found = None if batch is None else self.count(batch)
        if found is not None:
            self._foreseen.append((_key(inputs), found))
        return found

    def forget(self) -> None:
        """The window is over: let go of what was foreseen."""
        self._foreseen = []

    def of(self, call: Call, batch: Batch | None, look: bool) -> tuple[Batch, Counted]:
        """The micro-batch as the forward saw it, and what counts in it.

        Args:
            call: The policy's forward, under way or done.
            batch: What `begin` gave.
            look: Whether to compare the tokens, for which a device is waited.

        Raises:
            CaptureError: Nothing tells its tokens, or they are not those of the forward.
        """
        found = self._fitting(call, batch or self._as_called(call), look)
        counted = self._found or self._count(found)
        if found.ids.shape != counted.mask.shape:
            counted = self._count(found)  # cut by the trainer
        return found, counted

    def other(self, call: Call, batch: Batch | None) -> bool:
        """Whether a forward is known to be of other tokens than a batch, whole or cut on the left.

        A device is waited for, unless the batch's own tensor went in.
        """
        if batch is None or call.ids is None:
            return False
        cut = call.ids.dim() == 2 and call.ids.shape[1] < batch.ids.shape[1]
        return not (batch.last(call.ids.shape[1]) if cut else batch).is_of(call.ids)

    def _count(self, batch: Batch) -> Counted:
        """The same as `count`; in an evaluation each row of the data once, whoever repeats it."""
        counted = self.count(batch)
        if self._training or not isinstance(self._inputs, Mapping):  # a list asks for rollouts
            return counted
        return without_repeats(counted, self.trainer.accelerator, len(self._branches))

    def count(self, batch: Batch) -> Counted:
        """What is read of a batch and what the terms act on.

        Raises:
            ConfigError: The batch does not tell a scope or a side that was asked for.
        """
        if "tool" in self.config.emoreg_scope and batch.tool is None:
            raise ConfigError(
                f"emoreg_scope asks for tool, and the batches of {type(self.trainer).__name__} do "
                "not tell tool output from the rest of the prompt. Use prompt, or a trainer with "
                "tools."
            )
        counted = batch.count(self.config.emoreg_scope, self.media)
        counted = counted.of(self.config.emoreg_sides or ())
        _ = counted.number(self.unit), counted.groups, counted.read_sequences
        return counted

    def _fitting(self, call: Call, batch: Batch | None, look: bool) -> Batch:
        """The batch, of as many tokens as the blocks saw.

        Raises:
            CaptureError: Nothing tells its tokens, or they are not those of the forward.
        """
        name = type(self.trainer).__name__
        if batch is None:
            raise CaptureError(
                f"The batches of {name} do not tell which tokens are completions (they have "
                f"{', '.join(self._inputs or ()) or 'no keys'}). emoreg reads labels, "
                "completion_mask, prompt_ids with completion_ids, chosen_… with rejected_…, or the "
                "labels that the model is called with; see emoreg.batches."
            )
        rows, width, *_ = next(iter(call.acts.values())).shape
        seen = (rows, width - self._virtual)
        if seen[1] < batch.ids.shape[1] and batch.last(seen[1]).is_of(call.ids):
            batch = batch.last(seen[1])
        wrong = call.ids is not None and look and not batch.is_of(call.ids)
        if wrong or seen != tuple(batch.ids.shape):
            raise CaptureError(
                f"The inputs of {name} are of {tuple(batch.ids.shape)} tokens and the block "
                f"outputs of {seen}{' other ones' if wrong else ''}, so it is unknown which "
                "count. Is the sequence split over devices or cut, or images put in "
                "by the model?"
            )
        return batch

    def _as_called(self, call: Call) -> Batch | None:
        """The batch as the model itself was told it, by labels, which its loss weighs alike."""
        ids, labels = call.ids, call.given.get("labels")
        if ids is None or not isinstance(labels, Tensor) or labels.shape != ids.shape:
            return None
        self.unit = "tokens"
        return Batch(ids, labels, call.given.get("attention_mask"), call.given.get("position_ids"))


def _key(inputs: Mapping[str, Any]) -> Key:
    """The tensors of a batch, and how often each was written to."""
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    return {k: (v, 0 if v.is_inference() else v._version) for k, v in tensors.items()}


def _is_of(key: Key, inputs: Any) -> bool:
    """Whether a batch holds these very tensors, unwritten since."""
    if not isinstance(inputs, Mapping):
        return False
    own = _key(inputs)
    return own.keys() == key.keys() and all(
        own[k][0] is tensor and own[k][1] == version for k, (tensor, version) in key.items()
    )


def virtual_tokens(model: Any) -> int:
    """How many outputs of a block stand before a sequence's own: those of a learned prompt."""
    config: Any = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False) or "PREFIX" in str(config.peft_type):
        return 0
    return int(config.num_virtual_tokens)
