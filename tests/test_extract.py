"""Directions that were planted are found again, from labels and not from chance, however they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from models import TEMPLATE, WIDTH, causal_lm, hooks, tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from emoreg.bank import Text
from emoreg.errors import BankError
from emoreg.extract import Choices, encode_transcript, extract
from emoreg.vectors import EmotionVectors, Facet

EMOTIONS = ("afraid", "calm", "desperate", "happy")
SIGNS = {"story": "ABCD", "transcript": "EFGH"}  # a letter of each emotion carries its direction
PLAIN, NUISANCE = "abcdefghij .", "z"
SKIP = 4
CHOICES = Choices(skip_tokens=SKIP)


@cache
def planted() -> tuple[dict[str, Tensor], Tensor]:
    """By kind a direction for each emotion, (emotions, width), centred; and one that only disturbs."""
    frame = torch.linalg.qr(torch.randn(WIDTH, 9, generator=torch.Generator().manual_seed(4))).Q.T
    by_kind = {kind: frame[4 * i : 4 * i + 4] for i, kind in enumerate(SIGNS)}
    return {k: normalize(v - v.mean(0), dim=-1) for k, v in by_kind.items()}, frame[8]


@cache
def world() -> tuple[Any, Any]:
    """A model whose embeddings carry the planted directions, and its tokenizer."""
    tok = tokenizer()
    model = causal_lm(vocab_size=len(tok))
    directions, nuisance = planted()
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows.mul_(1)
        for kind, letters in SIGNS.items():
            for letter, direction in zip(letters, directions[kind], strict=True):
                rows[tok.convert_tokens_to_ids(letter)] += direction
        rows[tok.convert_tokens_to_ids(NUISANCE)] += 2 * nuisance
    return model, tok


def write(rng: Random, sign: str = "", disturbed: float = 0.0) -> str:
    """60 to 90 letters, a third of them the sign."""
    length = rng.randint(60, 90)
    return "".join(
        NUISANCE if rng.random() < disturbed else sign if sign and rng.random() < 0.33 else rng.choice(PLAIN)
        for _ in range(length)
    )


@cache
def texts(each: int = 12) -> tuple[Text, ...]:
    """Desperate stories are disturbed, as neutral texts are now and then."""
    rng, made = Random(0), []
    for _ in range(each):
        for i, emotion in enumerate(EMOTIONS):
            story = write(rng, SIGNS["story"][i], 0.3 if emotion == "desperate" else 0.0)
            made.append(Text("story", emotion, text=story))
            talk = (("user", write(rng)), ("assistant", write(rng, SIGNS["transcript"][i])), ("user", "?"))
            messages = tuple({"role": r, "content": c} for r, c in talk)
            made.append(Text("transcript", emotion, messages=messages))
        made.append(Text("neutral", text=write(rng, disturbed=rng.random() / 2)))
    return tuple(made)


def fit(bank: Sequence[Text] | None = None, **choices: Any) -> EmotionVectors:
    model, tok = world()
    return extract(model, tok, texts() if bank is None else bank, [0, 1], replace(CHOICES, **choices))


@cache
def fitted() -> EmotionVectors:
    return fit()


def agreement(facet: Facet, kind: str) -> Tensor:
    """Cosine of what was found with what was planted, (emotions, blocks)."""
    assert facet.emotions == EMOTIONS
    return torch.einsum("ebw,ew->eb", facet.directions, planted()[0][kind])


@pytest.mark.parametrize(("name", "kind"), [("stories", "story"), ("transcripts", "transcript")])
def test_planted_directions_are_recovered_and_those_of_shuffled_labels_are_not(name: str, kind: str) -> None:
    assert agreement(fitted().facet(name), kind).min() > 0.95
    turn = {e: 0 for e in EMOTIONS}

    def shuffled(text: Text) -> Text:
        if text.kind == "neutral":
            return text
        turn[text.label] += 1  # each label gets equally many texts of every emotion
        return replace(text, label=EMOTIONS[(turn[text.label] // 2) % 4])

    assert agreement(fit([shuffled(t) for t in texts()]).facet(name), kind).abs().max() < 0.5
