"""Completions whose tokens carry readings, as pieces that a page can shade."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from emoreg.measurement import number
from emoreg.printable import isolated, short
from emoreg.run_view import View
from emoreg.sentences import number_text
from emoreg.shades import level

TOKENS, LETTERS, PROMPT = 300, 120, 400  # most tokens of a text, letters of a token and a prompt
LEAST, MOST = 2.0, 6.0  # σ: what the deepest shade stands for lies between
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


def examples(view: View, most: int) -> tuple[list[Example], list[Example]]:
    """The completions of the last step at which some were kept, and those before, latest first.

    Args:
        view: The run.
        most: Completions in either list.
    """
    limit = scale(view)
    events = [event for event in reversed(view.run.texts) if event.get("rows")]
    now, *before = [(int(event["step"]), _spread(event["rows"])) for event in events] or [(0, [])]
    earlier = [(step, row) for step, rows in before for row in rows]
    return (
        [example(row, now[0], limit) for row in now[1][:most]],
        [example(row, step, limit) for step, row in earlier[:most]],
    )


def _spread(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One of each emotion and end, then a second of each, and so on."""
    seen: Counter[tuple[Any, Any]] = Counter()
    ranked = []
    for row in rows:
        key = (row.get("emotion"), row.get("end"))
        ranked.append((seen[key], row))
        seen[key] += 1
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def scale(view: View) -> float:
    """The reading, in σ, that the deepest shade of a run's texts stands for."""
    rows = [row for event in view.run.texts for row in event.get("rows") or ()]
    rows += [alert["text"] for alert in view.run.alerts if alert.get("text")]
    readings = (number(x) for row in rows for x in row.get("readings") or ())
    return min(MOST, max(LEAST, *(abs(x) for x in readings if math.isfinite(x)), LEAST))


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
    prompt = str(row.get("prompt") or "")
    return Example(
        title,
        prompt if len(prompt) <= PROMPT else "…" + prompt[1 - PROMPT :],
        tuple(_piece(token, reading, limit) for token, reading in pairs[:TOKENS]),
        max(0, len(pairs) - TOKENS),
        _ends(pairs),
    )


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
