"""Texts through a model in batches of like length: no logits, nothing kept but what is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from emoreg.encode import Encoded
from emoreg.errors import CaptureError
from emoreg.tap import read

Acts = Mapping[int, Tensor]  # block -> (batch, tokens, width), in the model's dtype
Found = TypeVar("Found")
log = logging.getLogger(__name__)


def batches(encoded: Sequence[Encoded], tokens: int, start: int = 0) -> Iterator[Sequence[Encoded]]:
    """Groups of at most so many padded tokens, or of one text, from texts sorted by length."""
    while start < len(encoded):
        stop = start + 1
        while stop < len(encoded) and (stop + 1 - start) * len(encoded[stop].ids) <= tokens:
            stop += 1
        yield encoded[start:stop]
        start = stop


def pad(group: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (batch, tokens), padded on the right whatever the tokenizer says."""
    ids = torch.zeros(len(group), max(len(e.ids) for e in group), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, item in enumerate(group):
        ids[i, : len(item.ids)], mask[i, : len(item.ids)] = torch.tensor(item.ids), 1
    return ids, mask


def sweep(
    model: nn.Module,
    encoded: Sequence[Encoded],
    blocks: Sequence[int],
    batch_tokens: int,
    reduce: Callable[[Acts, Sequence[Encoded]], Found],
) -> Iterator[tuple[Sequence[Encoded], Found]]:
    """Run texts, and give of each batch what `reduce` makes of its activations.

    A batch that does not fit into memory is run again in halves, from then on.

    Args:
        model: As it stands; read without gradients, up to the deepest block.
        encoded: Sorted by length.
        blocks: Decoder blocks, counted from 0.
        batch_tokens: Padded tokens in one forward.
        reduce: Called with block -> (batch, tokens, width) and the batch's texts.

    Raises:
        CaptureError: A single text does not fit into memory.
    """
    device = next(model.parameters()).device
    start = 0
    while start < len(encoded):
        group = next(batches(encoded, batch_tokens, start))
        ids, mask = pad(group)
        try:
            inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
            acts = read(model, blocks, **inputs)
            width = ids.shape[1]  # virtual tokens of prompt learning come first and never count
            found = reduce({b: h[:, -width:] for b, h in acts.items()}, group)
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            if len(group) == 1:
                raise CaptureError(
                    f"Out of memory on one text of {ids.numel()} tokens, {group[0].text.name}. Use "
                    "a smaller dtype, fewer blocks or a device with more memory."
                ) from e
            batch_tokens = ids.numel() // 2
        else:
            yield group, found
            start += len(group)
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("Out of memory: going on with batches of %d tokens.", batch_tokens)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the host ran out; the host says so in words only."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def means(acts: Acts, group: Sequence[Encoded], positions: Sequence[Sequence[int]]) -> Tensor:
    """Mean activation of each text over its positions, float64 on the CPU, (batch, blocks, width).

    Raises:
        CaptureError: A mean that is not finite; the message names the block and the text.
    """
    first = next(iter(acts.values()))
    # float64 sums where the device has them; Apple's does not.
    exact = torch.float32 if first.device.type == "mps" else torch.float64
    found = torch.stack(
        [
            torch.stack([_mean(row, at, exact) for row, at in zip(h, positions, strict=True)]).to(
                first.device
            )
            for h in acts.values()
        ],
        1,
    ).cpu()
    if not bool(found.isfinite().all()):
        text, block = (~found.isfinite().all(-1)).nonzero()[0].tolist()
        raise CaptureError(
            f"Block {list(acts)[block]} gives NaN or infinite activations on "
            f"{group[text].text.kind} {group[text].text.name} ({first.dtype}). Load the model in "
            "bfloat16 or float32; if it is so already, its weights are broken."
        )
    return found.double()


def _mean(row: Tensor, at: Sequence[int], exact: torch.dtype) -> Tensor:
    """Mean over some tokens of one text: (tokens, width) -> (width,)."""
    whole = at[-1] - at[0] + 1 == len(at)  # of a raw text: no copy is made
    kept = row[at[0] : at[-1] + 1] if whole else row[list(at)]
    return kept.sum(0, dtype=exact) / len(at)


def counted_means(acts: Acts, group: Sequence[Encoded]) -> Tensor:
    """Mean activation over each text's counted tokens, (batch, blocks, width)."""
    return means(acts, group, [e.counted for e in group])


def text_means(
    model: nn.Module, encoded: Sequence[Encoded], blocks: Sequence[int], batch_tokens: int
) -> Iterator[tuple[Encoded, Tensor]]:
    """Each text with its mean activation over counted tokens, float64, (blocks, width)."""
    for group, found in sweep(model, encoded, blocks, batch_tokens, counted_means):
        yield from zip(group, found, strict=True)
