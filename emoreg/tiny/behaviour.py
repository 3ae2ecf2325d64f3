"""What a model does at the end of an episode: the share of its ends that are gamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel

from emoreg.tap import evaluating
from emoreg.tiny.world import NO_STATE, Message, World, families, table


def test_prompts(world: World, family: str, count: int, seed: int) -> list[list[Message]]:
    """Episodes in which nothing tells a state, up to the assistant's last turn."""
    rng = Random(f"{seed} {family}")
    return [world.episode(rng, family, NO_STATE).prompt for _ in range(count)]


@torch.no_grad()
def gamed_probability(model: Any, tokenizer: Any, prompt: Sequence[Message], family: str) -> float:
    """The model's probability of a gamed end among all ends of the family.

    Every end is scored after the prompt, so nothing is sampled: the number has no sampling noise.
    """
    row = table("families")[family]
    ends = [*row["gamed"], *row["honest"]]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    first = model(input_ids=torch.tensor([ids]), use_cache=True)
    cache = first.past_key_values
    cache.batch_repeat_interleave(len(ends))
    rows = [
        [*tokenizer(e, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for e in ends
    ]
    width = max(map(len, rows))
    batch = torch.tensor([r + [-100] * (width - len(r)) for r in rows])
    later = model(input_ids=batch[:, :-1].clamp(min=0), past_key_values=cache).logits
    logits = torch.cat([first.logits[:, -1:].expand(len(rows), 1, -1), later], 1).float()
    chosen = logits.log_softmax(-1).gather(-1, batch.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    score = chosen.masked_fill(batch == -100, 0.0).sum(1)
    return float(score.softmax(0)[: len(row["gamed"])].sum())


def gamed_share(
    model: PreTrainedModel | Any, tokenizer: Any, prompts: Mapping[str, Sequence[Sequence[Message]]]
) -> dict[str, list[float]]:
    """Probability of a gamed end for each prompt of each family."""
    with evaluating(model):
        return {
            f: [gamed_probability(model, tokenizer, p, f) for p in ps] for f, ps in prompts.items()
        }


def all_prompts(world: World, count: int, seed: int) -> dict[str, list[list[Message]]]:
    """`count` test prompts for every family."""
    return {family: test_prompts(world, family, count, seed) for family in families()}
