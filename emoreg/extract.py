"""Labelled texts -> EmotionVectors: all blocks in one pass, memory independent of their number.

The recipe of Sofroniew et al. 2026 (arXiv:2604.07729): the mean activation of each text, centred
over emotions, with the principal components of neutral text that explain half of its variance
projected out, scaled to unit length. What the paper leaves open is decided here, and in the card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.bank import Text, choose
from emoreg.blocks import check_blocks, find_backbone
from emoreg.errors import BankError
from emoreg.tap import read
from emoreg.vectors import EmotionVectors, Facet, identity

Progress = Callable[[int, int], None]
SAME = 1e-6  # of a mean's length: less than rounding in float32 can tell
FACETS = {"stories": "story", "transcripts": "transcript"}


@dataclass(frozen=True)
class Choices:
    """What the recipe leaves open."""

    skip_tokens: int = 50  # of a raw text, before the mean starts; the first is an attention sink
    neutral_variance: float = 0.5  # explained by the neutral components that are projected out
    batch_tokens: int = 8192
    split: str = "fit"


@dataclass
class Moments:
    """Running sums of text means by label, in float64: (blocks, width)."""

    total: dict[str, Tensor] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, mean: Tensor) -> None:
        """Add the mean activation of one text, (blocks, width)."""
        self.total[label] = self.total.get(label, 0) + mean
        self.count[label] = self.count.get(label, 0) + 1

    def means(self) -> tuple[tuple[str, ...], Tensor]:
        """Labels, and their means, (labels, blocks, width)."""
        labels = tuple(sorted(self.total))
        return labels, torch.stack([self.total[x] / self.count[x] for x in labels])


@dataclass
class Spread:
    """Running mean and covariance of vectors at each block, in float64."""

    number: int = 0
    total: Tensor | None = None  # (blocks, width)
    outer: Tensor | None = None  # (blocks, width, width)

    def add(self, rows: Tensor) -> None:
        """Add vectors, (blocks, rows, width)."""
        total, outer = rows.sum(1), rows.mT @ rows
        self.total = total if self.total is None else self.total + total
        self.outer = outer if self.outer is None else self.outer + outer
        self.number += rows.shape[1]

    def mean(self) -> Tensor:
        """Mean, (blocks, width)."""
        assert self.total is not None
        return self.total / self.number

    def covariance(self) -> Tensor:
        """Covariance, (blocks, width, width)."""
        assert self.outer is not None
        mean = self.mean()
        return self.outer / self.number - mean.unsqueeze(2) * mean.unsqueeze(1)


def extract(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[Text],
    blocks: Sequence[int] | None = None,
    choices: Choices | None = None,
    progress: Progress | None = None,
) -> EmotionVectors:
    """Fit directions on labelled texts with the model as it stands, adapters included.

    Args:
        model: A causal language model; it is read without gradients and left as it was.
        tokenizer: Its tokenizer, with a chat template if there are transcripts.
        texts: Stories (at least two emotions), neutral texts, and transcripts if there are any.
        blocks: Decoder blocks, counted from 0; all by default.
        choices: What the recipe leaves open.
        progress: Called with the texts done and the texts in all.

    Returns:
        A set with the facet ``stories`` and, if there are transcripts, ``transcripts``.

    Raises:
        BankError: Too few labels, no neutral text, or a text too short to be read.
        BlocksNotFoundError: A block the model does not have.
    """
    choices = choices or Choices()
    backbone = find_backbone(model)
    at = check_blocks(range(len(backbone.blocks)) if blocks is None else blocks, backbone)
    wanted = [
        t for kind in ("neutral", *FACETS.values()) for t in choose(texts, kind, choices.split)
    ]
    _check(wanted)
    moments = {kind: Moments() for kind in FACETS.values()}
    tokens, means = Spread(), Spread()
    for done, (text, acts) in enumerate(activations(model, tokenizer, wanted, at, choices), 1):
        mean = acts.mean(1)
        if text.kind == "neutral":
            tokens.add(acts)
            means.add(mean.unsqueeze(1))
        else:
            moments[text.kind].add(text.label, mean)
        if progress is not None:
            progress(done, len(wanted))
    noise = [_components(c, choices.neutral_variance) for c in means.covariance()]
    facets: list[Facet] = []
    for name, kind in FACETS.items():
        if moments[kind].count:
            facets.append(_facet(name, moments[kind], noise, tokens.covariance(), facets))
    return EmotionVectors(
        tuple(facets), at, tokens.mean().float(), _card(model, tokenizer, wanted, choices)
    )


def _check(texts: Sequence[Text]) -> None:
    labels = {kind: {t.label for t in texts if t.kind == kind} for kind in FACETS.values()}
    for name, kind in FACETS.items():
        if len(labels[kind]) == 1 or (kind == "story" and not labels[kind]):
            raise BankError(
                f"{name}: texts for {sorted(labels[kind]) or 'no emotion'}; wanted at least two, "
                "because a direction is a difference from the others."
            )
    if extra := labels["transcript"] - labels["story"]:
        raise BankError(
            f"transcripts: {sorted(extra)} have no stories; write some, or leave them out."
        )
    if sum(t.kind == "neutral" for t in texts) < 2:
        raise BankError("Wanted at least two neutral texts: they set the scale of every reading.")


def activations(
    model: nn.Module, tokenizer: Any, texts: Sequence[Text], blocks: Sequence[int], choices: Choices
) -> Iterator[tuple[Text, Tensor]]:
    """Each text with the activations of its counted tokens, float64, (blocks, counted, width)."""
    device = next(model.parameters()).device
    encoded = sorted(
        (_encode(tokenizer, t, choices.skip_tokens) for t in texts), key=lambda e: len(e[1])
    )
    start = 0
    while start < len(encoded):
        stop = start + 1
        while (
            stop < len(encoded)
            and (stop + 1 - start) * len(encoded[stop][1]) <= choices.batch_tokens
        ):
            stop += 1
        group, start = encoded[start:stop], stop
        width = max(len(ids) for _, ids, _ in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (_, row, _) in enumerate(group):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        acts = read(model, blocks, input_ids=ids.to(device), attention_mask=mask.to(device))
        for i, (text, _, counted) in enumerate(group):
            yield text, torch.stack([acts[b][i, counted] for b in blocks]).cpu().double()


def _encode(tokenizer: Any, text: Text, skip: int) -> tuple[Text, list[int], list[int]]:
    """A text with its token ids and the positions that count."""
    if text.messages:
        ids, counted = encode_transcript(tokenizer, text.messages)
    else:
        ids = tokenizer(text.text)["input_ids"]
        counted = list(range(skip, len(ids)))
    if not counted:
        shown = (text.text or text.messages[0]["content"])[:60]
        raise BankError(
            f"A {text.kind} of {len(ids)} tokens leaves none to read after the first {skip} "
            f"(it begins {shown!r}); write longer texts or lower skip_tokens."
        )
    return text, ids, counted


def encode_transcript(
    tokenizer: Any, messages: Sequence[dict[str, str]]
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the positions of the assistant's tokens and colons.

    A conversation that ends before the assistant's turn gets the generation prompt, whose last
    token is the colon of the turn to come.

    Raises:
        BankError: The chat template writes a turn differently once more turns follow.
    """

    def render(upto: int, prompt: bool) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(
            list(messages[:upto]), add_generation_prompt=prompt, return_dict=False
        )
        return ids

    open_end = messages[-1]["role"] != "assistant"
    whole = render(len(messages), open_end)
    counted: list[int] = [len(whole) - 1] if open_end else []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            turn, stop = render(i, True), len(render(i + 1, False))
            if whole[:stop] != render(i + 1, False):
                raise BankError(
                    "The chat template rewrites earlier turns; transcripts cannot be aligned."
                )
            # As far as they agree: a reasoning template opens a thought that past turns lack.
            pairs = zip(turn, whole, strict=False)
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            counted += range(start - 1, stop)
    return whole, sorted(set(counted))


def _components(covariance: Tensor, variance: float) -> Tensor:
    """Leading eigenvectors that together explain a share of the variance, (components, width)."""
    values, rows = torch.linalg.eigh(covariance)
    values, rows = values.flip(0).clamp(min=0), rows.mT.flip(0)
    share = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    kept: Tensor = rows[: int((share < variance).sum()) + 1] if variance > 0 else rows[:0]
    return kept


def _facet(
    name: str,
    moments: Moments,
    noise: Sequence[Tensor],
    covariance: Tensor,
    before: Sequence[Facet],
) -> Facet:
    """Centre over labels, project out noise and the emotion's earlier facets, scale to one."""
    labels, means = moments.means()
    raw = means - means.mean(0)
    rows = torch.empty_like(raw)
    for e, label in enumerate(labels):
        for b, components in enumerate(noise):
            v = raw[e, b] - components.mT @ (components @ raw[e, b])
            for facet in before:
                if label in facet.emotions:
                    u = facet.directions[facet.emotions.index(label), b].double()
                    v = v - (v @ u) * u
            if v.norm() <= SAME * means[e, b].norm():
                raise BankError(
                    f"{name}: nothing tells the texts for {label!r} from the others once the "
                    "components of the neutral texts are out; write more and more different ones."
                )
            rows[e, b] = v / v.norm()
    sigma = torch.einsum("ebw,bwx,ebx->eb", rows, covariance, rows).clamp(min=0).sqrt()
    return Facet(name, labels, rows.float(), sigma.float())


def _card(
    model: nn.Module, tokenizer: Any, texts: Sequence[Text], choices: Choices
) -> dict[str, Any]:
    counts = {kind: sum(t.kind == kind for t in texts) for kind in ("neutral", *FACETS.values())}
    return {
        "model": identity(model, tokenizer),
        "source": "recipe of arXiv:2604.07729",
        "texts": counts,
        "choices": {
            **{k: getattr(choices, k) for k in ("skip_tokens", "neutral_variance", "split")},
            "raw_text_tokens": "mean over all from skip_tokens on",
            "transcript_tokens": "mean over assistant tokens and colons",
            "neutral_components": "of text means, centred",
            "sigma": "over the counted tokens of neutral texts",
        },
    }
