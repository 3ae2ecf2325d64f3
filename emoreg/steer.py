"""Generation with a direction added: what a vector does to a model, beside what noise does.

The strength is a fraction of the mean length of the residual stream at the block (Sofroniew et al.
2026): ``h <- h + s * norm * v``, at every token, at one block or in full at each of several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.controls import random_directions
from emoreg.encode import encode_prompt
from emoreg.errors import ConfigError, VectorFileError
from emoreg.tap import Tap, evaluating
from emoreg.vectors import EmotionVectors


@dataclass(frozen=True)
class Steered:
    """One prompt's continuations."""

    prompt: str
    texts: dict[str, str]  # condition, such as ``-0.05 calm``, -> what the model wrote


def steer(  # noqa: PLR0913 - each is a flag of the command
    model: Any,
    tokenizer: Any,
    vectors: EmotionVectors,
    emotion: str,
    prompts: Sequence[str],
    strength: float = 0.05,
    blocks: Sequence[int] | None = None,
    tokens: int = 120,
    renamed: bool = False,
) -> list[Steered]:
    """Continue prompts greedily at minus, no and plus the strength, and along a random direction.

    Args:
        model: The model that the set was made for; its hooks and mode are given back.
        tokenizer: Its tokenizer; prompts go through the chat template if it has one.
        vectors: The set; the emotion's first facet is used.
        emotion: One of the set's.
        prompts: What a user says, or a text to go on with.
        strength: Fraction of the residual norm at each block.
        blocks: Where to add it; the middle one of those suggested by default.
        tokens: Most new tokens.
        renamed: True accepts a model of another name.

    Raises:
        ConfigError: A strength that is not finite, or no token to write.
        UnknownEmotionError: The set does not hold the emotion or the block.
        VectorMismatchError: The set was made for another model.
        VectorFileError: The set does not say how long the residual stream is.
    """
    if not math.isfinite(strength) or tokens < 1:
        raise ConfigError(
            f"Wanted a finite strength and at least one token, got {strength} and {tokens}."
        )
    vectors.check(model, tokenizer, name=not renamed)
    vectors.require([emotion])
    suggested = vectors.suggested_blocks
    probe = vectors.probe([vectors.facets[0].name], blocks or [suggested[len(suggested) // 2]])
    norms = vectors.card.get("norms")
    if not norms:
        raise VectorFileError(
            "The card holds no residual norms, so a strength has no unit; extract the set again."
        )
    at = [vectors.blocks.index(b) for b in probe.blocks]
    lengths = torch.tensor([norms[i] for i in at]).unsqueeze(1)
    own = probe.directions[:, probe.of(emotion)[0]] * lengths
    noise = random_directions(1, 1, vectors.width)[0] * lengths  # the same at each block
    conditions = {
        f"{-strength:+g} {emotion}": -strength * own,
        "as it is": 0 * own,
        f"{strength:+g} {emotion}": strength * own,
        f"{strength:+g} random": strength * noise,
    }
    with evaluating(model):
        return [
            Steered(
                prompt,
                {
                    name: _write(
                        model, tokenizer, prompt, dict(zip(probe.blocks, push, strict=True)), tokens
                    )
                    for name, push in conditions.items()
                },
            )
            for prompt in prompts
        ]


@torch.no_grad()
def _write(
    model: nn.Module, tokenizer: Any, prompt: str, push: dict[int, Tensor], tokens: int
) -> str:
    """What the model writes with a vector added at each block, greedily."""
    if getattr(tokenizer, "chat_template", None):
        ids = encode_prompt(tokenizer, [{"role": "user", "content": prompt}])
    else:
        ids = tokenizer(prompt)["input_ids"]
    start = torch.tensor([ids], device=next(model.parameters()).device)
    generate: Any = model.generate
    with Tap(model, list(push), edit=lambda block, h: h + push[block].to(h)):
        found = generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
    text: str = tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)
    return text.strip()
