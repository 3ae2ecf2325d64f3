"""The rules that a text of a bank keeps, one by one and among others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from emoreg.bank import Text
from emoreg.catalogue import CATALOGUE
from emoreg.controls import said

WORDS = (60, 120)  # of a story or a deflection
NGRAM = 5  # words; what texts share beyond this is no accident
SHARED = 0.2  # of the shorter text's n-grams: a near-duplicate
FIRST = re.compile(r"\b(?:I|[Mm]e|[Mm]y|[Mm]ine|[Ww]e|[Oo]ur|us)\b")
QUOTED = re.compile(r"[\u201c\"][^\u201d\"]*[\u201d\"]")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[\w'\u2019]+", text.lower())


def banned_pattern(emotions: Iterable[str]) -> re.Pattern[str]:
    """What finds the words that name any of these emotions; unknown ones ban their own name."""
    entries = (CATALOGUE.entries.get(e) for e in emotions)
    listed = {w for e in entries if e is not None for w in e.banned}
    listed |= {e for e in emotions if not CATALOGUE.rated(e)}
    parts = (re.escape(w.rstrip("*")) + (r"\w*" if w.endswith("*") else "") for w in sorted(listed))
    return re.compile(rf"\b(?:{'|'.join(parts) or '(?!)'})\b", re.IGNORECASE)


def person(text: str) -> str:
    """``first`` or ``third``, by the narrator's words outside quotations."""
    return "first" if len(FIRST.findall(QUOTED.sub("", text))) >= 2 else "third"


def opening(text: str) -> str:
    """The first two words."""
    return " ".join(words(text)[:2])


def problems(text: Text, banned: re.Pattern[str], length: tuple[int, int] = WORDS) -> list[str]:
    """What one text has against it: words that name an emotion, and for prose its length."""
    found, told = sorted({m.lower() for m in banned.findall(said(text))}), []
    if found:
        told.append(f"names an emotion: {', '.join(found)}")
    number = len(words(text.text))
    if text.kind in ("story", "deflection") and not length[0] <= number <= length[1]:
        told.append(f"{number} words; wanted {length[0]} to {length[1]}")
    return told


class Shingles:
    """Texts by their n-grams, to find those that share too many."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        self._groups: list[str] = []

    def nearest(self, text: str, group: str = "") -> tuple[int, float]:
        """The text added before that shares most n-grams, and the share; (-1, 0.0) if none does.

        Texts of one group, if it is named, may be alike.
        """
        grams = self._grams(text)
        counts = Counter(
            i
            for gram in grams
            for i in self._owners.get(gram, ())
            if not group or self._groups[i] != group
        )
        if not counts:
            return -1, 0.0
        shares = {i: n / max(1, min(len(grams), self._sizes[i])) for i, n in counts.items()}
        best = max(shares, key=lambda i: shares[i])
        return best, shares[best]

    def add(self, text: str, group: str = "") -> None:
        """Add a text."""
        grams = self._grams(text)
        self._groups.append(group)
        for gram in grams:
            self._owners[gram].append(len(self._sizes))
        self._sizes.append(len(grams))

    @staticmethod
    def _grams(text: str) -> set[tuple[str, ...]]:
        found = words(text)
        return set(zip(*(found[i:] for i in range(NGRAM)), strict=False))


def duplicates(texts: Sequence[Text]) -> Iterator[tuple[Text, Text, float]]:
    """Pairs of which the shorter shares too many n-grams with the other.

    The states of a transcript's content are made of the same words, and urgency comes in pairs.
    """
    seen = Shingles()
    for text in texts:
        group = f"{text.kind} {text.topic}" if text.kind in ("transcript", "urgency") else ""
        spoken = said(text) or text.messages[0]["content"]
        at, share = seen.nearest(spoken, group)
        if share > SHARED:
            yield texts[at], text, share
        seen.add(spoken, group)
