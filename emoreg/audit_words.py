"""What a model would say next on fixed text, beside the base and the base steered both ways.

Directions can be evaded; what a model says cannot, without giving up what the state was for. So the
move of its next-token probabilities is laid beside the move that the base makes when an emotion is
added to its residual stream, the intervention of Sofroniew et al. 2026 (arXiv:2604.07729).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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


def base_words(
    model: nn.Module, prompts: Sequence[Ids], texts: Sequence[Ids], push: Mapping[int, Tensor]
) -> Words:
    """Read the base, as it is and steered.

    Args:
        model: The base.
        prompts: Token ids.
        texts: Its responses.
        push: Block -> what is added to its output, (width,), and taken away.
    """
    rows = []
    for signs in _probabilities(model, prompts, texts, push, (0, 1, -1)):
        ids = torch.stack(signs).sum(0).topk(min(WORDS, signs[0].shape[1]), 1).indices
        rows.append((ids, *(p.gather(1, ids) for p in signs)))
    return Words(*(tuple(column) for column in zip(*rows, strict=True)))


def words_like(
    model: nn.Module, prompts: Sequence[Ids], texts: Sequence[Ids], base: Words
) -> Words:
    """Read another model at the same places, and the same tokens."""
    found = chain.from_iterable(_probabilities(model, prompts, texts, {}, (0,)))
    return Words(base.ids, tuple(p.gather(1, i) for p, i in zip(found, base.ids, strict=True)))


@torch.no_grad()
def _probabilities(
    model: nn.Module,
    prompts: Sequence[Ids],
    texts: Sequence[Ids],
    push: Mapping[int, Tensor],
    signs: Sequence[int],
) -> Iterator[list[Tensor]]:
    """For each prompt and sign the probabilities at each place, (places, vocabulary), float32."""
    device = next(model.parameters()).device
    for group in _groups(prompts, texts):
        width = max(len(prompts[i]) + len(texts[i]) for i in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(group):
            whole = [*prompts[i], *texts[i]]
            ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        found = [_steered(model, inputs, push, sign)[:, -width:] for sign in signs]
        for row, i in enumerate(group):
            at = slice(len(prompts[i]) - 1, len(prompts[i]) + len(texts[i]))
            yield [logits[row, at].float().softmax(-1).cpu() for logits in found]


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


def _steered(
    model: nn.Module, inputs: Mapping[str, Tensor], push: Mapping[int, Tensor], sign: int
) -> Tensor:
    """Logits of a model with something added at some blocks, (batch, tokens, vocabulary)."""
    if not sign:
        with evaluating(model):
            logits: Tensor = model(**inputs, use_cache=False).logits
            return logits
    with evaluating(model), Tap(model, list(push), lambda b, h: h + sign * push[b].to(h)):
        steered: Tensor = model(**inputs, use_cache=False).logits
        return steered


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
