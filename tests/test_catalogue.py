"""The catalogue is the paper's words, and its ratings hang together."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from emoreg.catalogue import CATALOGUE, FILE
from emoreg.errors import UnknownEmotionError

SIZES = {
    "Exuberant Joy": 20, "Peaceful Contentment": 9, "Compassionate Gratitude": 15,
    "Competitive Pride": 9, "Playful Amusement": 2, "Depleted Disengagement": 15,
    "Vigilant Suspicion": 3, "Hostile Anger": 25, "Fear and Overwhelm": 41, "Despair and Shame": 32,
}  # fmt: skip


def test_it_has_the_171_words_in_ten_clusters() -> None:
    assert len(CATALOGUE.words) == len(set(CATALOGUE.words)) == 171
    assert {c: len(words) for c, words in CATALOGUE.clusters.items()} == SIZES
    beyond = [e for e in CATALOGUE.entries if e not in CATALOGUE.words]
    assert beyond == ["determined", "numb", "urgent-but-steady"]


def test_every_word_was_judged_three_times_from_1_to_7() -> None:
    for entry in CATALOGUE.entries.values():
        for judged in (entry.valences, entry.arousals):
            assert len(judged) == 3
            assert set(judged) <= set(range(1, 8))
    said = json.loads(Path(FILE).read_text())["method"]
    assert "three times" in said


@pytest.mark.parametrize("axis", ["valences", "arousals"])
def test_the_judgements_agree_without_being_copies(axis: str) -> None:
    rows = np.array([getattr(e, axis) for e in CATALOGUE.entries.values()])
    pairs = [np.corrcoef(rows[:, a], rows[:, b])[0, 1] for a, b in combinations(range(3), 2)]
    assert min(pairs) > 0.85
    assert (np.ptp(rows, axis=1) > 0).mean() > 0.1
    spread = [e.spread for e in CATALOGUE.entries.values()]
    assert max(s[axis == "arousals"] for s in spread) == np.ptp(rows, axis=1).max()


def test_the_ratings_are_those_a_reader_expects() -> None:
    assert CATALOGUE.valence("desperate") < 2.5 < 5.5 < CATALOGUE.valence("serene")
    assert CATALOGUE.arousal("sleepy") < 2.5 < 5.5 < CATALOGUE.arousal("panicked")
    assert CATALOGUE.valence("unheard-of", default=4.0) == 4.0
    with pytest.raises(UnknownEmotionError, match="'unheard-of' is not among"):
        CATALOGUE.valence("unheard-of")


def test_every_word_bans_itself() -> None:
    from emoreg.rules import banned_pattern

    for word in CATALOGUE.words:
        assert banned_pattern([word]).search(f"He was {word} then."), word
