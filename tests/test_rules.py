"""A bank keeps its rules, and a text that breaks one is found."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from emoreg.bank import OWN_BANK, Text, choose, load_bank, load_dosage
from emoreg.bankcheck import bag_of_words, card, check
from emoreg.catalogue import CATALOGUE
from emoreg.controls import bag_of_words_accuracy, bag_of_words_auroc
from emoreg.prompts import load_prompts
from emoreg.rules import Shingles, banned_pattern, duplicates, person, problems

TEXTS = load_bank()
PLENTY = "so many words that it is long enough " * 8  # 64 words


# --- emoreg's own bank ------------------------------------------------------------------------


def test_the_bank_breaks_none_of_its_rules() -> None:
    assert check(TEXTS) == []


def test_the_bank_is_complete() -> None:
    count = Counter((t.kind, t.split) for t in TEXTS)
    assert count["story", "fit"] == 24 * 32
    assert count["story", "held-out"] == 24 * 16
    assert count["transcript", "fit"] == 4 * 32
    assert count["transcript", "held-out"] == 4 * 16
    kinds = Counter(t.kind for t in TEXTS)
    assert kinds["deflection"] == 12 * 12
    assert kinds["neutral"] == 240
    assert Counter(t.label for t in TEXTS if t.kind == "urgency") == {"crisis": 32, "near-miss": 32}
    assert Counter(p.kind for p in load_prompts(OWN_BANK / "drift.jsonl")) == {
        "neutral": 64,
        "challenging": 64,
    }
    sweeps = load_dosage()
    assert Counter(d.rises for d in sweeps) == {"fear": 4, "relief": 4}
    assert {len(d.values) for d in sweeps} == {8}


def test_the_stories_cover_every_cluster() -> None:
    emotions = {t.label for t in TEXTS if t.kind == "story"}
    assert len(emotions) == 24
    assert {"desperate", "calm"} <= emotions
    assert {CATALOGUE.entry(e).cluster for e in emotions} >= set(CATALOGUE.clusters)
    assert len(CATALOGUE.clusters) == 10


def test_the_states_of_a_transcript_differ_in_nothing_but_the_assistant() -> None:
    by_topic: dict[str, list[Text]] = {}
    for text in choose(TEXTS, "transcript", "fit") + choose(TEXTS, "transcript", "held-out"):
        by_topic.setdefault(text.topic, []).append(text)
    assert len(by_topic) == 48
    for found in by_topic.values():
        assert {t.label for t in found} == {"desperate", "calm", "frustrated", "neutral"}
        asked = {tuple(m["content"] for m in t.messages if m["role"] == "user") for t in found}
        assert len(asked) == 1
        assert len({tuple(m["role"] for m in t.messages) for t in found}) == 1


def test_every_crisis_has_its_near_miss() -> None:
    pairs = Counter(t.topic for t in TEXTS if t.kind == "urgency")
    assert len(pairs) == 32
    assert set(pairs.values()) == {2}


# --- the rules themselves ---------------------------------------------------------------------


def broken(change: str) -> list[Text]:
    """The bank's stories on a few topics, with one rule broken."""
    topics = sorted({t.topic for t in TEXTS if t.kind == "story"})[:10]
    some = [t for t in TEXTS if t.kind == "story" and t.topic in topics]
    calm = next(i for i, t in enumerate(some) if t.label == "calm")
    text = some[calm].text
    if change == "named":
        some[calm] = replace(some[calm], text=text + " She hoped.")
    elif change == "short":
        some[calm] = replace(some[calm], text="Too short.")
    elif change == "copied":
        other = next(i for i, t in enumerate(some) if t.label == "sad")
        some[other] = replace(some[other], text=text)
    elif change == "missing":
        del some[calm]
    elif change == "both splits":
        other = "held-out" if some[calm].split == "fit" else "fit"
        some[calm] = replace(some[calm], split=other)
    elif change == "lengths":
        some = [replace(t, text=t.text[:360]) if t.label == "calm" else t for t in some]
    elif change == "openings":
        begin = "Nobody ever "
        some = [replace(t, text=begin + t.text) if t.label == "calm" else t for t in some]
    return some


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("none", None),
        ("named", "names an emotion: hoped"),
        ("short", "2 words; wanted 60 to 120"),
        ("copied", "of their five-word runs"),
        ("missing", "story: not one text for calm on"),
        ("both splits", "a topic stands in both splits"),
        ("lengths", "story: calm has"),
        ("openings", "stories for calm begin with 'nobody ever'"),
    ],
)
def test_a_broken_rule_is_told(change: str, words: str | None) -> None:
    told = check(broken(change))
    if words is None:
        assert told == []
    else:
        assert any(words in line for line in told), told


def test_banned_words_are_found_in_any_form_and_only_whole() -> None:
    pattern = banned_pattern(["calm", "desperate", "unheard-of"])
    assert pattern.findall("Calmly, in DESPERATION, an unheard-of thing") == [
        "Calmly",
        "DESPERATION",
        "unheard-of",
    ]
    assert pattern.findall("Malcolm becalmed the camel") == []
    assert banned_pattern([]).findall("anything") == []
    assert problems(Text("story", "calm", text=PLENTY), pattern) == []


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("I put my hat down.", "first"),
        ("She put her hat down. “I like my hat,” she said.", "third"),
        ("We lost our way.", "first"),
        ('"We lost our way," he said. Iris nodded.', "third"),
    ],
)
def test_the_person_is_the_narrators(text: str, who: str) -> None:
    assert person(text) == who


def test_near_duplicates_are_found_and_like_topics_are_not() -> None:
    one = "the last bus left the depot at ten and nobody was on it but the driver and his dog"
    near = one.replace("ten", "nine") + " asleep in front"
    other = "at ten the driver and his dog saw that nobody was left at the depot but the last bus"
    texts = [Text("neutral", text=t) for t in (one, other, near)]
    assert [(a.text, b.text) for a, b, _ in duplicates(texts)] == [(one, near)]
    assert Shingles().nearest(one) == (-1, 0.0)


def test_the_control_learns_words_and_only_words() -> None:
    def story(label: str, word: str, i: int, split: str) -> Text:
        return Text(
            "story", label, split, f"{split} {i}", f"some {word} or other, {'abcdef'[i % 6]}"
        )

    def bank(calm: str, sad: str) -> tuple[list[Text], list[Text]]:
        both = {"calm": calm, "sad": sad}
        return tuple(  # type: ignore[return-value]
            [story(x, word, i, split) for x, word in both.items() for i in range(12)]
            for split in ("fit", "held-out")
        )

    told, untold = bank("lake", "grave"), bank("lake", "lake")
    assert bag_of_words_accuracy(*told) == 1.0
    assert bag_of_words_auroc(*told, "sad") == 1.0
    assert bag_of_words_accuracy(*untold) == 0.5
    assert bag_of_words([t for part in told for t in part], "story")["chance"] == 0.5


def test_the_banks_card_says_what_the_bank_is() -> None:
    said, found = json.loads((OWN_BANK / "card.json").read_text()), card(OWN_BANK)
    words, again = said.pop("bag_of_words"), found.pop("bag_of_words")
    assert said == json.loads(json.dumps(found))
    for kind, row in again.items():  # solvers differ in the last digits between machines
        assert words[kind]["held_out_accuracy"] == pytest.approx(row["held_out_accuracy"], abs=0.02)
        assert words[kind]["auroc"] == pytest.approx(row["auroc"], abs=0.02)


def test_words_alone_tell_little() -> None:
    words = json.loads((OWN_BANK / "card.json").read_text())["bag_of_words"]
    assert words["story"]["held_out_accuracy"] < 0.25
    assert words["transcript"]["held_out_accuracy"] < 0.45
