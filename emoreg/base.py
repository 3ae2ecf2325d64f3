"""The base: the same weights with every adapter off, or the host's fixed copy of the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from emoreg import quirks
from emoreg.blocks import find_backbone
from emoreg.errors import ConfigError
from emoreg.host import model_of
from emoreg.tap import Call, Tap, evaluating, forward_backbone, run_truncated, sharded

# What a trainer gives its model that changes no block's output.
LOSS_ONLY = (
    "labels", "shift_labels", "fused_lm_head", "num_items_in_batch", "logits_to_keep", "use_cache",
    "output_router_logits", "output_hidden_states", "return_dict",
)  # fmt: skip
NO_BASE = (
    "{model} has no adapters to switch off, and the trainer no fixed reference model, so the base "
    "cannot be read: anchor 'base' and the keep term need LoRA or another PEFT adapter that "
    "changes weights, or a ref_model. Use peft_config, or anchor 'neutral' with keep 0."
)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base: the same weights with every adapter off.

    Raises:
        ConfigError: The model has no adapters that can be switched off, or learns a prompt.
    """
    if not has_adapters(model):
        raise ConfigError(NO_BASE.format(model=type(model).__name__))
    trained = [(p, p.requires_grad) for p in model.parameters()]
    switched_off: Any = model.disable_adapter
    try:
        with switched_off():
            yield
    finally:
        for parameter, flag in trained:  # PEFT switches every parameter of its adapters to trained
            parameter.requires_grad_(flag)


def has_adapters(model: nn.Module) -> bool:
    """Whether the base can be had by switching adapters off."""
    learns_prompt = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    return hasattr(model, "disable_adapter") and not learns_prompt


def reference_model(trainer: Trainer) -> nn.Module | None:
    """The model that the host takes for the base, if that is not its own with adapters off.

    A reference beside adapters may be any model, one of another shape is another model, and one
    that follows the policy is no base.
    """
    found, model = getattr(trainer, "ref_model", None), model_of(trainer)
    if not isinstance(found, nn.Module) or has_adapters(model):
        return None
    own, other = find_backbone(model), find_backbone(found)
    alike = (own.width, len(own.blocks)) == (other.width, len(other.blocks))
    return found if alike and not quirks.moves_its_reference(trainer) else None


def check_base(trainer: Trainer) -> None:
    """Check that the base can be read.

    Raises:
        ConfigError: There are neither adapters to switch off nor a fixed reference model.
    """
    model = model_of(trainer)
    if not has_adapters(model) and reference_model(trainer) is None:
        raise ConfigError(NO_BASE.format(model=type(model).__name__))


@contextmanager
def base_model(trainer: Trainer) -> Iterator[nn.Module]:
    """The base as a model, for as long as the context is open.

    Raises:
        ConfigError: There are neither adapters to switch off nor a fixed reference model.
    """
    reference = reference_model(trainer)
    if reference is not None:
        yield reference
        return
    with adapters_off(model_of(trainer)):
        yield model_of(trainer)


def base_outputs(trainer: Trainer, call: Call, blocks: Sequence[int]) -> dict[int, Tensor]:
    """Block outputs of the base for the tokens of a forward, up to the deepest block.

    Args:
        trainer: Whose model it is.
        call: The policy's forward.
        blocks: Decoder blocks, counted from 0.

    Returns:
        Block -> output, (batch, tokens, width), without gradients or dropout.
    """
    # The policy's taps are of the same blocks, but see no forward without gradients.
    with torch.no_grad(), trainer.accelerator.autocast(), base_model(trainer) as model:
        tap = Tap(model, blocks)
        with evaluating(model), tap:
            run_truncated(tap, lambda: _again(tap, call))
            return dict(tap.acts)


def _again(tap: Tap, call: Call) -> Any:
    """The same forward again, without logits where they are not needed.

    What a wrapper embedded, adapters may have a part in: then all of the model runs again.
    """
    embedded = call.kwargs.get("inputs_embeds") is not None
    if not sharded(tap.model) and not embedded:
        return tap.backbone.module(*call.args, **{**call.kwargs, "use_cache": False})
    given = call.given if "input_ids" in call.given else call.kwargs
    inputs = {k: v for k, v in given.items() if k not in LOSS_ONLY}
    if embedded:
        return tap.model(**inputs, use_cache=False)
    return forward_backbone(tap.model, {**inputs, "input_ids": call.ids})
