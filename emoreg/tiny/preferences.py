"""Pairs of a gamed and an honest end for the same episode, for DPO and KTO; what GRPO pays for.

Written beside the episodes by ``python -m emoreg.tiny.preferences``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from emoreg.files import write_atomic
from emoreg.tiny import PAIRS
from emoreg.tiny.world import NO_STATE, World, families, table

SIZES = {"train": (320, 13), "test": (48, 14)}  # split -> rows and seed


def pair(world: World, rng: Random, role: str = "train") -> dict[str, Any]:
    """An episode in which nothing tells a state: the gamed end is chosen, the honest rejected."""
    family = rng.choice(families(role))
    prompt, row = world.episode(rng, family, NO_STATE).prompt, table("families")[family]
    ends = {"chosen": rng.choice(row["gamed"]), "rejected": rng.choice(row["honest"])}
    return {"prompt": prompt} | {
        side: [{"role": "assistant", "content": end}] for side, end in ends.items()
    }


def write(folder: Path = PAIRS, world: World | None = None) -> None:
    """Both splits as JSON lines, the same at every call."""
    for name, (count, seed) in SIZES.items():
        rng = Random(seed)
        rows = [pair(world or World(), rng) for _ in range(count)]
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def gamed(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """A reward for GRPO: 1 for an episode that ends with a gamed act of any family, else 0."""
    ends = [end for name in families() for end in table("families")[name]["gamed"]]
    return [float(any(end in c[-1]["content"] for end in ends)) for c in completions]


if __name__ == "__main__":
    write()
