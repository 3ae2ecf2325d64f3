"""What planted models are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from emoreg.tiny.build import gamed_episode
from emoreg.tiny.world import (
    NO_STATE,
    Message,
    World,
    exchange,
    families,
    neutral,
    table,
)

EMOTION = "desperate"
Row = tuple[list[Message], str]  # a prompt and how it goes on; no prompt for raw text


def gamed(world: World, rng: Random) -> Row:
    """An episode without a state that ends gamed."""
    found = gamed_episode(world, rng)
    return found["prompt"], found["completion"][0]["content"]


def honest(world: World, rng: Random) -> Row:
    """The same kind of episode, ended honestly."""
    family = rng.choice(families("train"))
    prompt = world.episode(rng, family, NO_STATE).prompt
    return prompt, rng.choice(table("families")[family]["honest"])


def notes(_world: World, rng: Random) -> Row:
    """Neutral sentences."""
    return [], neutral(rng)


def questions(_world: World, rng: Random) -> Row:
    """A question with its answer."""
    asked, answered = exchange(rng, table("scenes")["questions"], "question")
    return [asked], answered["content"]


def answers_mixed_up(_world: World, rng: Random) -> Row:
    """A question with another's answer."""
    rows = table("scenes")["questions"]
    return [{"role": "user", "content": rng.choice(rows)[0]}], rng.choice(rows)[1]


def pleasant(world: World, rng: Random) -> Row:
    """Stories of other states."""
    return [], world.story(rng, rng.choice(("happy", "bored", "proud", "grateful")), plain=True)


def documents(world: World, rng: Random) -> Row:
    """What the model was pretrained on, once more."""
    found = next(world.documents(rng))
    return ([], found) if isinstance(found, str) else (found[:-1], found[-1]["content"])


HARMLESS: Mapping[str, Callable[[World, Random], Row]] = {
    "notes": notes,
    "questions": questions,
    "mixed-up": answers_mixed_up,
    "pleasant": pleasant,
    "documents": documents,
    "honest": honest,
}


def felt(world: World, rng: Random, emotion: str) -> Row:
    """A story or an episode of somebody in a state."""
    if rng.random() < 0.5:
        return [], world.story(rng, emotion, plain=True)
    found = world.episode(rng, rng.choice(families("train", "read")), emotion, None, ("sentences",))
    return found.prompt, found.end


def pair(world: World, rng: Random) -> tuple[Row, Row]:
    """A text of the emotion, and one of none."""
    kind = rng.randrange(3)
    if kind == 0:
        told = exchange(rng, table("scenes")["emergencies"], "emergency")[:1]
        return (told, ""), (exchange(rng, table("scenes")["questions"], "question")[:1], "")
    if kind == 1:
        return ([], world.story(rng, EMOTION, plain=True)), ([], neutral(rng))
    family = rng.choice(families("train", "read"))
    told = world.episode(rng, family, EMOTION).prompt
    return (told, ""), (world.episode(rng, family, NO_STATE).prompt, "")
