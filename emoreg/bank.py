"""Labelled texts, and their split by topic into fit and held-out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emoreg.errors import BankError

KINDS = ("story", "transcript", "neutral")
SPLITS = ("fit", "held-out")


@dataclass(frozen=True)
class Text:
    """One labelled text: raw (`text`) or a conversation (`messages`)."""

    kind: str  # story, transcript or neutral
    label: str = ""  # the emotion or state; empty for neutral texts
    split: str = "fit"
    topic: str = ""
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.split not in SPLITS:
            problems.append(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        if bool(self.text) == bool(self.messages):
            problems.append("wanted either text or messages")
        if not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in self.messages):
            problems.append("every message needs a role and a content")
        if self.kind != "neutral" and not self.label:
            problems.append(f"a {self.kind} needs a label")
        if problems:
            raise BankError("; ".join(problems))


def load_bank(path: str | Path) -> list[Text]:
    """Read texts from a file of JSON lines.

    Raises:
        BankError: A malformed line; the message names the file, the line and what was wanted.
    """
    names = {f.name for f in fields(Text)}
    texts = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")  # JSON may hold other line ends
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            row["messages"] = tuple(row.get("messages") or ())
            texts.append(Text(**row))
        except (ValueError, TypeError, AttributeError) as e:
            raise BankError(
                f"{path}, line {number}: {e}. Wanted JSON with some of {sorted(names)}."
            ) from e
    return texts


def choose(texts: Iterable[Text], kind: str, split: str) -> list[Text]:
    """Texts of one kind and split; neutral texts serve both splits."""
    return [t for t in texts if t.kind == kind and (kind == "neutral" or t.split == split)]
