"""The base's readings: from the cache, or read with every adapter off and put there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import constants
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from emoreg import kept
from emoreg.base import adapters_off, has_adapters
from emoreg.blocks import unwrap
from emoreg.fingerprint import fingerprint
from emoreg.identity import identity
from emoreg.processes import first_process, shared
from emoreg.responses import ends
from emoreg.snapshot import Gauge, Snapshot

VARIABLE = "EMOREG_CACHE"

log = logging.getLogger(__name__)


class Base(NamedTuple):
    """The base's readings, and whether they came from the cache."""

    snapshot: Snapshot
    cached: bool


def folder() -> Path:
    """Where base readings are cached: `EMOREG_CACHE`, or a folder beside the hub's own."""
    own = os.environ.get(VARIABLE)
    return Path(own) if own else Path(constants.HF_HOME) / "emoreg" / "base-readings"


def read_base(model: nn.Module, gauge: Gauge, cache: bool = True) -> Base:
    """What the base reads: the model with every adapter off, or as it stands if it has none.

    Every process must call it. The cache knows a base by its exact weights, so a changed one is
    read anew; of a model that processes share in parts nothing is cached.

    Args:
        model: Its mode, adapters, settings and random state are left as they were.
        gauge: What it is read with.
        cache: False reads it anew, and keeps nothing.
    """
    known = _key(model, gauge) if cache and first_process() else None
    path = known and folder() / f"{_name(known)}.safetensors"
    held = shared(_cached(path, known) if path and known else None)
    if held is not None:
        return Base(held, True)
    with adapters_off(model) if has_adapters(model) else nullcontext():
        found = gauge.base(model)
    if path and known:
        _keep(path, found, known)
    return Base(found, False)


def _cached(path: Path, known: dict[str, Any]) -> Snapshot | None:
    try:
        return kept.read(path, known)["base"]
    except FileNotFoundError:
        return None
    except (kept.NotThese, KeyError) as e:
        log.warning("The base is read again: %s cannot be used, %s.", path, e)
        return None


def _keep(path: Path, found: Snapshot, known: dict[str, Any]) -> None:
    try:
        kept.write(path, {"base": found}, known)
    except OSError as e:
        log.warning(
            "Base readings cannot be cached in %s (%s), and will be read again next time; set %s "
            "to a folder that can be written.",
            path.parent,
            e.strerror or e,
            VARIABLE,
        )


def _name(known: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _has_more(model: nn.Module) -> bool:
    """Whether there is anything of PEFT's about the model."""
    kinds = BaseTunerLayer | AuxiliaryTrainingWrapper
    return hasattr(model, "disable_adapter") or any(isinstance(m, kinds) for m in model.modules())


def _key(model: nn.Module, gauge: Gauge) -> dict[str, Any] | None:
    """Everything that the readings depend on; None if the weights cannot be known."""
    # What is read as it stands with a learned prompt, or with adapters that transformers itself
    # loaded, is more than the weights that the fingerprint knows.
    known = has_adapters(model) or not _has_more(model)
    weights = fingerprint(model) if known else None
    if weights is None:
        return None
    inner = unwrap(model)
    device = next(inner.parameters()).device
    kind = device.type
    on = torch.is_autocast_enabled(kind)
    return {
        "weights": weights,
        "model": identity(model, gauge.tokenizer),
        **gauge.identity,
        "dtype": str(next(inner.parameters()).dtype),
        "autocast": str(torch.get_autocast_dtype(kind)) if on else None,
        # Another device or version rounds otherwise, and drift would show the difference.
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else kind,
        "attention": getattr(inner.config, "_attn_implementation", None),
        "precision": torch.get_float32_matmul_precision(),
        "ends": sorted(ends(inner, gauge.tokenizer)),
        "versions": [version("emoreg"), torch.__version__, transformers.__version__],
    }
