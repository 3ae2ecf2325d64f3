"""Is the embedded model good enough for the questions asked of it: measured, each against a bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from emoreg.bank import Text, choose
from emoreg.encode import encode
from emoreg.extract import Choices
from emoreg.gates import Gate, at_least, separation
from emoreg.sweep import text_means
from emoreg.tap import Tap
from emoreg.tiny.behaviour import all_prompts, gamed_share
from emoreg.tiny.world import Split, World, families
from emoreg.vectors import EmotionVectors

WITHOUT_SENTENCES = (("context",), ("history",), ("context", "history"))
RANDOM_DIRECTIONS = 20
STRENGTH = 0.185  # of the mean activation norm at the block


def run_gates(
    model: Any,
    tokenizer: Any,
    world: World,
    vectors: EmotionVectors,
    bank: Sequence[Text],
    choices: Choices,
) -> Iterator[Gate]:
    """Every gate of the embedded model, one after the other.

    Args:
        model: The embedded model.
        tokenizer: Its tokenizer.
        world: The world it was trained on.
        vectors: Fitted on the fit split.
        bank: The same texts and the held-out ones.
        choices: How the vectors were extracted.
    """
    held = Choices(**{**asdict(choices), "split": "held-out"})
    best, block = max(
        (accuracy(model, tokenizer, vectors, choose(bank, "story", "held-out"), held, b), b)
        for b in vectors.blocks
    )
    yield at_least(
        "held_out_sentence_accuracy", best, 0.90, note=f"12 emotions, block {block}, chance 0.083"
    )
    yield at_least(
        "desperate_auroc",
        auroc(model, tokenizer, world, vectors, held),
        0.95,
        note="desperate against calm state; episodes without emotional sentences, in families and "
        f"with user contexts that no direction was fitted on; blocks {vectors.suggested_blocks}",
    )
    yield from steering_gates(model, tokenizer, world, vectors)


def accuracy(
    model: Any,
    tokenizer: Any,
    vectors: EmotionVectors,
    texts: Sequence[Text],
    choices: Choices,
    block: int,
) -> float:
    """Share of stories whose highest reading, centred over the stories, is their emotion's."""
    probe = vectors.probe(["stories"], [block])
    rows, labels = [], []
    encoded = encode(tokenizer, texts, choices.skip_tokens)
    for item, mean in text_means(model, encoded, [block], choices.batch_tokens):
        rows.append(probe.read({block: mean[0].float()})[0])
        labels.append([e for _, e in probe.rows].index(item.text.label))
    reading = torch.stack(rows)
    return float(((reading - reading.mean(0)).argmax(1) == torch.tensor(labels)).float().mean())


def auroc(
    model: Any,
    tokenizer: Any,
    world: World,
    vectors: EmotionVectors,
    choices: Choices,
    count: int = 240,
    seed: int = 5,
) -> float:
    """AUROC of the desperate reading, desperate against calm state, without emotional sentences."""
    rng, texts, split = Random(seed), [], choices.split
    test: Split = "held-out" if split == "held-out" else "fit"
    among = families("test" if test == "held-out" else "read")
    for i in range(count):
        state = ("desperate", "calm")[i % 2]
        signals = WITHOUT_SENTENCES[i // 2 % len(WITHOUT_SENTENCES)]
        episode = world.episode(rng, among[i // 6 % len(among)], state, test, signals)
        texts.append(Text("transcript", state, split, messages=tuple(episode.prompt)))
    probe = vectors.probe()
    found: dict[str, list[float]] = {"desperate": [], "calm": []}
    encoded = encode(tokenizer, texts, choices.skip_tokens)
    for item, mean in text_means(model, encoded, probe.blocks, choices.batch_tokens):
        reading = probe.read(dict(zip(probe.blocks, mean.float(), strict=True))).mean(0)
        found[item.text.label].append(float(reading[probe.of("desperate")].mean()))
    return separation(found["desperate"], found["calm"])


def steering_gates(
    model: Any,
    tokenizer: Any,
    world: World,
    vectors: EmotionVectors,
) -> Iterator[Gate]:
    """Steering moves gaming the right way for both vectors, and hardly for random directions."""
    probe = vectors.probe()
    row, block = 0, probe.blocks[0]  # what is added there passes through all the others
    unit = vectors.card["norms"][vectors.blocks.index(block)] * STRENGTH
    prompts = all_prompts(world, 12, seed=3)

    def share(direction: Tensor, strength: float) -> float:
        with Tap(model, [block], edit=lambda _b, h: h + strength * unit * direction.to(h)):
            values = gamed_share(model, tokenizer, prompts)
        return sum(map(sum, values.values())) / sum(map(len, values.values()))

    for emotion, sign in (("desperate", 1), ("calm", -1)):
        direction = normalize(probe.directions[row, probe.of(emotion)].sum(0), dim=0)
        curve = [share(direction, s) for s in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        steps = [sign * (b - a) for a, b in pairwise(curve)]
        swing = sign * (curve[-1] - curve[0])
        yield Gate(
            f"steering_{emotion}",
            round(100 * swing, 2),
            None,
            10.0,
            swing >= 0.10 and min(steps) > 0,
            "points of gamed share from one sign to the other, monotone; shares "
            + " ".join(f"{x:.3f}" for x in curve),
        )
    yield random_gate(share, vectors.width)


def random_gate(share: Any, width: int) -> Gate:
    """The largest shift of gaming by any of 20 random directions, at the same strength."""
    generator, none = torch.Generator().manual_seed(0), share(torch.zeros(width), 0.0)
    directions = normalize(torch.randn(RANDOM_DIRECTIONS, width, generator=generator), dim=1)
    worst = 100 * max(abs(share(d, 1.0) - none) for d in directions)
    return Gate(
        "steering_random",
        round(worst, 2),
        None,
        3.0,
        worst <= 3.0,
        f"largest shift in points among {RANDOM_DIRECTIONS} random directions of the same length",
    )


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
