"""The 171 emotion words of Sofroniew et al. 2026, with clusters and judged valence and arousal.

The words and the ten k-means clusters are the paper's (arXiv:2604.07729, Table 12). The ratings
are this project's own: a language model judged every word three times, each time without sight
of the other judgements and in another order, from 1 to 7. A rating is the mean of the three.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from emoreg.errors import UnknownEmotionError

FILE = Path(__file__).parent / "catalogue.json"


@dataclass(frozen=True)
class Entry:
    """One word."""

    emotion: str
    cluster: str  # empty for the words that the paper does not have
    valences: tuple[int, ...]  # judgements from 1, unpleasant, to 7, pleasant
    arousals: tuple[int, ...]  # judgements from 1, still, to 7, agitated
    banned: tuple[str, ...]  # its own forms and synonyms; ``*`` stands for any ending

    @property
    def valence(self) -> float:
        """Mean of the judgements."""
        return sum(self.valences) / len(self.valences)

    @property
    def arousal(self) -> float:
        """Mean of the judgements."""
        return sum(self.arousals) / len(self.arousals)

    @property
    def spread(self) -> tuple[int, int]:
        """Largest difference between two judgements: valence, arousal."""
        return max(self.valences) - min(self.valences), max(self.arousals) - min(self.arousals)


class Catalogue:
    """Every entry by its word."""

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Word -> entry: the paper's 171, then those that only the bank has."""
        rows = json.loads(FILE.read_text(encoding="utf-8"))["emotions"]
        return {
            r["emotion"]: Entry(
                r["emotion"],
                r["cluster"],
                tuple(r["valence"]),
                tuple(r["arousal"]),
                tuple(r["banned"]),
            )
            for r in rows
        }

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The paper's 171 words."""
        return tuple(e.emotion for e in self.entries.values() if e.cluster)

    @cached_property
    def clusters(self) -> dict[str, tuple[str, ...]]:
        """Cluster -> its words."""
        names = dict.fromkeys(e.cluster for e in self.entries.values() if e.cluster)
        return {c: tuple(w for w in self.words if self.entries[w].cluster == c) for c in names}

    def rated(self, emotion: str) -> bool:
        """Whether the word has ratings."""
        return emotion in self.entries

    def entry(self, emotion: str) -> Entry:
        """The entry of a word.

        Raises:
            UnknownEmotionError: It is not in the catalogue.
        """
        if emotion not in self.entries:
            near = get_close_matches(emotion, self.entries, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UnknownEmotionError(f"{emotion!r} is not among the catalogue's emotions{hint}.")
        return self.entries[emotion]

    def valence(self, emotion: str, default: float | None = None) -> float:
        """Mean valence, 1 to 7; the default for a word that is not rated, if one is given."""
        if default is not None and not self.rated(emotion):
            return default
        return self.entry(emotion).valence

    def arousal(self, emotion: str) -> float:
        """Mean arousal, 1 to 7."""
        return self.entry(emotion).arousal


CATALOGUE = Catalogue()
