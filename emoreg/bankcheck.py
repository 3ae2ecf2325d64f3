"""A bank against its rules, what a bag of words can tell from it, and its card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from emoreg.bank import FILES, SPLITS, Text, choose, fingerprint, load_bank, load_dosage
from emoreg.controls import bag_of_words_accuracy, bag_of_words_auroc, said
from emoreg.files import write_atomic
from emoreg.prompts import load_prompts
from emoreg.rules import banned_pattern, duplicates, opening, person, problems, words

LENGTHS = 0.08  # largest difference of an emotion's mean length from the mean of all
OPENINGS = 0.07  # largest share of an emotion's stories that begin with the same two words


def check(texts: Sequence[Text]) -> list[str]:
    """Every rule that a bank breaks, in words; empty for a bank that keeps them all."""
    return [*_one_by_one(texts), *_among(texts), *_balance(texts)]


def _one_by_one(texts: Sequence[Text]) -> Iterator[str]:
    banned = banned_pattern({t.label for t in texts if t.kind in ("story", "deflection")})
    for text in texts:
        if text.kind != "urgency":  # a person in need may name it
            for problem in problems(text, banned):
                yield f"{text.kind} {text.id or text.name}: {problem}"


def _among(texts: Sequence[Text]) -> Iterator[str]:
    for one, other, share in duplicates(texts):
        names = f"{one.id or one.name} and {other.id or other.name}"
        yield f"{names} share {share:.0%} of their five-word runs"


def _balance(texts: Sequence[Text]) -> Iterator[str]:
    """Topic, length, opening and person must not tell the label."""
    for kind in ("story", "transcript", "deflection"):
        some = [t for t in texts if t.kind == kind]
        labels = sorted({t.label for t in some})
        cells = Counter((t.topic, t.label) for t in some)
        topics = {t.topic for t in some}
        lacking = [f"{label} on {topic!r}" for topic in sorted(topics) for label in labels
                   if cells[topic, label] != 1]  # fmt: skip
        if lacking:
            yield f"{kind}: not one text for {'; '.join(lacking[:5])} ({len(lacking)} in all)"
        split = {(t.topic, t.split) for t in some}
        if len(split) != len(topics):
            yield f"{kind}: a topic stands in both splits"
        lengths = {x: mean(len(words(said(t))) for t in some if t.label == x) for x in labels}
        for label, length in lengths.items():
            if abs(length / mean(lengths.values()) - 1) > LENGTHS:
                yield f"{kind}: {label} has {length:.0f} words, all {mean(lengths.values()):.0f}"
        if kind == "story":
            yield from _style(some, labels)


def _style(stories: Sequence[Text], labels: Sequence[str]) -> Iterator[str]:
    for label in labels:
        own = [t for t in stories if t.label == label]
        begins, most = Counter(opening(t.text) for t in own).most_common(1)[0]
        if most > max(2, OPENINGS * len(own)):
            yield f"story: {most} of {len(own)} stories for {label} begin with {begins!r}"
        first = sum(person(t.text) == "first" for t in own) / len(own)
        if len(own) >= 10 and not 0.4 <= first <= 0.6:
            yield f"story: {first:.0%} of the stories for {label} are in the first person"


def card(folder: Path) -> dict[str, Any]:
    """Counts per kind, label and split, lengths, and how far words alone get."""
    texts, dosage = load_bank(folder), load_dosage(folder)
    found: dict[str, Any] = {"hash": fingerprint(texts), "texts": len(texts)}
    found["licence"] = "CC-BY-4.0"
    found["counts"] = {
        kind: _counts([t for t in texts if t.kind == kind]) for kind in FILES.values()
    }
    found["counts"]["dosage"] = dict(Counter(d.rises for d in dosage))
    if (folder / "drift.jsonl").exists():
        prompts = load_prompts(folder / "drift.jsonl")
        found["counts"]["drift"] = dict(Counter(p.kind for p in prompts))
    found["bag_of_words"] = {
        kind: bag_of_words(texts, kind)
        for kind in ("story", "transcript", "deflection")
        if all(len({t.label for t in choose(texts, kind, s)}) > 1 for s in SPLITS)
    }
    found["problems"] = check(texts)
    return found


def bag_of_words(texts: Sequence[Text], kind: str) -> dict[str, Any]:
    """What the best of three word classifiers gets on held-out topics, and chance."""
    fit, test = choose(texts, kind, "fit"), choose(texts, kind, "held-out")
    labels = sorted({t.label for t in fit})
    return {
        "held_out_accuracy": round(bag_of_words_accuracy(fit, test), 4),
        "chance": round(1 / len(labels), 4),
        "auroc": {x: round(bag_of_words_auroc(fit, test, x), 4) for x in labels},
    }


def _counts(texts: Sequence[Text]) -> dict[str, Any]:
    lengths = [len(words(said(t))) for t in texts if said(t)]
    return {
        "texts": len(texts),
        "split": dict(Counter(t.split for t in texts)),
        "label": {
            label: dict(Counter(t.split for t in texts if t.label == label))
            for label in sorted({t.label for t in texts if t.label})
        },
        "topics": len({t.topic for t in texts}),
        "words_mean": round(mean(lengths), 1) if lengths else 0,
        "words_range": [min(lengths), max(lengths)] if lengths else [],
    }


def write_card(folder: Path) -> dict[str, Any]:
    """Measure the bank and write ``card.json`` into its folder; returns it."""
    found = card(folder)
    write_atomic(folder / "card.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found
