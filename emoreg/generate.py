"""Stories for any of the 171 emotions, written by a model and kept only if the rules are.

The method is that of Sofroniew et al. 2026: a topic, an emotion, never its name. What is kept goes
into a file of JSON lines, one line at a time; the same call again goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from emoreg.bank import Text, load_bank
from emoreg.catalogue import CATALOGUE
from emoreg.errors import ConfigError
from emoreg.rules import SHARED, WORDS, Shingles, banned_pattern, problems
from emoreg.writers import Writer

HELD_OUT = 3  # every third topic
PERSONS = ("first", "third")
PROMPT = """Write one short story of {low} to {high} words, as a single paragraph.

Topic: {topic}
The main character is {emotion}. Tell it in the {person} person.

The reader must be able to tell the emotion from what the character does, notices, says, remembers \
and leaves undone, and from nothing else. Do not name the emotion: never use {banned}, or any \
other word for it or for its opposite. Avoid stock signs such as hearts, fists, tears, breath and \
smiles. Begin in your own way, with something particular. Write the story only, without a title \
and without a comment."""


@dataclass(frozen=True)
class Task:
    """One story to write."""

    emotion: str
    topic: str
    split: str
    number: int  # of the stories for this emotion and topic, from 0

    @property
    def id(self) -> str:
        """The same for the same story, in every call."""
        slug = re.sub(r"\W+", "-", f"{self.topic} {self.emotion}".lower()).strip("-")
        return f"{slug}-{self.number}"

    @property
    def seed(self) -> int:
        """Of the first attempt."""
        return zlib.crc32(self.id.encode())

    def prompt(self) -> str:
        """What the writer is asked."""
        person = PERSONS[(self.seed + self.number) % 2]
        entry = CATALOGUE.entries.get(self.emotion)
        banned = [w.rstrip("*") for w in entry.banned] if entry else [self.emotion]
        return PROMPT.format(
            low=WORDS[0] + 10,
            high=WORDS[1] - 10,
            topic=self.topic,
            emotion=self.emotion,
            person=person,
            banned=", ".join(f"“{w}”" for w in banned),
        )


@dataclass
class Outcome:
    """What became of the tasks."""

    kept: int = 0
    already: int = 0
    given_up: int = 0


def tasks(
    emotions: Sequence[str], topics: Sequence[tuple[str, str]], number: int
) -> Iterator[Task]:
    """Every story to write: all emotions of one topic, then the next topic."""
    for n in range(number):
        for topic, split in topics:
            for emotion in emotions:
                yield Task(emotion, topic, split, n)


def load_topics(path: Path | None, bank: Sequence[Text]) -> list[tuple[str, str]]:
    """Topics with their split.

    Args:
        path: A file with a topic in each line, of which every third is held out; None takes those
            of the bank's stories with their splits.
        bank: Used if there is no file.

    Raises:
        ConfigError: No topics.
    """
    if path is None:
        found = dict.fromkeys((t.topic, t.split) for t in bank if t.kind == "story" and t.topic)
        topics = list(found)
    else:
        lines = filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines()))
        topics = [
            (line, "held-out" if i % HELD_OUT == HELD_OUT - 1 else "fit")
            for i, line in enumerate(dict.fromkeys(lines))
        ]
    if not topics:
        raise ConfigError(f"No topics in {path or 'the bank'}; wanted at least one, better 48.")
    return topics


def generate(
    write: Writer,
    wanted: Sequence[Task],
    out: Path,
    attempts: int = 4,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Write stories into a file of JSON lines, those that it lacks.

    Args:
        write: Asked for each story, with another seed at each attempt.
        wanted: The stories.
        out: Added to, a line at a time, so that nothing is lost when it is interrupted.
        attempts: At one story, before it is given up; the next call tries again.
        seed: Added to every story's own.
        progress: Called with the number done, the number in all, and what was wrong last.

    Raises:
        BankError: The file holds a line that is no text.
        GenerationError: The writer fails.
    """
    _mend(out)
    held = load_bank(out) if out.exists() and out.stat().st_size else []
    have, seen, result = {t.id for t in held}, Shingles(), Outcome()
    for text in held:
        seen.add(text.text)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for done, task in enumerate(wanted, 1):
            wrong = ""
            if task.id in have:
                result.already += 1
            else:
                story, wrong = _attempt(write, task, seen, attempts, seed)
                if story is None:
                    result.given_up += 1
                else:
                    result.kept += 1
                    seen.add(story.text)
                    row = {k: v for k, v in asdict(story).items() if v}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
            if progress is not None:
                progress(done, len(wanted), wrong)
    return result


def _mend(out: Path) -> None:
    """Take away a last line that was cut off, and end the one before."""
    if not out.exists():
        return
    whole = out.read_text(encoding="utf-8")
    head, _, tail = whole.rpartition("\n")
    if tail.strip():
        try:
            json.loads(tail)
        except ValueError:
            out.write_text(f"{head}\n" if head else "", encoding="utf-8")
        else:
            out.write_text(f"{whole}\n", encoding="utf-8")


def _attempt(
    write: Writer, task: Task, seen: Shingles, attempts: int, seed: int
) -> tuple[Text | None, str]:
    """A story that keeps the rules, or what was wrong with the last one."""
    banned, wrong = banned_pattern([task.emotion]), "no text"
    for attempt in range(attempts):
        text = " ".join(write(task.prompt(), (task.seed + seed + attempt) % 2**31).split())
        if not text:
            continue
        story = Text("story", task.emotion, task.split, task.topic, text, id=task.id)
        found = problems(story, banned)
        if seen.nearest(text)[1] > SHARED:
            found.append("near-duplicate of another")
        if not found:
            return story, ""
        wrong = "; ".join(found)
    return None, wrong
