"""Labelled texts -> EmotionVectors: all blocks in one pass, memory independent of their number.

The recipe of Sofroniew et al. 2026 (arXiv:2604.07729): the mean activation of each text, centred
over emotions, with the principal components of neutral text that explain half of its variance
projected out, scaled to unit length. What the paper leaves open is decided here, and in the card.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.bank import NEUTRAL_STATE, Text, choose, fingerprint
from emoreg.blocks import check_blocks, find_backbone, unwrap
from emoreg.encode import Encoded, encode
from emoreg.errors import BankError, ConfigError
from emoreg.identity import context_length, identity, weights
from emoreg.probe import Facet
from emoreg.progress import Progress
from emoreg.scale import spread
from emoreg.sweep import counted_means, sweep
from emoreg.vectors import EmotionVectors

log = logging.getLogger(__name__)
Told = Callable[[int, int], None]
SAME = 1e-6  # of a mean's length: less than rounding in float32 can tell
FACETS = {"stories": "story", "transcripts": "transcript"}
DECIDED = {
    "raw_text_tokens": "mean over all from skip_tokens on, counted from 0",
    "raw_text_framing": "none: the text as it stands",
    "transcript_tokens": "mean over assistant tokens and colons, in the chat template",
    "thinking": "off, where the chat template has it",
    "weighting": "texts equal within an emotion, emotions equal in the centre",
    "neutral_components": "of text means, centred",
    "unit_length": True,
    "sigma": "over the counted tokens of neutral texts",
    "facets": "each emotion's later facet is orthogonal to its earlier ones",
    "attention_sink": "the first token of a text is never read",
}


@dataclass(frozen=True)
class Choices:
    """What the recipe leaves open."""

    skip_tokens: int = 50  # of a raw text, before the mean starts; the first is an attention sink
    neutral_variance: float = 0.5  # explained by the neutral components that are projected out
    batch_tokens: int = 8192
    split: str = "fit"
    facets: tuple[str, ...] = tuple(FACETS)

    def __post_init__(self) -> None:
        problems = []
        if self.skip_tokens < 1:
            problems.append(f"skip_tokens is at least 1 (the sink), got {self.skip_tokens}")
        if not 0 <= self.neutral_variance < 1:
            problems.append(f"neutral_variance is in [0, 1), got {self.neutral_variance}")
        if self.batch_tokens < 1:
            problems.append(f"batch_tokens is at least 1, got {self.batch_tokens}")
        if self.facets not in (tuple(FACETS), tuple(FACETS)[:1]):
            problems.append(f"facets are stories, or stories transcripts; got {self.facets}")
        if problems:
            raise ConfigError("Choices:\n  - " + "\n  - ".join(problems))


def extract(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[Text],
    blocks: Sequence[int] | None = None,
    choices: Choices | None = None,
    progress: Told | None = None,
    resume: Path | None = None,
) -> EmotionVectors:
    """Fit directions on labelled texts with the model as it stands, adapters included.

    Works on a live model during training: its mode, hooks and random state are left as they were.

    Args:
        model: A causal language model; it is read without gradients.
        tokenizer: Its tokenizer, with a chat template if there are transcripts.
        texts: Stories (at least two emotions), neutral texts, and transcripts if there are any.
        blocks: Decoder blocks, counted from 0; all by default.
        choices: What the recipe leaves open.
        progress: Called with the tokens done and the tokens in all.
        resume: A file in which sums are kept, so that an interrupted call goes on from there.
            It stays when the call is done; take it away once the set is saved.

    Returns:
        A set with the facet ``stories`` and, if there are transcripts, ``transcripts``.

    Raises:
        BankError: Too few labels or texts, no neutral text, or a text that cannot be read.
        BlocksNotFoundError: A block the model does not have.
        CaptureError: Activations that are not finite, or no memory for a single text.
    """
    choices = choices or Choices()
    backbone = find_backbone(model)
    at = check_blocks(range(len(backbone.blocks)) if blocks is None else blocks, backbone)
    wanted = _wanted(texts, choices, bool(getattr(tokenizer, "chat_template", None)))
    encoded = encode(tokenizer, wanted, choices.skip_tokens, context_length(model))
    card = _card(model, tokenizer, wanted, choices) | {"cut": sum(e.cut for e in encoded)}
    neutral = [e for e in encoded if e.text.kind == "neutral"]
    tokens = sum(len(e.ids) for e in (*encoded, *neutral))
    dtype = next(unwrap(model).parameters()).dtype
    job = [card, at, str(dtype), weights(model)]
    sums = Progress(resume, json.dumps(job, sort_keys=True))
    read = sum(len(e.ids) for e in encoded[: sums.done])

    def tell(group: Sequence[Encoded]) -> None:
        nonlocal read
        read += sum(len(e.ids) for e in group)
        if progress is not None:
            progress(read, tokens)

    tell(())
    _first_read(sums, model, encoded, at, choices, tell)
    mu = sums.kind("tokens").of("neutral")
    facets = _facets(sums, choices, mu)
    directions = torch.cat([f.directions for f in facets])
    deviation, norms = spread(model, neutral, at, directions, mu, choices.batch_tokens, tell)
    _check_spread(deviation)
    scaled = deviation.split([len(f.emotions) for f in facets])
    return EmotionVectors(
        tuple(
            Facet(f.name, f.emotions, f.directions, s.float())
            for f, s in zip(facets, scaled, strict=True)
        ),
        at,
        mu.float(),
        {**card, "norms": [round(x, 5) for x in norms.tolist()]},
    )


def _first_read(
    sums: Progress,
    model: nn.Module,
    encoded: Sequence[Encoded],
    at: Sequence[int],
    choices: Choices,
    tell: Callable[[Sequence[Encoded]], None],
) -> None:
    """Add the texts that the sums lack; what was read is kept whatever happens."""
    try:
        rest = encoded[sums.done :]
        for group, found in sweep(model, rest, at, choices.batch_tokens, counted_means):
            sums.adding = True
            for item, mean in zip(group, found, strict=True):
                _add(sums, item, mean)
            sums.done += len(group)
            sums.adding = False
            sums.save()
            tell(group)
    finally:
        sums.save(at_once=True)


def _wanted(texts: Sequence[Text], choices: Choices, chat: bool) -> list[Text]:
    """The texts that this fit reads; without a chat template no neutral dialogues.

    Raises:
        BankError: Nothing can be fitted on them.
    """
    kinds = ("neutral", *(FACETS[f] for f in choices.facets))
    wanted = [t for kind in kinds for t in choose(texts, kind, choices.split)]
    if not chat:
        talks = sum(t.kind == "neutral" and bool(t.messages) for t in wanted)
        wanted = [t for t in wanted if t.kind != "neutral" or t.text]
        log.warning("No chat template: %d neutral dialogues are left out.", talks)
    counts = {kind: Counter(t.label for t in wanted if t.kind == kind) for kind in kinds}
    for name in choices.facets:
        found = counts[FACETS[name]]
        if len(found) == 1 or (name == "stories" and not found):
            raise BankError(
                f"{name}: texts of split {choices.split!r} for {sorted(found) or 'no emotion'}; "
                "wanted at least two, because a direction is a difference from the others."
            )
        if single := sorted(x for x, n in found.items() if n == 1):
            raise BankError(
                f"{name}: one text each for {', '.join(single)}; wanted at least two, better 30: "
                "a direction from one text is that text's topic."
            )
    states = set(counts.get("transcript", ())) - {NEUTRAL_STATE}
    if "stories" in choices.facets and (extra := states - set(counts["story"])):
        raise BankError(
            f"transcripts: {sorted(extra)} have no stories; write some, or leave them out."
        )
    if counts["neutral"].total() < 2:
        raise BankError("Wanted at least two neutral texts: they set the scale of every reading.")
    return wanted


def _add(sums: Progress, item: Encoded, mean: Tensor) -> None:
    if item.text.kind == "neutral":
        sums.kind("tokens").add("neutral", mean, len(item.counted))
        sums.neutral.add(mean)
    else:
        sums.kind(item.text.kind).add(item.text.label, mean)


def _facets(sums: Progress, choices: Choices, mu: Tensor) -> list[Facet]:
    noise = sums.neutral.components(choices.neutral_variance)
    facets: list[Facet] = []
    for name in choices.facets:
        means = sums.means.get(FACETS[name])
        if means is not None:
            labels, stacked = means.stacked()
            kept = [i for i, x in enumerate(labels) if x != NEUTRAL_STATE]
            rows = centred(stacked, noise)[kept]
            emotions = tuple(labels[i] for i in kept)
            rows = _apart(rows, emotions, facets)
            _check_lengths(name, emotions, rows, mu)
            rows = rows / rows.norm(dim=-1, keepdim=True)
            facets.append(Facet(name, emotions, rows.float(), rows.new_ones(rows.shape[:2])))
    return facets


def centred(means: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Means centred over labels, with the components of neutral text projected out.

    Args:
        means: (labels, blocks, width).
        noise: One (components, width) tensor for each block, orthonormal rows.

    Returns:
        (labels, blocks, width), not scaled.
    """
    raw = means - means.mean(0)
    clean = [raw[:, b] - raw[:, b] @ rows.T @ rows for b, rows in enumerate(noise)]
    return torch.stack(clean, 1)


def _apart(rows: Tensor, emotions: Sequence[str], before: Sequence[Facet]) -> Tensor:
    """Project each emotion's earlier facets out of its rows, (emotions, blocks, width)."""
    rows = rows.clone()
    for e, emotion in enumerate(emotions):
        for facet in before:
            if emotion in facet.emotions:
                u = facet.directions[facet.emotions.index(emotion)].double()
                rows[e] -= (rows[e] * u).sum(-1, keepdim=True) * u
    return rows


def _check_lengths(name: str, emotions: Sequence[str], rows: Tensor, mu: Tensor) -> None:
    short = (rows.norm(dim=-1) <= SAME * mu.norm(dim=-1)).any(1)
    if bool(short.any()):
        label = emotions[int(short.nonzero()[0])]
        raise BankError(
            f"{name}: nothing tells the texts for {label!r} from the others once the "
            "components of the neutral texts are out; write more and more different ones."
        )


def _check_spread(deviation: Tensor) -> None:
    if not bool((deviation > 0).all()):
        raise BankError("The neutral texts do not vary along some direction; write more of them.")


def _card(
    model: nn.Module, tokenizer: Any, texts: Sequence[Text], choices: Choices
) -> dict[str, Any]:
    chosen = {k: v for k, v in asdict(choices).items() if k not in ("batch_tokens", "facets")}
    return {
        "model": identity(model, tokenizer),
        "source": "recipe of arXiv:2604.07729",
        "bank": fingerprint(texts),
        "texts": dict(Counter(t.kind for t in texts)),
        "choices": {**chosen, **DECIDED},
    }
