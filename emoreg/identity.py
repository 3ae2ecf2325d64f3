"""Whose vectors these are: a model, its tokenizer and its chat template in a few short hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from emoreg.blocks import find_backbone, unwrap

PROBE_TEXT = "The quick brown fox: 3.14 + (x_1) == \u00e9t\u00e9, \u5e73\u9759?\n\tYes!"
PASSING = ("name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def identity(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """What a card keeps of a model, and of its tokenizer if one is given.

    Returns:
        ``name`` (last part of the path), ``id`` (on the hub) and ``revision`` where they are
        known, ``type`` (of architecture), ``width``, ``blocks``, ``config`` (hash); of the
        tokenizer ``tokenizer`` (hash of how it encodes one text) and ``chat_template`` (hash,
        None without one).
    """
    backbone, config = find_backbone(model), unwrap(model).config
    path = str(getattr(config, "_name_or_path", ""))
    settings = {k: v for k, v in config.to_dict().items() if k.lstrip("_") not in PASSING}
    found: dict[str, Any] = {
        "name": path.rstrip("/").rsplit("/", 1)[-1],
        "id": path if path.count("/") == 1 and not Path(path).exists() else None,
        "revision": getattr(config, "_commit_hash", None),
        "type": getattr(config, "model_type", None),
        "width": backbone.width,
        "blocks": len(backbone.blocks),
        "config": _hash(json.dumps(settings, sort_keys=True, default=str)),
    }
    if tokenizer is not None:
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        template = getattr(tokenizer, "chat_template", None)
        found["tokenizer"] = _hash(json.dumps(tokenizer(PROBE_TEXT)["input_ids"]))
        found["chat_template"] = _hash(json.dumps(template)) if template else None
    return found


def weights(model: nn.Module) -> str:
    """A hash of a few numbers of every parameter, adapters included."""
    some = [p.detach().flatten()[:4].float().cpu().tolist() for p in model.parameters()]
    return _hash(json.dumps(some))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def context_length(model: nn.Module) -> int:
    """Most tokens that a model was made to read; 0 where its configuration does not say."""
    config = unwrap(model).config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return int(getattr(config, "max_position_embeddings", None) or 0)
