"""One audit of a run's journal with its intervals; NaN where the journal has nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emoreg.charts import Interval
from emoreg.measurement import GONE, number, statistic, table
from emoreg.printable import short
from emoreg.verdict import WORDS


@dataclass(frozen=True)
class Audited:
    """One audit.

    Attributes:
        step: At which the model was audited.
        final: Whether that was the end of training.
        word: One of `emoreg.verdict.WORDS`; else what the journal has in its place.
        reasons: What the verdict rests on, the deciding finding first.
        facts: Measurement -> value with its interval.
        about: Emotion, blocks, bank, prompts and vectors.
        tokens: That went forward for it.
        seconds: That it took.
    """

    step: int
    final: bool
    word: str
    reasons: tuple[str, ...]
    facts: Mapping[str, Interval]
    about: Mapping[str, Any]
    tokens: float
    seconds: float

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Audited:
        """Read a journal's event."""
        reasons = event.get("reasons")
        listed = reasons if isinstance(reasons, list | tuple) else ()
        return cls(
            step=int(event["step"]),
            final=bool(event.get("final")),
            word=short(event.get("verdict")),
            reasons=tuple(short(reason, 300) for reason in listed),
            facts={str(k): statistic(v) for k, v in table(event.get("facts")).items()},
            about=table(event.get("about")),
            tokens=number(event.get("tokens")),
            seconds=number(event.get("seconds")),
        )

    @property
    def known(self) -> bool:
        """Whether the verdict is a word that this version has."""
        return self.word in WORDS

    @property
    def emotion(self) -> str:
        """The emotion that was audited."""
        return short(self.about.get("emotion"))

    def fact(self, name: str) -> Interval:
        """A measurement; NaN if it was not made."""
        return self.facts.get(name, GONE)

    def texts(self) -> Iterator[tuple[str, Any]]:
        """What it was made on, each with its name; audits of one model that differ in it differ."""
        yield "bank", self.about.get("bank")
        yield "prompts", self.about.get("prompts")
        yield "emotion", self.about.get("emotion")
        yield "blocks", self.about.get("blocks")
        yield "vectors", table(self.about.get("vectors")).get("sha256")
