"""GSM8K for GRPO: rows as prompts, and a reward for the right number.

In YAML ``emoreg.environments.gsm8k:row`` is the ``dataset_map``, and ``…:correct`` pays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ASK = "Think step by step. Write the number alone on the last line, after ####."
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def row(example: Mapping[str, str]) -> dict[str, Any]:
    """A prompt and its right number, from the columns ``question`` and ``answer``."""
    return {
        "prompt": [{"role": "user", "content": f"{example['question']}\n\n{ASK}"}],
        "number": str(stated(example["answer"])),
    }


def correct(completions: Sequence[Any], number: Sequence[str], **_columns: Any) -> list[float]:
    """1 for the right number after ``####``, else 0."""
    found = [stated(c[-1]["content"]) for c in completions]
    return [float(str(x) == n) for x, n in zip(found, number, strict=True)]


def stated(text: str) -> float | None:
    """The number after the last ``####``, if there is one."""
    _, mark, end = text.rpartition("####")
    found = NUMBER.search(end) if mark else None
    return float(found[0].replace(",", "")) if found else None
