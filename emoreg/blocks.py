"""Find the decoder blocks of any Hugging Face causal language model, bare or wrapped."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from emoreg.errors import BlocksNotFoundError, ConfigError


@dataclass(frozen=True)
class Backbone:
    """The module that runs the decoder blocks, and the blocks in order."""

    module: nn.Module
    blocks: Sequence[nn.Module]
    width: int  # of the residual stream


def unwrap(model: Any) -> Any:
    """Take off what wraps a model: data parallel, `torch.compile`, PEFT; nothing is changed."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module) and not _has_config(model):
            model = model.module
        else:
            return model


def _has_config(model: nn.Module) -> bool:
    """Whether the configuration is a model's own; engines have one of another kind."""
    return hasattr(getattr(model, "config", None), "get_text_config")


def find_backbone(model: nn.Module) -> Backbone:
    """The text decoder of a model.

    The decoder is what `get_decoder()` returns; its blocks are the shallowest `ModuleList` with
    as many members as the text configuration has layers. A vision tower is never taken for it.

    Raises:
        BlocksNotFoundError: No such list, no transformers configuration, or an encoder.
    """
    inner = unwrap(model)
    if not _has_config(inner):
        raise BlocksNotFoundError(
            f"{type(inner).__name__} has no `config`, so its decoder blocks cannot be found; "
            "pass a transformers model (PEFT, DDP and compiled wrappers are looked through)."
        )
    config = inner.config
    if getattr(config, "is_encoder_decoder", False):
        raise BlocksNotFoundError(
            f"{type(inner).__name__} is an encoder-decoder; emoreg reads decoder-only models."
        )
    text = config.get_text_config(decoder=True)
    if type(text) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(text, "is_decoder", False):
        raise BlocksNotFoundError(
            f"{type(inner).__name__} is an encoder: each of its tokens sees those after it, so no "
            "reading is of a text so far. emoreg reads decoder-only models."
        )
    count = getattr(text, "num_hidden_layers", None)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    for root in (decoder, inner):
        found = root if root is None else _shallowest_list(root, count)
        if found is not None:
            owner, blocks = found
            return Backbone(owner, list(blocks), int(text.hidden_size))
    raise BlocksNotFoundError(
        f"No list of {count} decoder blocks under {type(inner).__name__}: found lists "
        f"{_describe_lists(inner) or 'none'}. Use a decoder-only transformers model."
    )


def _shallowest_list(root: nn.Module, count: int | None) -> tuple[nn.Module, nn.ModuleList] | None:
    """Breadth first: the module that owns a list of `count` blocks, and the list."""
    queue = deque([root])
    while queue:
        module = queue.popleft()
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
            queue.append(child)
    return None


def _describe_lists(model: nn.Module) -> str:
    lists = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return ", ".join(f"{name} ({len(m)})" for name, m in lists)


def check_blocks(blocks: Sequence[int], backbone: Backbone) -> tuple[int, ...]:
    """The asked blocks, sorted and unique.

    Raises:
        BlocksNotFoundError: A block the model does not have, or none asked for.
    """
    have = len(backbone.blocks)
    wrong = [b for b in blocks if not 0 <= b < have]
    if wrong or not blocks:
        raise BlocksNotFoundError(
            f"Blocks {list(blocks)} asked for; this model has blocks 0 to {have - 1}. "
            "Blocks count from 0 and are not negative."
        )
    return tuple(sorted(set(blocks)))


def check_reach(model: nn.Module, deepest: int) -> None:
    """Check that a gradient from block `deepest` reaches a trainable parameter.

    Raises:
        ConfigError: It reaches none.
    """
    if not trainable_below(find_backbone(model), deepest, model):
        raise ConfigError(
            f"No trainable parameter lies at or below block {deepest}, the deepest that is read, "
            "so no gradient of the penalty can reach one. Train earlier blocks or read later ones."
        )


def trainable_below(backbone: Backbone, deepest: int, model: nn.Module) -> bool:
    """Whether any trainable parameter can change the output of block `deepest`.

    Parameters of later blocks only cannot, nor those of the final norm; nor can those outside the
    backbone, except the input embeddings, which the backbone owns.
    """
    reached, beyond = (
        {id(p) for block in blocks for p in block.parameters()}
        for blocks in (backbone.blocks[: deepest + 1], backbone.blocks[deepest + 1 :])
    )
    after = (child for name, child in backbone.module.named_children() if _comes_last(name))
    beyond |= {id(p) for child in after for p in child.parameters()}
    later = beyond - reached  # a block may share its weights with an earlier one
    inside = list(backbone.module.parameters()) + _prompt_parameters(model)
    return any(p.requires_grad and id(p) not in later for p in inside)


def _comes_last(name: str) -> bool:
    """Whether a part of a backbone, other than its blocks, comes after them: the final norm."""
    return name == "project_out" or ("emb" not in name and ("norm" in name or "ln_f" in name))


def _prompt_parameters(model: nn.Module) -> list[Any]:
    """Virtual tokens of prompt learning, which sit outside the backbone and reach every block."""
    return [p for name, p in model.named_parameters() if "prompt_encoder" in name]
