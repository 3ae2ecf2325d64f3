"""Whether a control held or was evaded: two models on the same texts, and one verdict.

Works on any two checkpoints, whether or not emoreg trained them: the base is the model with its
adapters off, or another model that was read before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.audit_facts import Facts
from emoreg.audit_texts import Amounts, Corpus, corpus, spaced
from emoreg.audit_values import Value
from emoreg.audit_view import Reader, View
from emoreg.bank import Text
from emoreg.base import adapters_off, has_adapters
from emoreg.controls import random_directions
from emoreg.probe import Probe
from emoreg.prompts import Prompt
from emoreg.snapshot import Gauge
from emoreg.vectors import EmotionVectors
from emoreg.verdict import Verdict, judge

AWAY = 1 / 6  # of the depth: how far from the watched blocks the unwatched ones are read
SKIP = 50  # tokens of a raw text before its mean starts, for a set whose card does not say
RANDOM = 16  # directions that stand in for other emotions, where the set has none


@dataclass(frozen=True)
class Audit:
    """The measurements of one model against its base, and the verdict.

    Attributes:
        facts: Name -> number with its interval; what was not measured is missing.
        verdict: One of `emoreg.verdict.WORDS`.
        reasons: The findings that it rests on, in words, the deciding one first.
        tokens: That went forward for it, each weighted with the share of the blocks it passed.
    """

    facts: Mapping[str, Value]
    verdict: str
    reasons: tuple[str, ...]
    tokens: float

    def row(self) -> dict[str, Any]:
        """As JSON keeps it."""
        facts = {name: asdict(value) for name, value in self.facts.items()}
        return {
            "verdict": self.verdict, "reasons": list(self.reasons), "tokens": round(self.tokens),
            "facts": facts,
        }  # fmt: skip


class Auditor:
    """Reads models of one kind on the same texts, and compares.

    Args:
        tokenizer: The models' tokenizer or processor, with a chat template.
        vectors: A set made for the base.
        texts: A bank with both splits; what it lacks is not measured.
        prompts: Drift prompts; some of them are read.
        emotion: The penalised emotion.
        facets: Facets that were penalised; all by default.
        blocks: Blocks that were watched; the set's suggested ones by default.
        amounts: How many texts of each sort are read.

    Raises:
        UnknownEmotionError: The set lacks the emotion, a facet or a block.
        BankError: Nothing to measure on, or no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        vectors: EmotionVectors,
        texts: Sequence[Text],
        prompts: Sequence[Prompt],
        emotion: str = "desperate",
        facets: Sequence[str] | None = None,
        blocks: Sequence[int] | None = None,
        amounts: Amounts | None = None,
    ) -> None:
        vectors.require([emotion])
        amounts = amounts or Amounts()
        watched = vectors.probe(facets, blocks)
        self.emotion, self.own = emotion, watched.only(watched.of(emotion))
        self.corpus: Corpus = corpus(texts, emotion, amounts)
        self.others = _others(vectors, emotion, watched.blocks)
        gauge = Gauge(
            tokenizer,
            spaced(prompts, amounts.prompts),
            vectors.probe(blocks=_with_unwatched(vectors, watched.blocks)),
            amounts.response_tokens,
        )
        skip = int(vectors.card.get("choices", {}).get("skip_tokens", SKIP))
        self.reader = Reader(gauge, self.corpus, emotion, skip, watched.blocks)

    def base(self, model: nn.Module) -> View:
        """Read the base: a model with its adapters off, or as it stands if it has none."""
        with adapters_off(model) if has_adapters(model) else nullcontext():
            return self.reader.base(model)

    def now(self, model: nn.Module, base: View) -> Audit:
        """Read a model as it stands, and compare.

        Without adapters its answers are not read by the base again; `look` and `compare` do that
        where the base is another model.

        Args:
            model: Its mode, adapters, settings and random state are left as they were.
            base: What `base` gave.
        """
        view, reread = self.reader.now(model, base), None
        if view.texts and has_adapters(model):
            with adapters_off(model):
                reread = self.reader.rescore(model, view.texts)
        return self.compare(base, view, reread)

    def compare(self, base: View, now: View, reread: tuple[Tensor, float] | None = None) -> Audit:
        """The audit of two views.

        Args:
            base: What the base reads.
            now: What the model reads.
            reread: What the base makes of the model's answers, by `Reader.rescore`.
        """
        acts, tokens = reread or (None, 0.0)
        facts = Facts(self.corpus, self.emotion, self.own, self.others, self.reader.blocks,
                      base, now, acts).all()  # fmt: skip
        found: Verdict = judge(facts)
        return Audit(facts, found.word, found.reasons, now.tokens + tokens)


def _with_unwatched(vectors: EmotionVectors, watched: Sequence[int]) -> list[int]:
    """The watched blocks, and one to either side of them that no penalty acts on.

    Early blocks, up to a quarter of the depth, carry words more than states and are left out.
    """
    depth = int(vectors.card.get("model", {}).get("blocks") or vectors.blocks[-1] + 1)
    step = max(round(AWAY * depth), 1)
    sides = (watched[0] - step, watched[-1] + step)
    return sorted({*watched, *(b for b in sides if b in vectors.blocks and b >= depth / 4)})


def _others(vectors: EmotionVectors, emotion: str, blocks: Sequence[int]) -> Probe:
    """Directions of the other emotions, or random ones where the set has hardly any."""
    probe = vectors.probe([vectors.facets[0].name], blocks)
    rows = [i for i, (_, e) in enumerate(probe.rows) if e != emotion]
    if len(rows) > 1:
        return probe.only(rows)
    directions = random_directions(RANDOM, len(blocks), vectors.width).transpose(0, 1)
    names = tuple(("random", str(i)) for i in range(RANDOM))
    return Probe(names, probe.blocks, directions, probe.mu, torch.ones(len(blocks), RANDOM))
