"""Which weights these are: an exact fingerprint of every tensor of a base, adapters left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from emoreg.blocks import unwrap
from emoreg.tap import sharded

BELOW = ("base_layer", "original_module", "token_adapter")  # where PEFT keeps what it wraps
WORDS = 1 << 20  # of eight bytes, summed at once: 8 MB beside the weights
ODD = -7046029254386353131  # 2^64 / golden ratio, so that no two places weigh alike


@torch.no_grad()
def fingerprint(model: nn.Module) -> str | None:
    """A hash that any changed weight of the base changes; None where it cannot be had.

    Of every tensor the sum of its 8-byte words, each multiplied by an odd number that belongs to
    its place, modulo 2^64: a change of any one word cannot leave the sum as it was, since an odd
    number has an inverse. The upper half of a word is mixed into the lower one first: the highest
    bit alone, of which two changes cancel, is a sign. All bytes are read once, where they are.

    Args:
        model: With its adapters, which are left out, or without; not sharded.
    """
    if sharded(model) or _merged(model):
        return None
    sums: list[Tensor] = []
    shapes: list[Any] = []
    places: dict[torch.device, Tensor] = {}
    for tensor in _tensors(model):
        if tensor.device.type == "meta":
            return None
        if tensor.device not in places:
            at = torch.arange(WORDS, dtype=torch.int64, device=tensor.device)
            places[tensor.device] = at * ODD | 1
        shapes.append([list(tensor.shape), str(tensor.dtype)])
        sums += [(_mixed(w) * places[w.device][: len(w)]).sum() for w in _words(tensor)]
    by_device = {d: iter(torch.stack([s for s in sums if s.device == d]).tolist()) for d in places}
    values = [next(by_device[s.device]) for s in sums]
    return hashlib.sha256(json.dumps([shapes, values]).encode()).hexdigest()[:32]


def _words(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor as numbers of eight bytes, some at a time; zeros fill the last one."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for part in raw.split(8 * WORDS):
        lacking = -len(part) % 8
        if lacking or part.storage_offset() % 8:
            part = nn.functional.pad(part, (0, lacking)).clone()
        yield part.view(torch.int64)


def _mixed(words: Tensor) -> Tensor:
    return words ^ ((words >> 32) & 0xFFFFFFFF)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and what quantised layers keep beside them, without adapters'."""
    inner = unwrap(model)
    kept = dict(_wrapped(inner))
    for name, value in inner.state_dict().items():
        parts = name.split(".")
        around = ((".".join(parts[:i]), parts[i]) for i in range(1, len(parts)))
        if all(kept.get(module, child) == child for module, child in around):
            yield from _plain(value)


def _plain(value: Any) -> Iterator[Tensor]:
    """The tensors that hold the bytes: those within a tensor subclass, or a tensor itself."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _plain(value[key])
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(value, name))
    elif isinstance(value, Tensor) and value.numel():
        yield value


def _wrapped(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every module with an adapter, and under which name it keeps that of the base."""
    for name, module in model.named_modules():
        own = dict(module.named_children())
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield from ((name, child) for child in BELOW if child in own)


def _merged(model: nn.Module) -> bool:
    """Whether the weights hold an adapter that reading the base would take out of them."""
    layers = (m for m in model.modules() if isinstance(m, BaseTunerLayer))
    return any(layer.merged for layer in layers)
