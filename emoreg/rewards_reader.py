"""The rollouts of a trainer as readings: their tokens, and one forward for all rewards."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Trainer

from emoreg.bank import Text
from emoreg.base import base_model, has_adapters, reference_model
from emoreg.batches import media_ids
from emoreg.blocks import unwrap
from emoreg.encode import Encoded
from emoreg.errors import CaptureError, ConfigError
from emoreg.host import model_of
from emoreg.losses import pooled_sum
from emoreg.probe import Probe
from emoreg.prompts import with_template
from emoreg.responses import Ids, ends
from emoreg.sweep import Acts, sweep
from emoreg.tap import sharded
from emoreg.vectors import EmotionVectors
from emoreg.vitals import picked

BATCH_TOKENS = 8192  # padded, in one forward
log = logging.getLogger(__name__)


class Rollouts(NamedTuple):
    """What a trainer hands a reward function: texts or lists of messages, and token ids."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    ids: Sequence[Sequence[int]] | None  # of the completions, exactly as they were sampled


class RolloutReader:
    """Reads completions with one probe, from the base or from the policy, without gradients.

    The forward is that of the trainer's own model, up to the deepest block: no weights are copied
    and nothing is asked of vLLM. Several rewards that share a reader share the forward: a batch is
    run again only when one of them asks for it a second time.

    Args:
        trainer: Whose rollouts; not kept.
        vectors: The set; if it was not found usable, this is told.
        probe: Its facets and blocks that are read.
        base: Whether the base is read, instead of the policy.

    Raises:
        ConfigError: There is no base.
    """

    def __init__(self, trainer: Trainer, vectors: EmotionVectors, probe: Probe, base: bool) -> None:
        model = model_of(trainer)
        if base and not has_adapters(model) and reference_model(trainer) is None:
            raise ConfigError(
                f"read_from is 'base', but {type(model).__name__} has no adapters to switch off "
                "and the trainer no fixed reference model. Train with peft_config, or with beta "
                "above 0 (TRL then keeps a reference), or set read_from to 'policy'."
            )
        if vectors.caveat:
            log.warning(vectors.caveat)
        self.vectors = vectors
        self._all, self._base = probe.to(trainer.accelerator.device), base
        self._probe, self._emotions = self._all, list[str]()
        self._batch: Sequence[Any] | None = None  # the completions that were read last
        self._found: list[Tensor] = []
        self._told: set[int] = set()
        self._warned = False

    def join(self, emotion: str) -> None:
        """Read this emotion too."""
        if emotion not in self._emotions:
            self._emotions.append(emotion)
            self._batch = None
            self._probe = self._all.only([r for e in self._emotions for r in self._all.of(e)])

    def readings(
        self, trainer: Trainer, rollouts: Rollouts, emotion: str, who: object
    ) -> list[Tensor]:
        """The reading of each token of each completion, mean over blocks and facets.

        Args:
            trainer: Whose rollouts.
            rollouts: Of this process; where the model is sharded, every process must ask.
            emotion: One that joined.
            who: Asks; a second time means that the batch is to be read again.

        Returns:
            In σ, float32 on the CPU, (tokens,) for each rollout.

        Raises:
            CaptureError: A reading that is not finite, images in a prompt, or out of memory.
        """
        if rollouts.completions is not self._batch or id(who) in self._told:
            self._batch, self._told = None, set()
            self._found = self._read(trainer, rollouts)
            self._batch = rollouts.completions
        self._told.add(id(who))
        column = self._emotions.index(emotion)
        return [found[:, column] for found in self._found]

    def _read(self, trainer: Trainer, rollouts: Rollouts) -> list[Tensor]:
        """Readings of all emotions, (tokens, emotions) for each rollout."""
        self._warn_of_tools(rollouts)
        items = encode_rollouts(trainer, rollouts)
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        own = base_model(trainer) if self._base else nullcontext(model_of(trainer))
        found: list[Tensor] = []
        with trainer.accelerator.autocast(), _on(trainer.accelerator.device), own as model:
            rows, budget = len(items), BATCH_TOKENS
            if sharded(model):  # as many forwards in every process, whatever the lengths
                rows, budget = trainer.args.per_device_train_batch_size, sys.maxsize
            for start in range(0, len(items), rows):
                part = [items[i] for i in order[start : start + rows]]
                for _, read in sweep(model, part, self._probe.blocks, budget, self._of_tokens):
                    found += read
        by_place = dict(zip(order, found, strict=True))
        return [by_place[place] for place in range(len(items))]

    def _of_tokens(self, acts: Acts, group: Sequence[Encoded]) -> list[Tensor]:
        """Readings of a batch's counted tokens, (tokens, emotions) for each rollout."""
        first = next(iter(acts.values()))
        flat = [i * first.shape[1] + at for i, e in enumerate(group) for at in e.counted]
        at = torch.tensor(flat, dtype=torch.long)
        every = self._probe.read({b: picked(h, at) for b, h in acts.items()})
        sizes = [len(e.counted) for e in group]
        if not bool(every.isfinite().all()):
            block, token, _ = (~every.isfinite()).nonzero()[0].tolist()
            rollout = next(i for i in range(len(sizes)) if token < sum(sizes[: i + 1]))
            raise CaptureError(
                f"Block {self._probe.blocks[block]} gives NaN or infinite activations on "
                f"{group[rollout].text.name} ({first.dtype}). Load the model in bfloat16 or "
                "float32; if it is so already, its weights are broken or the run has diverged."
            )
        of = [every[..., self._probe.of(e)].mean((0, -1)) for e in self._emotions]
        return list(torch.stack(of, -1).cpu().split(sizes))

    def _warn_of_tools(self, rollouts: Rollouts) -> None:
        said = (m for c in rollouts.completions if not isinstance(c, str) for m in c)
        if not self._warned and any(m.get("role") == "tool" for m in said):
            self._warned = True
            log.warning(
                "Completions hold what tools put out; trainers do not tell rewards which tokens "
                "those are, so they are read as if the policy had written them."
            )


@dataclass
class Desk:
    """What the rewards of one trainer share."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # who has it, has the model
    readers: dict[Any, RolloutReader] = field(default_factory=dict)

    def reader(
        self, trainer: Trainer, vectors: EmotionVectors, probe: Probe, base: bool
    ) -> RolloutReader:
        """The reader for these directions.

        Raises:
            ConfigError: There is no base.
        """
        key = (id(vectors), probe.rows, probe.blocks, base)
        if key not in self.readers:
            self.readers[key] = RolloutReader(trainer, vectors, probe, base)
        return self.readers[key]


_DESKS: WeakKeyDictionary[Trainer, Desk] = WeakKeyDictionary()


def desk_of(trainer: Trainer) -> Desk:
    """The desk of a trainer, for as long as that lives."""
    return _DESKS.setdefault(trainer, Desk())


def encode_rollouts(trainer: Trainer, rollouts: Rollouts) -> list[Encoded]:
    """Each prompt and completion as token ids; the completion's count.

    Prompts are tokenised as the trainer does it. The token that ends a completion does not count,
    unless it is alone: it would tell completions that end from those that were cut off. Neither
    does the first token of all, an attention sink.

    Raises:
        CaptureError: Images in a prompt, which the reading forward would not see.
    """
    inner: Any = unwrap(model_of(trainer))
    tokenizer = with_template(trainer.processing_class)
    media, stops = set(media_ids(inner.config)), ends(inner, tokenizer)
    given = rollouts.ids
    if given is None:
        texts = [c if isinstance(c, str) else _said(c) for c in rollouts.completions]
        given = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = []
    asked = prompt_ids(trainer, tokenizer, rollouts.prompts)
    for n, (before, after) in enumerate(zip(asked, given, strict=True), 1):
        if media & {*before, *after}:
            raise CaptureError(
                f"Rollout {n} has an image, video or sound in it, which a reward cannot read; "
                "train on text, or use EmotionRegularizer, which reads the trainer's own forward."
            )
        ids = [*before, *_without_end(after, stops)]
        counted = list(range(max(1, len(before)), len(ids)))
        found.append(Encoded(Text("neutral", text=f"rollout {n}"), ids, counted, []))
    return found


def prompt_ids(trainer: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Ids]:
    """Token ids of prompts, plain or conversations, as GRPOTrainer and RLOOTrainer make them."""
    if isinstance(prompts[0], str):
        plain: list[Ids] = tokenizer(list(prompts))["input_ids"]
        return plain
    in_parts = getattr(trainer.processing_class, "tokenizer", None) is not None
    chats = [[_in_parts(m) if in_parts else m for m in prompt] for prompt in prompts]
    rendered: list[Ids] = tokenizer.apply_chat_template(
        chats,
        tools=getattr(trainer, "tools", None) or None,
        chat_template=getattr(trainer, "chat_template", None),
        add_generation_prompt=True,
        return_dict=True,
        **(getattr(trainer, "chat_template_kwargs", None) or {}),
    )["input_ids"]
    return rendered


def pooled(tokens: Tensor, pool: str) -> float:
    """Mean, mean of the top tenth, or maximum of a completion's readings, (tokens,), not empty."""
    if pool == "max":
        return float(tokens.max())
    one = torch.zeros(len(tokens), dtype=torch.long)
    return float(pooled_sum(tokens, one, "top" if pool == "top" else "mean", "sequences"))


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The same message as templates of multimodal models want it."""
    content = message.get("content")
    return {
        **message,
        "content": [{"type": "text", "text": content}] if isinstance(content, str) else content,
    }


def _said(messages: Sequence[dict[str, Any]]) -> str:
    return "".join(str(m.get("content") or "") for m in messages)


def _without_end(ids: Sequence[int], stops: set[int]) -> Sequence[int]:
    size = len(ids)
    while size > 1 and ids[size - 1] in stops:
        size -= 1
    return ids[:size]


def _on(device: torch.device) -> Any:
    """The device, made current: every thread begins on the first one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
