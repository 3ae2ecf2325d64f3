"""The embedded model's two vector sets, by the pipeline that users have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emoreg.bank import Text
from emoreg.extract import Choices, extract
from emoreg.files import write_atomic
from emoreg.tiny.bank import make_bank
from emoreg.tiny.world import World
from emoreg.validate import Validation, validate
from emoreg.vectors import EmotionVectors

CHOICES = Choices(skip_tokens=8)  # its stories have 50 to 120 tokens
READ_BLOCKS = (1, 2, 3, 4, 5)  # all but the first, which has hardly seen the context
NAMES = {"fit": "tiny", "held-out": "tiny-held-out"}


def make_vectors(
    model: Any, tokenizer: Any, world: World, folder: Path
) -> tuple[Validation, list[Text]]:
    """Write the penalised and the held-out set, fitted on the world's bank.

    Returns:
        The validation of the penalised set, and the bank.
    """
    bank = make_bank(world, seed=1)
    sets = {split: _fit(model, tokenizer, bank, split) for split in NAMES}
    sets["held-out"].save(folder / NAMES["held-out"])
    found = validate(model, tokenizer, sets["fit"], bank, blocks=READ_BLOCKS)
    found.save(folder / NAMES["fit"])
    return found, bank


def _fit(model: Any, tokenizer: Any, bank: Sequence[Text], split: str) -> EmotionVectors:
    with tqdm(desc=f"vectors, {split}", unit="tok", unit_scale=True, mininterval=2) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        choices = replace(CHOICES, split=split)
        found = extract(model, tokenizer, bank, None, choices, advance)
    return replace(found, card={**found.card, "suggested_blocks": list(READ_BLOCKS)})


def save_bank(bank: Sequence[Text], path: Path) -> None:
    """Write texts as JSON lines, as `emoreg extract --bank` reads them."""
    rows = ({k: v for k, v in asdict(t).items() if v and k != "where"} for t in bank)
    write_atomic(Path(path), "".join(json.dumps(row) + "\n" for row in rows))
