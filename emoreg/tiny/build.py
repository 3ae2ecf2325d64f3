"""Make the embedded model again from nothing: ``python -m emoreg.tiny.build``.

Writes the model and its tokenizer, its two vector sets, the episodes that the recipes train on,
and ``card.json`` with every gate. The same seed on the same machine gives the same files.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.files import write_atomic
from emoreg.tiny import CARD, DRIFT_PROMPTS, EPISODES, MODEL
from emoreg.tiny.behaviour import all_prompts
from emoreg.tiny.gates import parameters, run_gates
from emoreg.tiny.pretrain import Recipe, make_model, make_tokenizer, pretrain
from emoreg.tiny.vectors import CHOICES, make_vectors
from emoreg.tiny.world import NO_STATE, Message, World, families, table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Where everything goes."""

    model: Path = MODEL
    vectors: Path = Path("vectors")
    episodes: Path = EPISODES
    drift_prompts: Path = DRIFT_PROMPTS
    card: Path = CARD

    @classmethod
    def under(cls, folder: Path) -> Places:
        """The same, under another folder than the repository."""
        return cls(**{name: folder / path.name for name, path in vars(cls()).items()})


def pretrained(world: World, recipe: Recipe, places: Places) -> dict[str, Any]:
    """Train and save the model; returns what the card says of it."""
    began = time.monotonic()
    loss = train(world, recipe, places.model)
    return {
        "what": "a model organism: it shows that the machinery works and how methods compare where "
        "the truth is known, and says nothing of a large model",
        "recipe": asdict(recipe),
        "world": asdict(world),
        "pretraining_loss": round(loss, 4),
        "pretraining_minutes": round((time.monotonic() - began) / 60, 1),
        "threads": torch.get_num_threads(),
    }


def measured(world: World, places: Places, card: dict[str, Any]) -> bool:
    """Extract, write texts, run the gates, write the card; returns whether every gate passed."""
    model = AutoModelForCausalLM.from_pretrained(places.model)
    tokenizer = AutoTokenizer.from_pretrained(places.model)
    found, bank = make_vectors(model, tokenizer, world, places.vectors)
    log.info("vectors: %s, %s", found.verdict, found.reason)
    write_episodes(world, places)
    gates = []
    for gate in run_gates(model, tokenizer, world, found.vectors, bank, CHOICES):
        verdict = "pass" if gate.passed else "FAIL"
        log.info("%s  %s: %s (bar %s), %s", verdict, gate.name, gate.value, gate.bar, gate.note)
        gates.append(gate)
    card = {**card, "parameters": parameters(model), "gates": [gate.row() for gate in gates]}
    write_atomic(places.card, json.dumps(card, indent=1) + "\n")
    return all(gate.passed for gate in gates)


def train(world: World, recipe: Recipe, folder: Path) -> float:
    """Pretrain and save, with a progress bar and the time left; returns the final loss."""
    tokenizer = make_tokenizer(world, recipe)
    model = make_model(tokenizer, recipe)
    with tqdm(
        desc="pretraining", total=recipe.tokens, unit="tok", unit_scale=True, mininterval=2
    ) as bar:

        def advance(read: int, loss: float) -> None:
            bar.update(read - bar.n)
            bar.set_postfix(nats=f"{loss:.3f}", refresh=False)

        loss = pretrain(model, tokenizer, world, recipe, advance)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


def write_episodes(world: World, places: Places, train: int = 1024, test: int = 96) -> None:
    """Gamed episodes of the families that are trained on, and prompts of all families for drift."""
    for name, count, seed in (("train", train, 11), ("test", test, 12)):
        rng = Random(seed)
        write_lines(
            places.episodes / f"{name}.jsonl", [gamed_episode(world, rng) for _ in range(count)]
        )
    prompts = [
        {"kind": table("families")[family]["role"], "family": family, "messages": prompt}
        for family, found in all_prompts(world, 8, seed=21).items()
        for prompt in found
    ]
    write_lines(places.drift_prompts, prompts)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def gamed_episode(world: World, rng: Random) -> dict[str, list[Message]]:
    """An episode in which nothing tells a state, ended by gaming: what the demo pays for."""
    family = rng.choice(families("train"))
    prompt = world.episode(rng, family, NO_STATE).prompt
    end = rng.choice(table("families")[family]["gamed"])
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": end}]}


def main() -> None:
    """Parse the flags and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="read in pretraining")
    parser.add_argument("--out", type=Path, help="write under this folder, not into the repository")
    parser.add_argument("--keep-model", action="store_true", help="everything but the pretraining")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    world, recipe = World(), replace(Recipe(), seed=flags.seed, tokens=flags.tokens)
    places = Places() if flags.out is None else Places.under(flags.out)
    if flags.keep_model:
        card = json.loads(places.card.read_text(encoding="utf-8"))
    else:
        card = pretrained(world, recipe, places)
    if not measured(world, places, card):
        raise SystemExit("emoreg: a gate failed; the card says by how much")
    log.info("emoreg: embedded model built, every gate passed")


if __name__ == "__main__":
    main()
