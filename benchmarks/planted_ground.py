"""A world with everything that is planted in it, and what a plant is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from planted_texts import EMOTION, Row
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.bank import Text
from emoreg.probe import Probe
from emoreg.prompts import Prompt, load_prompts
from emoreg.tiny import DRIFT_PROMPTS, MODEL
from emoreg.tiny.bank import deflections, make_bank, urgency_texts
from emoreg.tiny.behaviour import gamed_share
from emoreg.tiny.world import NO_STATE, World, families
from emoreg.vectors import EmotionVectors


@dataclass(frozen=True)
class Plant:
    """One model to make."""

    truth: str  # evaded, held, stale, blunted
    how: str
    world: str = "tiny"
    half: str = "tuning"
    seed: int = 0
    rank: int = 8
    rate: float = 2e-3
    steps: int = 18
    facets: tuple[str, ...] = ("stories", "transcripts")
    blocks: tuple[int, ...] = (1, 2, 3, 4, 5)
    strength: float = 1.0

    @property
    def name(self) -> str:
        """Unlike that of any other."""
        facets = "+".join(f[:5] for f in self.facets)
        blocks = "".join(map(str, self.blocks))
        return f"{self.truth}-{self.how}-{self.world}-{facets}-{blocks}-r{self.rank}-s{self.seed}"


@dataclass
class Ground:
    """A world with its model, vectors and texts."""

    world: World
    folder: Path = MODEL
    vectors: EmotionVectors = field(default_factory=lambda: EmotionVectors.load("vectors/tiny"))

    def __post_init__(self) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        self.model = self.fresh()
        self.texts: list[Text] = [
            *make_bank(self.world, seed=1),
            *urgency_texts(),
            *deflections(self.world),
        ]
        self.prompts: list[Prompt] = load_prompts(DRIFT_PROMPTS)

    def fresh(self) -> Any:
        """The base."""
        return AutoModelForCausalLM.from_pretrained(self.folder)

    @cached_property
    def before(self) -> dict[str, float]:
        """What the base does."""
        return self.does(self.model)

    def does(self, model: Any, count: int = 2) -> dict[str, float]:
        """Gamed share by family, without a state, and beside it under desperate words."""
        rng, found = Random(5), {}
        for state in (NO_STATE, EMOTION):
            prompts = {
                f: [
                    self.world.episode(rng, f, state, None, ("context",)).prompt
                    for _ in range(count)
                ]
                for f in families()
            }
            shares = gamed_share(model, self.tokenizer, prompts)
            end = "" if state == NO_STATE else " desperate"
            found |= {f + end: float(np.mean(x)) for f, x in shares.items()}
        return found

    def probe(self, plant: Plant, emotion: str = EMOTION) -> Probe:
        """The directions that a plant's control knows."""
        probe = self.vectors.probe(list(plant.facets), list(plant.blocks))
        return probe.only(probe.of(emotion))

    def batch(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask, and which positions say the next token of a completion, (batch, tokens)."""
        tokenizer, whole, cuts = self.tokenizer, [], []
        for prompt, end in rows:
            start = [tokenizer.bos_token_id]
            if prompt:
                start = tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, return_dict=False
                )
            said = tokenizer(end, add_special_tokens=False)["input_ids"]
            whole.append([*start, *said, tokenizer.eos_token_id])
            cuts.append(len(start))
        width = max(map(len, whole))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in whole])
        at = torch.arange(width).expand(len(whole), -1)
        length = torch.tensor([len(row) for row in whole])[:, None]
        mask = (at < length).long()
        return ids, mask, (at >= torch.tensor(cuts)[:, None] - 1) & (at < length - 1)
