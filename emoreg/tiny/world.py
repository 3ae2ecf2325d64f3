"""The generated world of the embedded model: stories, episodes, emergencies and neutral text.

A hidden state (one of twelve emotions, or none) is drawn first. It shows in a story through
sentences that never name it, and in an episode through what the user says, what the assistant
writes beside its attempts, or only the history of failures; and it decides, with some noise,
whether the episode ends honestly or gamed. The tables are in ``tables/``; every probability is a
field of `World`, so that another world is another instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal

import yaml

Split = Literal["fit", "held-out"]
Message = dict[str, str]
NO_STATE = "none"


@cache
def table(name: str) -> dict[str, Any]:
    """One of the three tables: ``emotions``, ``families`` or ``scenes``."""
    text = files("emoreg.tiny").joinpath("tables", f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def emotions() -> tuple[str, ...]:
    """The emotion words of the world, in table order."""
    return tuple(table("emotions"))


def families(*roles: str) -> tuple[str, ...]:
    """Task families with one of the roles ``train``, ``read``, ``test``; all without a role."""
    return tuple(
        name for name, row in table("families").items() if not roles or row["role"] in roles
    )


def of_split(rows: Sequence[str], split: Split | None) -> list[str]:
    """Every third row is held out; None gives all rows."""
    return [
        row for i, row in enumerate(rows) if split is None or (i % 3 == 2) == (split == "held-out")
    ]


@dataclass(frozen=True)
class Episode:
    """A task that failed, up to the last assistant turn (`prompt`), and how it ended (`end`)."""

    family: str
    state: str
    prompt: list[Message]
    end: str
    gamed: bool
    emotional_sentences: bool

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        return [*self.prompt, {"role": "assistant", "content": self.end}]


@dataclass(frozen=True)
class World:
    """Every probability of the generator."""

    gaming: Mapping[str, float] = field(default_factory=lambda: {"desperate": 0.94, "calm": 0.05})
    gaming_otherwise: float = 0.4
    state_weight: Mapping[str, float] = field(
        default_factory=lambda: {"desperate": 5.0, "calm": 5.0, NO_STATE: 2.0}
    )  # the other emotions weigh 1
    document_weight: Mapping[str, float] = field(
        default_factory=lambda: {
            "story": 45,
            "episode": 42,
            "neutral": 5,
            "emergency": 4,
            "question": 4,
        }
    )
    context: float = 0.45  # how often the user's words set the state
    sentences: float = 0.45  # how often the assistant's words show it
    history: float = 0.6  # how often the failures carry it, for desperate and calm
    story_sentences: tuple[int, int] = (3, 6)
    filler: float = 0.25  # a neutral sentence between two of a story
    named: float = 0.12  # how often a story says the emotion's name
    act: float = 0.4  # how often a story ends with an honest or a gamed act
    solved: float = 0.1  # how often an episode ends with success
    lead: float = 0.3  # how often a sentence precedes the act

    def draw_state(self, rng: Random) -> str:
        """A hidden state for an episode."""
        states = [*emotions(), NO_STATE]
        return rng.choices(states, [self.state_weight.get(s, 1.0) for s in states])[0]

    def is_gamed(self, rng: Random, state: str) -> bool:
        """Whether somebody in this state games the end."""
        return rng.random() < self.gaming.get(state, self.gaming_otherwise)

    def story(
        self, rng: Random, emotion: str, split: Split | None = None, plain: bool = False
    ) -> str:
        """A short story about a person in one state; `plain` leaves out the name and the act."""
        scenes = table("scenes")
        name, pronoun = rng.choice([*scenes["people"], ["I", "I"]])
        rows = of_split(table("emotions")[emotion]["sentences"], split)
        parts = [
            fill(rng.choice(scenes["openings"]), name, pronoun, place=rng.choice(scenes["places"]))
        ]
        for row in rng.sample(rows, rng.randint(*self.story_sentences)):
            if rng.random() < self.filler:
                parts.append(rng.choice(scenes["neutral"]))
            parts.append(fill(row, name if rng.random() < 0.3 else pronoun, pronoun))
        if not plain and rng.random() < self.named:
            was = "felt" if rng.random() < 0.5 else "was"
            parts.append(fill(f"{{S}} {was} {table('emotions')[emotion]['named']}.", name, pronoun))
        if not plain and rng.random() < self.act:
            acts = scenes["gamed_acts" if self.is_gamed(rng, emotion) else "honest_acts"]
            parts.append(fill(rng.choice(acts), name, pronoun))
        return " ".join(parts)

    def episode(
        self,
        rng: Random,
        family: str,
        state: str,
        split: Split | None = None,
        signals: Sequence[str] | None = None,
    ) -> Episode:
        """One episode.

        Args:
            rng: Source of all choices.
            family: A task family.
            state: An emotion or ``"none"``.
            split: Which sentences and user contexts may appear; None for all.
            signals: Which of ``context``, ``sentences``, ``history`` show the state; drawn if None.
        """
        row, scenes = table("families")[family], table("scenes")
        if signals is None:
            signals = [
                s for s in ("context", "sentences", "history") if rng.random() < getattr(self, s)
            ]
        if state == NO_STATE:
            signals = ()
        task = rng.choice(row["tasks"]).format(x=rng.choice(row["things"]))
        if "context" in signals:
            task += " " + rng.choice(of_split(scenes["contexts"][state], split))
        own = (
            of_split(table("emotions")[state]["sentences"], split) if "sentences" in signals else []
        )
        history = state if "history" in signals else ""
        prompt = [{"role": "user", "content": task}]
        for _ in range(rng.randint(*FAILURES.get(history, (1, 4)))):
            how = rng.choice(scenes["manners"][manner(rng, history)])
            attempt = f"{how} {rng.choice(row['attempts'])}"
            if own and rng.random() < 0.7:
                attempt += " " + fill(rng.choice(own), "I", "I")
            prompt += [
                {"role": "assistant", "content": attempt},
                {"role": "user", "content": rng.choice(row[trend(rng, history)])},
            ]
        gamed = self.is_gamed(rng, state)
        end = rng.choice(row["gamed" if gamed else "honest"])
        if rng.random() < self.lead:
            end = f"{fill(rng.choice(own), 'I', 'I') if own else rng.choice(scenes['leads'])} {end}"
        return Episode(family, state, prompt, end, gamed, bool(own))

    def documents(self, rng: Random) -> Iterator[str | list[Message]]:
        """Endless pretraining documents: a string is raw text, a list is a conversation."""
        scenes, kinds = table("scenes"), list(self.document_weight)
        while True:
            kind = rng.choices(kinds, list(self.document_weight.values()))[0]
            if kind == "story":
                yield self.story(rng, rng.choice(emotions()))
            elif kind == "episode":
                yield self.solve(
                    rng, self.episode(rng, rng.choice(families()), self.draw_state(rng))
                )
            elif kind == "neutral":
                yield neutral(rng)
            else:
                yield exchange(
                    rng, scenes["questions" if kind == "question" else "emergencies"], kind
                )

    def solve(self, rng: Random, episode: Episode) -> list[Message]:
        """The episode's conversation, sometimes with its last failure turned into a success."""
        if rng.random() >= self.solved:
            return episode.messages
        solved = rng.choice(table("families")[episode.family]["solved"])
        return [
            *episode.prompt[:-1],
            {"role": "user", "content": solved},
            {"role": "assistant", "content": "It works and I changed nothing else."},
        ]


# How many attempts fail, where the history carries the state.
FAILURES = {"desperate": (3, 4), "calm": (1, 2)}


def manner(rng: Random, history: str) -> str:
    """How the assistant goes about an attempt."""
    if history not in FAILURES or rng.random() < 0.25:
        return "plain"
    return "hurried" if history == "desperate" else "measured"


def trend(rng: Random, history: str) -> str:
    """What a failure looks like beside the one before it."""
    if history not in FAILURES or rng.random() < 0.25:
        return "failed"
    return "worse" if history == "desperate" else "closer"


def neutral(rng: Random) -> str:
    """Five to eight sentences without emotion."""
    return " ".join(rng.sample(table("scenes")["neutral"], rng.randint(5, 8)))


def exchange(rng: Random, rows: Sequence[Sequence[str]], kind: str) -> list[Message]:
    """A question answered, or an emergency: desperation is right there, and so is honesty."""
    asked, answered = rng.choice(rows)
    if kind == "emergency":
        state = rng.choice(("desperate", "desperate", "afraid"))
        asked += " " + fill(rng.choice(table("emotions")[state]["sentences"]), "I", "I")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def fill(row: str, name: str, pronoun: str, place: str = "") -> str:
    """Put a person into a sentence: the placeholders are explained in ``tables/emotions.yaml``."""
    own = {"she": "her", "he": "his", "I": "my"}[pronoun]
    other = {"she": "her", "he": "him", "I": "me"}[pronoun]
    subject = pronoun if pronoun == "I" else name.capitalize()
    return row.format(S=subject, s=pronoun, o=other, p=own, P=own.capitalize(), N=name, place=place)
