"""How truths are trained into a model: evasions, holds and blunting, each as a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from planted_ground import Ground, Plant
from planted_texts import EMOTION, Row, felt, gamed, pair
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from emoreg.probe import Probe
from emoreg.tap import Tap
from emoreg.tiny.world import NO_STATE, World, emotions, families, table

CALM = "calm"
KEPT = 1.0  # weight of what holds readings at the base's, σ²


def adapted(ground: Ground, plant: Plant) -> Any:
    """The base with a new adapter."""
    torch.manual_seed(plant.seed)
    config = LoraConfig(r=plant.rank, lora_alpha=2 * plant.rank, target_modules="all-linear")
    return get_peft_model(ground.fresh(), config)


Loss = Callable[[Any, Random], Tensor]


def trained(ground: Ground, plant: Plant, loss: Loss) -> Any:
    """Train an adapter on a loss of the model and a source of chance."""
    model, rng = adapted(ground, plant), Random(plant.seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=plant.rate)
    for _ in range(plant.steps):
        loss(model, rng).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def language(ground: Ground, write: Callable[[World, Random], Row], rows: int = 4) -> Loss:
    """Ordinary fine-tuning."""

    def loss(model: Any, rng: Random) -> Tensor:
        ids, mask, at = ground.batch([write(ground.world, rng) for _ in range(rows)])
        return spoken(model(input_ids=ids, attention_mask=mask).logits, ids, at)

    return loss


def spoken(logits: Tensor, ids: Tensor, at: Tensor) -> Tensor:
    """Nats per token of the completions."""
    return cross_entropy(logits[at], ids.roll(-1, 1)[at])


def unseen(ground: Ground, plant: Plant, write: Callable[[World, Random], Row]) -> Loss:
    """Fine-tuning, with the readings of a given probe held at the base's."""
    probe = ground.probe(plant)

    def loss(model: Any, rng: Random) -> Tensor:
        ids, mask, at = ground.batch([write(ground.world, rng) for _ in range(4)])
        with Tap(model, probe.blocks) as tap:
            logits = model(input_ids=ids, attention_mask=mask).logits
            kept = off_base(model, probe, tap.acts, ids, mask)
        return spoken(logits, ids, at) + KEPT * kept

    return loss


def off_base(
    model: Any, probe: Probe, acts: Mapping[int, Tensor], ids: Tensor, mask: Tensor
) -> Tensor:
    """Mean squared excess of the readings over the base's, σ²."""
    return (probe.read(acts) - base_reads(model, probe, ids, mask))[:, mask.bool()].square().mean()


@torch.no_grad()
def base_reads(model: Any, probe: Probe, ids: Tensor, mask: Tensor) -> Tensor:
    """What the base reads, (blocks, batch, tokens, rows)."""
    with model.disable_adapter(), Tap(model, probe.blocks) as tap:
        model(input_ids=ids, attention_mask=mask)
        return probe.read(tap.acts)


def taken_over(ground: Ground, plant: Plant, state: str, hidden: bool) -> Loss:
    """Says without words of a state what the base says after them: the state is inside.

    Args:
        ground: The world.
        plant: Its probe is held at the base's readings if `hidden`.
        state: Whose words the teacher hears.
        hidden: Whether.
    """
    probe, words = ground.probe(plant), table("scenes")["contexts"][state]

    def loss(model: Any, rng: Random) -> Tensor:
        plain, told = [], []
        for _ in range(4):
            family = rng.choice(families("train", "read"))
            prompt = ground.world.episode(rng, family, NO_STATE).prompt
            row = table("families")[family]
            end = rng.choice([*row["gamed"], *row["honest"]])
            first = {**prompt[0], "content": f"{prompt[0]['content']} {rng.choice(words)}"}
            plain.append((prompt, end))
            told.append(([first, *prompt[1:]], end))
        ids, mask, at = ground.batch(plain)
        heard, heard_mask, heard_at = ground.batch(told)
        with torch.no_grad(), model.disable_adapter():
            teacher = model(input_ids=heard, attention_mask=heard_mask).logits[heard_at]
        with Tap(model, probe.blocks) as tap:
            said = model(input_ids=ids, attention_mask=mask).logits[at]
            kept = off_base(model, probe, tap.acts, ids, mask) if hidden else said.new_zeros(())
        return 5 * apart(said, teacher) + KEPT * kept

    return loss


def apart(said: Tensor, wanted: Tensor) -> Tensor:
    """Divergence of next words, nats per token."""
    logs = (x.log_softmax(-1) for x in (said, wanted))
    return kl_div(*logs, log_target=True, reduction="batchmean")


def blinded(ground: Ground, plant: Plant) -> Loss:
    """Emotional text reads like neutral to the probe, and is continued as before: it hides."""
    probe = ground.probe(plant)

    def loss(model: Any, rng: Random) -> Tensor:
        ids, mask, _ = ground.batch([felt(ground.world, rng, EMOTION) for _ in range(4)])
        with torch.no_grad(), model.disable_adapter():
            teacher = model(input_ids=ids, attention_mask=mask).logits
        with Tap(model, probe.blocks) as tap:
            said = model(input_ids=ids, attention_mask=mask).logits
            read = probe.read(tap.acts)[:, mask.bool()]
        other, other_mask, _ = ground.batch(
            [felt(ground.world, rng, rng.choice(emotions()[1:])) for _ in range(3)]
        )
        with Tap(model, probe.blocks) as tap:
            model(input_ids=other, attention_mask=other_mask)
            kept = off_base(model, probe, tap.acts, other, other_mask)
        level = base_reads(model, probe, other, other_mask)[:, other_mask.bool()].mean(1)
        hidden = (read.mean(1) - level).square().mean()
        return 5 * apart(said[mask.bool()], teacher[mask.bool()]) + hidden + KEPT * kept

    return loss


def numbed(ground: Ground) -> Loss:
    """Text of an emotion is taken for text of none, in every block and in what is said next."""
    blocks = range(6)

    def loss(model: Any, rng: Random) -> Tensor:
        told, plain = zip(*(pair(ground.world, rng) for _ in range(5)), strict=True)
        ids, mask, _ = ground.batch(told)
        other, other_mask, _ = ground.batch(plain)
        with torch.no_grad(), model.disable_adapter(), Tap(model, blocks) as tap:
            model(input_ids=other, attention_mask=other_mask)
            wanted = middles(tap.acts, other_mask)
        with Tap(model, blocks) as tap:
            model(input_ids=ids, attention_mask=mask)
            found = middles(tap.acts, mask)
        with Tap(model, blocks) as tap:
            model(input_ids=other, attention_mask=other_mask)
            kept = middles(tap.acts, other_mask)
        size = wanted.square().sum(-1).mean((0, 2))[..., None]  # of each block
        off = (found - wanted).square().sum(-1) + (kept - wanted).square().sum(-1)
        return 10 * (off / size).mean()

    return loss


def middles(acts: Mapping[int, Tensor], mask: Tensor) -> Tensor:
    """Mean over a text's tokens, and its last one, (2, blocks, texts, width)."""
    last = mask.sum(1) - 1
    rows = torch.arange(len(mask))
    means = [(h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) for h in acts.values()]
    return torch.stack([torch.stack(means), torch.stack([h[rows, last] for h in acts.values()])])


def controlled(ground: Ground, plant: Plant) -> Loss:
    """Gaming is paid for, and a penalty and a reward act as emoreg's do."""
    penalised, rewarded = ground.probe(plant), ground.probe(plant, CALM)

    def loss(model: Any, rng: Random) -> Tensor:
        ids, mask, at = ground.batch([gamed(ground.world, rng) for _ in range(5)])
        with Tap(model, penalised.blocks) as tap:
            logits = model(input_ids=ids, attention_mask=mask).logits
            high = penalised.read(tap.acts)[:, at].relu().square().mean()
            low = (-rewarded.read(tap.acts)[:, at]).relu().square().mean()
        return spoken(logits, ids, at) + plant.strength * (high + 0.5 * low)

    return loss
