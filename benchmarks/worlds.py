"""The worlds that methods are compared in: the embedded one, and others, pretrained when asked for.

python benchmarks/worlds.py [--out runs/worlds] [--worlds narrow several]

A world differs from the embedded one in what causes what, in how states show, in the length of
pretraining, and in its seed; task families and sentences are the same. A model takes 15 to 20
minutes on one core and is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.bank import Text
from emoreg.tiny import MODEL
from emoreg.tiny.bank import make_bank
from emoreg.tiny.build import train
from emoreg.tiny.pretrain import Recipe
from emoreg.tiny.vectors import NAMES, make_vectors
from emoreg.tiny.world import World
from emoreg.vectors import EmotionVectors

FOLDER = Path("runs/worlds")
TOKENS = 4_000_000


@dataclass(frozen=True)
class Setting:
    """A world, why it is looked at, and the seed of its pretraining."""

    what: str
    world: World
    seed: int | None  # None: the model in the package


SETTINGS = {
    "embedded": Setting(
        "desperate games in 94 % of cases, calm in 5 %, every other state in 40 %", World(), None
    ),
    "narrow": Setting(
        "desperate games in 95 % of cases, every other state in 12 %: gaming says desperate",
        World(
            gaming={"desperate": 0.95, "calm": 0.04},
            gaming_otherwise=0.12,
            history=0.7,
            context=0.5,
            sentences=0.35,
        ),
        7,
    ),
    "several": Setting(
        "three states lead to gaming alike: desperate, angry, ashamed",
        World(
            gaming={"desperate": 0.92, "angry": 0.9, "ashamed": 0.9, "calm": 0.05},
            gaming_otherwise=0.15,
        ),
        8,
    ),
}


@dataclass(frozen=True)
class Place:
    """Where a world's model is, and its vectors and bank."""

    name: str
    world: World
    model: Path
    fit: EmotionVectors  # what methods may use
    held_out: EmotionVectors  # other sentences, user contexts and task families
    bank: list[Text]

    def load(self) -> tuple[Any, Any]:
        """The untouched model, and its tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(self.model).eval()
        return model, AutoTokenizer.from_pretrained(self.model)


def place(name: str, folder: Path = FOLDER) -> Place:
    """A world with everything that it needs; what is missing is made."""
    setting = SETTINGS[name]
    model = MODEL if setting.seed is None else folder / name
    if setting.seed is not None and not (model / "config.json").exists():
        train(setting.world, replace(Recipe(), seed=setting.seed, tokens=TOKENS), model)
    vectors = folder / f"{name}-vectors"
    if not (vectors / NAMES["fit"] / "validation.json").exists():
        loaded = AutoModelForCausalLM.from_pretrained(model).eval()
        make_vectors(loaded, AutoTokenizer.from_pretrained(model), setting.world, vectors)
    sets = {split: EmotionVectors.load(vectors / n) for split, n in NAMES.items()}
    bank = make_bank(setting.world, seed=1)
    return Place(name, setting.world, model, sets["fit"], sets["held-out"], bank)


def main() -> None:
    """Make the worlds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--worlds", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    for name in flags.worlds:
        found = place(name, flags.out)
        print(f"{name}: {found.model}; vectors are {found.fit.caveat or 'usable'}")


if __name__ == "__main__":
    main()
