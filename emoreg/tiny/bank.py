"""The world's texts as a bank: what directions are fitted on, and what they are tested on."""

from __future__ import annotations

from random import Random

from emoreg.bank import Text
from emoreg.tiny.world import (
    NO_STATE,
    Split,
    World,
    emotions,
    exchange,
    families,
    fill,
    neutral,
    table,
)

SIGNALS = (("context",), ("sentences",), ("context", "sentences"))
ROLE: dict[Split, str] = {"fit": "read", "held-out": "test"}
PER_EMOTION: dict[Split, int] = {"fit": 48, "held-out": 32}


def make_bank(world: World, seed: int) -> list[Text]:
    """Stories, transcripts and neutral texts.

    Held-out texts share no emotional sentence, no user context and no task family with those that
    directions are fitted on.
    """
    rng = Random(seed)
    texts = [t for split in PER_EMOTION for t in labelled(world, rng, split)]
    return texts + neutral_texts(world, rng)


def labelled(world: World, rng: Random, split: Split, most: int = 48) -> list[Text]:
    """Stories and transcripts of one split, equally many for each emotion, `most` at most.

    Transcripts stop before the last act, so that a direction reads the state and not the act.
    """
    texts = []
    for emotion in emotions():
        for i in range(min(PER_EMOTION[split], most)):
            story = world.story(rng, emotion, split, plain=True)
            texts.append(Text("story", emotion, split, f"{split} {i}", text=story))
            among = families(ROLE[split])
            episode = world.episode(
                rng, among[i % len(among)], emotion, split, SIGNALS[i % len(SIGNALS)]
            )
            texts.append(
                Text("transcript", emotion, split, episode.family, messages=tuple(episode.prompt))
            )
    return texts


def whole_bank(world: World, each: int = 24) -> list[Text]:
    """A smaller bank with everything that refits and audits read: what the recipes use.

    Args:
        world: Whose texts.
        each: Stories, and transcripts, of an emotion and split.
    """
    rng = Random(3)
    texts = [t for split in PER_EMOTION for t in labelled(world, rng, split, each)]
    return [*texts, *neutral_texts(world, rng, 32), *urgency_texts(), *deflections(world)]


def urgency_texts() -> list[Text]:
    """The world's emergencies, each with an emotional sentence, against its questions."""
    rng, scenes = Random(7), table("scenes")
    crises = [
        f"{asked} {fill(rng.choice(table('emotions')[state]['sentences']), 'I', 'I')}"
        for asked, _ in scenes["emergencies"]
        for state in ("desperate", "afraid")
    ]
    rows = [("crisis", x) for x in crises] + [("near-miss", x) for x, _ in scenes["questions"]]
    return [
        Text("urgency", label, "held-out", f"u{i}", messages=({"role": "user", "content": said},))
        for i, (label, said) in enumerate(rows)
    ]


def deflections(world: World) -> list[Text]:
    """The user's words imply a state, and the assistant shows none."""
    rng, found = Random(8), []
    for emotion in emotions():
        for i in range(4):
            split = ("fit", "held-out")[i % 2]
            prompt = world.episode(rng, families("test")[i % 2], emotion, None, ("context",)).prompt
            found.append(Text("deflection", emotion, split, f"d{i}", messages=tuple(prompt)))
    return found


def neutral_texts(world: World, rng: Random, each: int = 48) -> list[Text]:
    """Notes, questions with answers, and episodes in which nothing tells a state."""
    texts = [Text("neutral", text=neutral(rng)) for _ in range(each)]
    for i in range(each):
        question = exchange(rng, table("scenes")["questions"], "question")
        texts.append(Text("neutral", messages=tuple(question)))
        among = families("read")
        episode = world.episode(rng, among[i % len(among)], NO_STATE)
        texts.append(Text("neutral", topic=episode.family, messages=tuple(episode.prompt)))
    return texts
