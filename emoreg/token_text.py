"""Completions whose tokens carry readings, as pieces that a page can shade."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from emoreg.measurement import number
from emoreg.printable import isolated, short
from emoreg.run_view import View
from emoreg.shades import level, rounded
from emoreg.wording import number_text

TOKENS, LETTERS = 300, 120  # most tokens of a text, letters of a token
PROMPT = 300  # letters at the end of a prompt: as many as journals keep
BOUNDARY = 40  # letters in which a cut prompt's first whole word is looked for
LEAST, MOST = 2.0, 5.0  # σ: what the deepest shade stands for lies between
ENDS = 3  # tokens that are named at either end of the readings


class Piece(NamedTuple):
    """One token."""

    text: str
    shade: str  # class of the style sheet; empty for a reading near 0 or none
    reading: str


@dataclass(frozen=True)
class Example:
    """One completion.

    Attributes:
        title: Whose reading, which end, when.
        prompt: The end of what came before.
        pieces: The tokens.
        left_out: Tokens that are not shown.
        ends: The highest and lowest tokens in words, for readers without colours.
    """

    title: str
    prompt: str
    pieces: tuple[Piece, ...]
    left_out: int
    ends: str


def examples(view: View, most: int, limit: float) -> tuple[list[Example], list[Example]]:
    """The completions of the last step at which some were kept, and those before, latest first.

    Of each step one for each emotion and end, the furthest that was not shown yet; no completion
    is shown twice.

    Args:
        view: The run.
        most: Completions in either list.
        limit: What the deepest shade stands for, σ.
    """
    events = [event for event in reversed(view.run.texts) if event.get("rows")]
    seen: set[tuple[str, ...]] = set()
    found = [
        [example(row, int(event["step"]), limit) for row in _unlike(event["rows"], seen)]
        for event in events
    ]
    now, *before = found or [[]]
    return now[:most], [text for texts in before for text in texts][:most]


def _unlike(
    rows: Iterable[Mapping[str, Any]], seen: set[tuple[str, ...]]
) -> list[Mapping[str, Any]]:
    """One row of each emotion and end that was not seen; `seen` grows by these."""
    found: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in rows:
        key = (row.get("emotion"), row.get("end"))
        text = (str(row.get("prompt")), *map(str, row.get("tokens") or ()))
        if key not in found and text not in seen:
            found[key] = row
            seen.add(text)
    return list(found.values())


def scale(*views: View) -> float:
    """The reading, in σ, that the deepest shade of these runs' texts stands for."""
    rows = [row for v in views for event in v.run.texts for row in event.get("rows") or ()]
    rows += [alert["text"] for v in views for alert in v.run.alerts if alert.get("text")]
    readings = (number(x) for row in rows for x in row.get("readings") or ())
    return rounded(min(MOST, max([LEAST, *(abs(x) for x in readings if math.isfinite(x))])))


def example(row: Mapping[str, Any], step: int, limit: float) -> Example:
    """A row of the journal as a page shows it."""
    tokens = [str(t) for t in row.get("tokens") or ()]
    readings = [number(x) for x in row.get("readings") or ()]
    readings += [math.nan] * (len(tokens) - len(readings))
    pairs = list(zip(tokens, readings, strict=False))
    side = f", {short(row['side'])} side" if row.get("side") else ""
    end = short(row.get("end") or "the text")
    title = (
        f"{isolated(row.get('emotion'))}, {end} of its batch{side}, step {step}: mean "
        f"reading {number_text(number(row.get('reading')), '+')} σ"
    )
    cut = number(row.get("cut"))
    return Example(
        title,
        _end(str(row.get("prompt") or "")),
        tuple(_piece(token, reading, limit) for token, reading in pairs[:TOKENS]),
        max(0, len(pairs) - TOKENS) + (int(cut) if math.isfinite(cut) else 0),
        _ends(pairs),
    )


def _end(prompt: str) -> str:
    """The end of a prompt, from a whole word on if it was cut."""
    if len(prompt) <= PROMPT + len("… "):
        return prompt
    kept = prompt[-PROMPT:]
    head, space, tail = kept[:BOUNDARY].partition(" ")
    return "… " + (tail if space else head) + kept[BOUNDARY:]


def visible(token: str) -> str:
    """A token whose white space can be seen."""
    token = token if len(token) <= LETTERS else token[: LETTERS - 1] + "…"
    if token and not token.strip(" "):
        return "␣" * len(token)
    return token.replace("\n", "⏎\n").replace("\t", "⇥\t")


def _piece(token: str, reading: float, limit: float) -> Piece:
    at = level(reading, limit)
    shade = f"{'up' if at > 0 else 'down'}-{abs(at)}" if at else ""
    return Piece(visible(token), shade, number_text(reading, "+"))


def _ends(pairs: Iterable[tuple[str, float]]) -> str:
    """The tokens with the highest and the lowest readings."""
    known = sorted((p for p in pairs if math.isfinite(p[1])), key=lambda p: -p[1])
    if not known:
        return "No token has a reading."
    high, low = known[:ENDS], known[::-1][:ENDS]
    return f"Highest: {_named(high)}. Lowest: {_named(low)}."


def _named(pairs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(
        f"“{isolated(visible(token).replace(chr(10), ''), 24)}” {number_text(reading, '+')}"
        for token, reading in pairs
    )
