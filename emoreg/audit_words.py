"""What a model would say next on fixed text, beside the base and the base steered both ways.

Directions can be evaded; what a model says cannot, without giving up what the state was for. So the
move of its next-token probabilities is laid beside the move that the base makes when an emotion is
added to its residual stream, the intervention of Sofroniew et al. 2026 (arXiv:2604.07729).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emoreg.responses import Ids
from emoreg.tap import Tap, evaluating

BATCH_TOKENS = 1024  # padded, in one forward: the logits are what takes memory
WORDS = 64  # next tokens whose probability is kept at each place


@dataclass(frozen=True)
class Words:
    """Probabilities of next tokens, at every place of the base's response to each prompt.

    Attributes:
        ids: Which tokens, (places, tokens) for each prompt.
        said: Their probabilities, shaped alike.
        more: The same of the base steered towards the emotion; empty for other models.
        less: Steered away from it.
    """

    ids: tuple[Tensor, ...]
    said: tuple[Tensor, ...]
    more: tuple[Tensor, ...] = ()
    less: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Read:
    """One forward along prompts and responses, and the steered ones beside it.

    Attributes:
        words: Next tokens.
        colons: Activations at the colon, (prompts, blocks, width), float32.
        responses: Mean over each response, shaped alike.
    """

    words: Words
    colons: Tensor
    responses: Tensor


@torch.no_grad()
def read_words(
    model: nn.Module,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    blocks: Sequence[int],
    push: Mapping[int, Tensor] | None = None,
    like: Words | None = None,
) -> Read:
    """Read a model along responses.

    Args:
        model: As it stands.
        prompts: Token ids.
        texts: Responses to them, at least one token each.
        blocks: Decoder blocks whose activations are wanted.
        push: Of the base: block -> what is added to its output, (width,), and taken away.
        like: Of other models: what was read of the base.
    """
    rows, acts = [], []
    for group in _groups(prompts, texts):
        inputs = _inputs(model, [[*prompts[i], *texts[i]] for i in group])
        logits, hidden = _forward(model, inputs, blocks)
        found = [logits]
        for sign in (1, -1) if push else ():
            with Tap(model, list(push or ()), partial(_pushed, push or {}, sign)):
                found.append(_forward(model, inputs, ())[0])
        for row, i in enumerate(group):
            colon, end = len(prompts[i]) - 1, len(prompts[i]) + len(texts[i])
            said = [x[row, colon:end].float().softmax(-1).cpu() for x in found]
            rows.append(_kept(said, like.ids[i] if like else None))
            acts.append((hidden[row, :, colon], hidden[row, :, colon + 1 : end].mean(1)))
    words = Words(*(tuple(column) for column in zip(*rows, strict=True)))
    return Read(words, *(torch.stack(column).cpu() for column in zip(*acts, strict=True)))


def _pushed(push: Mapping[int, Tensor], sign: int, block: int, hidden: Tensor) -> Tensor:
    return hidden + sign * push[block].to(hidden)


def _kept(said: Sequence[Tensor], ids: Tensor | None) -> tuple[Tensor, ...]:
    """Ids, and probabilities of these tokens alone: the likeliest ones if no ids are given."""
    if ids is None:
        ids = torch.stack(list(said)).sum(0).topk(min(WORDS, said[0].shape[1]), 1).indices
    return (ids, *(p.gather(1, ids) for p in said))


def _inputs(model: nn.Module, rows: Sequence[Ids]) -> dict[str, Tensor]:
    """Ids and attention mask, padded on the right, (batch, tokens)."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    device = next(model.parameters()).device
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _forward(
    model: nn.Module, inputs: Mapping[str, Tensor], blocks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits, (batch, tokens, vocabulary), and activations, (batch, blocks, tokens, width)."""
    width = inputs["input_ids"].shape[1]  # the virtual tokens of a learned prompt come first
    with evaluating(model), Tap(model, blocks) if blocks else nullcontext() as tap:
        logits = model(**inputs, use_cache=False).logits[:, -width:]
        acts = [h[:, -width:].float() for h in tap.acts.values()] if tap else [logits[:, :, :0]]
    return logits, torch.stack(acts, 1)


def _groups(prompts: Sequence[Ids], texts: Sequence[Ids]) -> Iterator[list[int]]:
    """Prompts in their order, as many together as a batch holds."""
    group: list[int] = []
    for i in range(len(prompts)):
        longest = max(len(prompts[j]) + len(texts[j]) for j in [*group, i])
        if group and longest * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group = []
        group.append(i)
    yield group


def lean(base: Words, now: Words) -> NDArray[np.float64]:
    """How far a model's next words went where steering takes the base's: (prompts, 2).

    The first column divided by the second, each summed over prompts, is the lean: 0 says what the
    base says, 1 leans as far as the base steered by `push`. At each place the model's move is
    weighed by the log of the two steered probabilities, and counts for no more than the steered
    base's own: one word that became certain is one word.
    """
    rows = []
    for said, was, more, less in zip(now.said, base.said, base.more, base.less, strict=True):
        weight = more.clamp(min=1e-12).log() - less.clamp(min=1e-12).log()
        size = ((more - less) * weight).sum(1) / 2
        move = ((said - was) * weight).sum(1)
        rows.append((float(move.clamp(-size, size).sum()), float(size.sum())))
    return np.array(rows, dtype=np.float64)
