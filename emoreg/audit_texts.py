"""Which labelled texts an audit reads: few, the same ones every time, spread over labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from emoreg.bank import SPLITS, Text, choose
from emoreg.errors import BankError

Row = TypeVar("Row")
CRISIS = "crisis"  # the label of an urgency text in which distress is right; others are near misses


@dataclass(frozen=True)
class Amounts:
    """Most texts of each sort; what an audit costs is proportional to them."""

    stories: int = 8  # with the emotion, in each split; as many that have others
    transcripts: int = 8
    deflections: int = 6  # of both splits
    urgency: int = 20  # crises, and as many near misses
    neutral: int = 16
    prompts: int = 24
    response_tokens: int = 24


@dataclass(frozen=True)
class Corpus:
    """The texts of an audit."""

    labelled: tuple[Text, ...]
    neutral: tuple[Text, ...]

    def sides(self, kind: str, label: str, split: str = "") -> tuple[list[int], list[int]]:
        """Positions of the labelled texts of a kind, and split, with the label and without it."""
        rows = [i for i, t in enumerate(self.labelled) if t.kind == kind and split in ("", t.split)]
        own = [i for i in rows if self.labelled[i].label == label]
        return own, [i for i in rows if self.labelled[i].label != label]

    def kinds(self, emotion: str) -> list[tuple[str, int]]:
        """Kinds of texts that tell the emotion in both splits, each with where it is read.

        Transcripts at the colon, where drift is read too, before stories over their tokens.
        """
        found = ((kind, int(kind == "transcript")) for kind in ("transcript", "story"))
        return [(k, at) for k, at in found if all(all(self.sides(k, emotion, s)) for s in SPLITS)]


def corpus(texts: Sequence[Text], emotion: str, amounts: Amounts | None = None) -> Corpus:
    """Choose from a bank.

    Args:
        texts: The bank.
        emotion: The one that is audited.
        amounts: How many of each sort.

    Raises:
        BankError: No neutral text, or nothing in some split that tells the emotion from others.
    """
    amounts = amounts or Amounts()
    found: list[Text] = []
    for kind, most in (("story", amounts.stories), ("transcript", amounts.transcripts)):
        for split in SPLITS:
            found += _two_sides(choose(texts, kind, split), emotion, most)
    fitted = {(t.kind, t.split) for t in found}
    neutral = [t for t in texts if t.kind == "neutral"]
    if not neutral or not any({(k, s) for s in SPLITS} <= fitted for k in ("story", "transcript")):
        raise BankError(
            f"An audit of {emotion!r} needs neutral texts and, in both splits, stories or "
            f"transcripts with it and with others; this bank has {len(neutral)} neutral texts and "
            f"{sorted(fitted) or 'no such text'}. Use emoreg's own bank, or write some."
        )
    for kind, label, most in (
        ("deflection", emotion, amounts.deflections),
        ("urgency", CRISIS, amounts.urgency),
    ):
        found += _two_sides([t for t in texts if t.kind == kind], label, most)
    return Corpus(tuple(found), tuple(spaced(neutral, amounts.neutral)))


def _two_sides(texts: Sequence[Text], label: str, most: int) -> list[Text]:
    """As many with the label as with others, whose labels take turns; none if a side is short."""
    groups: dict[str, list[Text]] = defaultdict(list)
    for text in texts:
        groups[text.label].append(text)
    own = spaced(groups.pop(label, []), most)
    shares = [spaced(groups[x], -(-most // len(groups))) for x in sorted(groups)]
    turns = [group[i] for i in range(most) for group in shares if i < len(group)]
    return own + spaced(turns, most) if min(len(own), len(turns)) > 1 else []


def spaced(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many, evenly spaced."""
    number = min(most, len(rows))
    return [rows[i * len(rows) // number] for i in range(number)]
