"""Texts with their activations: everything that a validation reads from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.bank import Dosage, Text, choose
from emoreg.encode import Encoded, encode
from emoreg.extract import Choices
from emoreg.identity import context_length
from emoreg.moments import Scatter
from emoreg.probe import Facet
from emoreg.scale import spread
from emoreg.sweep import Acts, means, sweep
from emoreg.vectors import EmotionVectors

PLACES = ("response", "colon")


@dataclass(frozen=True)
class Sample:
    """Texts, and their mean activation over the tokens of one place."""

    texts: tuple[Text, ...]
    acts: Tensor  # (texts, blocks, width), float32

    def where(self, keep: Callable[[Text], bool]) -> Sample:
        """Some of the texts."""
        at = [i for i, t in enumerate(self.texts) if keep(t)]
        return Sample(tuple(self.texts[i] for i in at), self.acts[at])

    def split(self, name: str) -> Sample:
        """The texts of one split."""
        return self.where(lambda t: t.split == name)

    def at(self, blocks: Sequence[int]) -> Sample:
        """The same at some blocks, given by position."""
        return Sample(self.texts, self.acts[:, list(blocks)])

    @property
    def labels(self) -> list[str]:
        """Label of each text."""
        return [t.label for t in self.texts]

    @property
    def topics(self) -> list[str]:
        """Topic of each text; one that names none is a topic of its own."""
        return [t.topic or f"#{i}" for i, t in enumerate(self.texts)]

    def read(self, facet: Facet, mu: Tensor) -> Tensor:
        """Mean readings in σ, (texts, emotions), over the blocks; a reading is linear."""
        return read(self.acts, facet.directions, mu, facet.sigma)


def read(acts: Tensor, directions: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Readings in σ, mean over blocks.

    Args:
        acts: (texts, blocks, width).
        directions: (rows, blocks, width).
        mu: (blocks, width).
        sigma: (rows, blocks).

    Returns:
        (texts, rows).
    """
    found = torch.einsum("tbw,rbw->trb", acts - mu, directions) / sigma
    return found.mean(-1)


@dataclass(frozen=True)
class Samples:
    """What was read, by kind and place; the neutral texts' noise and their spread."""

    raw: dict[str, Sample]  # story, deflection
    talk: dict[str, Sample]  # place -> transcripts
    prompts: dict[str, Sample]  # urgency, dosage: at the colon
    noise: list[Tensor]  # at each block the neutral components, (components, width)
    random: Facet  # random directions with their σ


def collect(
    model: nn.Module,
    tokenizer: Any,
    vectors: EmotionVectors,
    texts: Sequence[Text],
    dosage: Sequence[Dosage],
    choices: Choices,
    random: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Read every text of a bank at the blocks of a set.

    Args:
        model: The model the set was made for.
        tokenizer: Its tokenizer.
        vectors: The set; its blocks and `mu` are used.
        texts: A bank.
        dosage: Its dosage templates; read in the chat template if the tokenizer has one.
        choices: As in extraction.
        random: Random directions, (rows, blocks, width).
        progress: Called with the tokens done and the tokens in all.

    Raises:
        BankError: A text that cannot be read.
        CaptureError: Activations that are not finite.
    """
    swept = _swept(dosage)
    wanted = _readable([*texts, *swept], bool(getattr(tokenizer, "chat_template", None)))
    encoded = encode(tokenizer, wanted, choices.skip_tokens, context_length(model))
    neutral = [e for e in encoded if e.text.kind == "neutral"]
    tell = _telling(sum(len(e.ids) for e in (*encoded, *neutral)), progress)
    acts, scatter = _read_all(model, encoded, vectors.blocks, choices.batch_tokens, tell)
    sigma, _ = spread(
        model, neutral, vectors.blocks, random, vectors.mu, choices.batch_tokens, tell
    )
    names = tuple(f"random {i}" for i in range(len(random)))
    nothing = torch.zeros(0, len(vectors.blocks), vectors.width)
    return Samples(
        *_by_kind(wanted, acts, {id(text) for text in swept}, nothing),
        scatter.components(choices.neutral_variance),
        Facet("random", names, random.float(), sigma.float()),
    )


Sorted = tuple[dict[str, Sample], dict[str, Sample], dict[str, Sample]]


def _by_kind(
    texts: Sequence[Text], acts: Mapping[int, Tensor], swept: set[int], nothing: Tensor
) -> Sorted:
    """Raw texts, transcripts and prompts, in the bank's order, whatever order they were read in.

    Args:
        texts: A bank.
        acts: Of each text that was read, by its id in memory, (places, blocks, width).
        swept: Ids of the messages that dosage templates gave.
        nothing: What no text has, (0, blocks, width).
    """

    def sample(keep: Callable[[Text], bool], place: str = "response") -> Sample:
        kept = [text for text in texts if id(text) in acts and keep(text)]
        found = [acts[id(text)][PLACES.index(place)] for text in kept]
        return Sample(tuple(kept), torch.stack(found) if found else nothing)

    return (
        {
            "story": sample(lambda t: t.kind == "story"),
            "deflection": sample(lambda t: t.kind == "deflection"),
        },
        {place: sample(lambda t: t.kind == "transcript", place) for place in PLACES},
        {
            "urgency": sample(lambda t: t.kind == "urgency" and id(t) not in swept, "colon"),
            "dosage": sample(lambda t: id(t) in swept, "colon"),
        },
    )


def _telling(
    total: int, progress: Callable[[int, int], None] | None
) -> Callable[[Sequence[Encoded]], None]:
    """Counts the tokens of what was read, and tells how many of all they are."""
    done = 0

    def tell(group: Sequence[Encoded]) -> None:
        nonlocal done
        done += sum(len(e.ids) for e in group)
        if progress is not None:
            progress(done, total)

    return tell


def _read_all(
    model: nn.Module,
    encoded: Sequence[Encoded],
    blocks: Sequence[int],
    batch_tokens: int,
    tell: Callable[[Sequence[Encoded]], None],
) -> tuple[dict[int, Tensor], Scatter]:
    """Of each text, by its id in memory, (places, blocks, width); of neutral ones their scatter."""
    acts, scatter = {}, Scatter()
    for group, read in sweep(model, encoded, blocks, batch_tokens, _places):
        for item, mean in zip(group, read, strict=True):
            if item.text.kind == "neutral":
                scatter.add(mean[0])
            else:
                acts[id(item.text)] = mean.float()
        tell(group)
    return acts, scatter


def _swept(dosage: Sequence[Dosage]) -> list[Text]:
    """A message for every value of every template; its id is the value's place."""
    return [
        Text("urgency", d.rises, topic=d.id, messages=({"role": "user", "content": p},), id=str(i))
        for d in dosage
        for i, p in enumerate(d.prompts())
    ]


def _readable(texts: Sequence[Text], chat: bool) -> list[Text]:
    """Texts without neutral ones of the held-out split, and without a chat no conversations."""
    fit = {id(t) for t in choose(texts, "neutral", "fit")}
    kept = [t for t in texts if t.kind != "neutral" or id(t) in fit]
    return [t for t in kept if chat or not t.messages]


def _places(acts: Acts, group: Sequence[Encoded]) -> Tensor:
    """Means of each text at each place, (batch, places, blocks, width)."""
    return torch.stack([means(acts, group, [_at(e, p) for e in group]) for p in PLACES], 1)


def _at(item: Encoded, place: str) -> Sequence[int]:
    """Positions of a text's response or colons; raw and neutral texts give all that count.

    The first of several colons is left out: before it nothing tells the assistant's state.
    """
    if not item.colons or item.text.kind == "neutral":
        return item.counted
    if place == "colon":
        return item.colons[1:] or item.colons
    return [at for at in item.counted if at not in set(item.colons)] or item.colons
