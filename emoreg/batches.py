"""What a trainer's batch holds, told from its keys: tokens, completion, tool output and sides.

No trainer is named here. Seven forms cover TRL's trainers and their subclasses:

    chosen_input_ids, chosen_labels, rejected_…   two halves that the trainer puts together
    prompt_ids, completion_ids, completion_mask   a rollout; tool_mask is 0 at tool output
    input_ids, labels or shift_labels             -100 where the token is no target
    input_ids, completion_mask                    preferences, or one answer with a label
    completion_input_ids, completion_labels       one answer with a label, in older versions
    input_ids, logits_to_keep                     a rollout put together already
    input_ids of preferences                      the completion begins where two answers part

Sides: *chosen*, *rejected* (and a gold *reference*) are the parts of a batch of preferences;
*desired*, *undesired* its boolean ``label``; *rewarded* sequences have an advantage above 0 and
*unrewarded* ones the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from emoreg.tokens import Counted, count_tokens

IGNORED = -100  # the label of a token that is no target


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward of the policy, as the trainer's batch tells them."""

    ids: Tensor  # int64, (rows, tokens)
    labels: Tensor  # int64, (rows, tokens), IGNORED where the token is not of a completion
    attention_mask: Tensor | None = None  # (rows, tokens)
    position_ids: Tensor | None = None  # (rows, tokens)
    tool: Tensor | None = None  # bool, (rows, tokens), where it is told
    sides: Mapping[str, Tensor] = field(default_factory=dict)  # side -> bool, (rows,)

    def count(self, scope: Collection[str], never: Sequence[int] = ()) -> Counted:
        """The tokens that count.

        Args:
            scope: Some of ``completion``, ``colon``, ``prompt``, ``tool``.
            never: Ids that never count: the places of images.
        """
        found = count_tokens(self.labels, scope, self.attention_mask, self.position_ids, self.tool)
        own = ~torch.isin(self.ids, torch.tensor(never, device=self.ids.device))
        places = {name: mask & own for name, mask in found.places.items()}
        return replace(found, mask=found.mask & own, places=places, sides=self.sides)

    def is_of(self, ids: Tensor | None) -> bool:
        """Whether a forward's tokens are these; what stands in the place of padding is anyone's."""
        if ids is None or ids.shape != self.ids.shape:
            return False
        if ids.data_ptr() == self.ids.data_ptr():
            return True  # the same memory: no device is waited for
        same = ids == self.ids.to(ids.device)
        if self.attention_mask is not None:
            same |= self.attention_mask.to(ids.device) == 0
        return bool(same.all())

    def last(self, width: int) -> Batch:
        """The last tokens of each row, as a trainer leaves them that cuts prompts on the left."""
        names = ("ids", "labels", "attention_mask", "position_ids", "tool")
        values = ((name, getattr(self, name)) for name in names)
        return replace(self, **{k: v[:, -width:] for k, v in values if v is not None})


def understand(inputs: Any, branches: Sequence[str] = ()) -> Batch | None:
    """The batch of a trainer, or None if its keys say nothing about tokens.

    Args:
        inputs: What reaches `compute_loss` or `prediction_step`.
        branches: The sides that the rows of a batch of preferences are made of, in order.
    """
    if not isinstance(inputs, Mapping):
        return None
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    for keys, form in FORMS.items():
        if all(key in tensors or isinstance(inputs.get(key), int) for key in keys):
            return form(inputs, branches)
    if branches and "input_ids" in tensors:
        return _compared(inputs, branches)
    return None


def _halves(inputs: Mapping[str, Any], _branches: Sequence[str]) -> Batch:
    def joined(name: str, fill: int) -> Tensor:
        parts = [inputs[f"{side}_{name}"] for side in ("chosen", "rejected")]
        width = max(part.shape[1] for part in parts)
        return torch.cat([pad(part, (0, width - part.shape[1]), value=fill) for part in parts])

    ids = joined("input_ids", 0)
    mask = joined("attention_mask", 0) if "chosen_attention_mask" in inputs else None
    sides = _sides(ids, ("chosen", "rejected"))
    return Batch(ids, joined("labels", IGNORED), mask, sides=sides)


def _rollout(inputs: Mapping[str, Any], _branches: Sequence[str]) -> Batch:
    prompt, completion = inputs["prompt_ids"], inputs["completion_ids"]
    before = inputs.get("prompt_mask")
    before = torch.ones_like(prompt) if before is None else before
    after = inputs["completion_mask"]
    own = after if inputs.get("tool_mask") is None else after * inputs["tool_mask"]
    tool = None
    if inputs.get("tool_mask") is not None:
        tool = torch.cat([torch.zeros_like(before), after - own], 1).bool()
    return Batch(
        torch.cat([prompt, completion], 1),
        torch.cat([torch.full_like(prompt, IGNORED), _masked(completion, own)], 1),
        torch.cat([before, after], 1),
        tool=tool,
        sides=_rewarded(inputs),
    )


def _labelled(inputs: Mapping[str, Any], _branches: Sequence[str]) -> Batch | None:
    labels = inputs.get("labels")
    if labels is None:
        labels = pad(inputs["shift_labels"][:, :-1], (1, 0), value=IGNORED)
    if labels.shape != inputs["input_ids"].shape:
        return None  # a class for each row
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    return Batch(inputs["input_ids"], labels, mask, positions)


def _marked(inputs: Mapping[str, Any], branches: Sequence[str]) -> Batch:
    ids = inputs["input_ids"]
    sides = _desired(inputs, ids) or _sides(ids, branches)
    labels = _masked(ids, inputs["completion_mask"])
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    return Batch(ids, labels, mask, positions, sides=sides)


def _answered(inputs: Mapping[str, Any], _branches: Sequence[str]) -> Batch:
    ids = inputs["completion_input_ids"]
    mask = inputs.get("completion_attention_mask")
    return Batch(ids, inputs["completion_labels"], mask, sides=_desired(inputs, ids))


def _kept(inputs: Mapping[str, Any], _branches: Sequence[str]) -> Batch:
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    own = torch.ones_like(ids) if mask is None else mask.clone()
    own[:, : -int(inputs["logits_to_keep"])] = 0
    return Batch(ids, _masked(ids, own), mask, sides=_rewarded(inputs))


def _compared(inputs: Mapping[str, Any], branches: Sequence[str]) -> Batch | None:
    """Two answers to one prompt: the completion begins where they part."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    sides = _sides(ids, branches)
    if not sides:
        return None
    real = torch.ones_like(ids) if mask is None else mask
    place = real.cumsum(1)  # 1 at a row's first token, wherever padding is
    order = (1 - real).argsort(dim=1, stable=True)
    chosen, rejected, *_ = ids.gather(1, order).chunk(len(branches))
    both = torch.stack(real.gather(1, order).chunk(len(branches))[:2]).all(0)
    shared = ((chosen == rejected) & both).long().cumprod(1).sum(1)  # tokens, (pairs,)
    own = real * (place > shared.repeat(len(branches))[:, None])
    return Batch(ids, _masked(ids, own), mask, inputs.get("position_ids"), sides=sides)


FORMS = {
    ("chosen_input_ids", "rejected_input_ids", "chosen_labels", "rejected_labels"): _halves,
    ("prompt_ids", "completion_ids", "completion_mask"): _rollout,
    ("input_ids", "labels"): _labelled,
    ("input_ids", "shift_labels"): _labelled,
    ("input_ids", "completion_mask"): _marked,
    ("completion_input_ids", "completion_labels"): _answered,
    ("input_ids", "logits_to_keep"): _kept,
}


def _masked(ids: Tensor, own: Tensor) -> Tensor:
    return ids.masked_fill(own == 0, IGNORED)


def _sides(ids: Tensor, branches: Sequence[str]) -> dict[str, Tensor]:
    """Equal parts of a batch, in order; none if it cannot be parted so."""
    rows = len(ids)
    if not branches or rows % len(branches):
        return {}
    part = torch.arange(rows, device=ids.device) // (rows // len(branches))
    return {side: part == i for i, side in enumerate(branches)}


def _desired(inputs: Mapping[str, Any], ids: Tensor) -> dict[str, Tensor]:
    label = inputs.get("label")
    if label is None:
        return {}
    desired = torch.as_tensor(label, device=ids.device).bool()
    return {"desired": desired, "undesired": ~desired}


def _rewarded(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    advantage = inputs.get("advantages")
    if advantage is None and {"rewards", "v_star"} <= set(inputs):
        advantage = inputs["rewards"] - inputs["v_star"]
    if not isinstance(advantage, Tensor):
        return {}
    rewarded = advantage.flatten(1).sum(1) > 0 if advantage.dim() > 1 else advantage > 0
    return {"rewarded": rewarded, "unrewarded": ~rewarded}


def media_ids(config: Any) -> tuple[int, ...]:
    """Ids in the place of images, video or sound in a text, from a model's configuration."""
    kinds, ends = ("image", "video", "audio"), ("id", "index")
    found = (getattr(config, f"{kind}_token_{end}", None) for kind in kinds for end in ends)
    return tuple(sorted({value for value in found if isinstance(value, int)}))
