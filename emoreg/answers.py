"""What the answers show beside the colon: how far they moved, and which emotions the other way."""

from __future__ import annotations

from collections.abc import Iterator

from emoreg.measurement import Measurement, further
from emoreg.printable import joined, listed
from emoreg.wording import NAMED, SIGMA, number_text

ANSWERS = {"response": "fixed responses", "own": "own responses"}
WHOSE = {
    "response": "Fixed responses (the base’s answers, read by both)",
    "own": "Own responses (each model’s own)",
}


def so_what(last: Measurement) -> str:
    """What the colon and the answers together let one say."""
    moved, places = last.movers(), measured(last)
    lead = (
        "The state just before the answer moved" if moved else "Before the answer no move is shown"
    )
    if not places:
        return f"{lead}; the answers were not read, so whether they moved is not known."
    if not moved:
        return f"{lead}{_without_colon(last, places)}."
    return f"{lead}; {_how_far(last, places)}{_other_way(last, places)}."


def _without_colon(last: Measurement, places: list[str]) -> str:
    found = [
        f"{len(last.movers(place=p))} of {len(last.known(p))} emotions moved on {ANSWERS[p]}"
        for p in places
        if last.movers(place=p)
    ]
    return f", but {joined(found)}" if found else ", and none in the answers"


def _how_far(last: Measurement, places: list[str]) -> str:
    if not any(last.movers(place=p) for p in places):
        return "in the answers themselves no move is shown"
    for sign, word in ((1, "less"), (-1, "further")):
        counts = (_compared(last, p).count(sign) > len(_compared(last, p)) / 2 for p in places)
        if all(counts):
            return f"the answers themselves moved {word}"
    return "the answers themselves moved as well"


def _compared(last: Measurement, place: str) -> list[int]:
    """Of each emotion, 1 where the colon lies further from base, −1 where that place does."""
    known = {row.emotion: row.drift for row in last.known(place)}
    return [further(r.drift, known[r.emotion]) for r in last.known() if r.emotion in known]


def measured(last: Measurement) -> list[str]:
    """The places in answers that have a number."""
    return [place for place in ANSWERS if last.known(place)]


def turned(last: Measurement) -> dict[str, list[str]]:
    """Emotion -> the places in answers where it moved the other way than at the colon."""
    found: dict[str, list[str]] = {}
    sides = {row.emotion: row.side for row in last.movers()}
    for place in measured(last):
        for row in last.movers(place=place):
            if {row.side, sides.get(row.emotion)} == {"up", "down"}:
                found.setdefault(row.emotion, []).append(place)
    return found


def turned_mark(last: Measurement, emotion: str) -> str:
    """What stands behind an emotion's name in a list of movers: where it moved the other way."""
    places = turned(last).get(emotion)
    if not places:
        return ""
    glyph = "▼" if last.colon[emotion].side == "up" else "▲"
    where = "in the answers" if len(places) == len(ANSWERS) else f"in {ANSWERS[places[0]]}"
    return f" ({glyph} {where})"


def _other_way(last: Measurement, places: list[str]) -> str:
    """Which emotions moved the other way in all answers, and which in one kind only."""
    found = turned(last)
    groups = {p: [e for e, at in found.items() if at == [p]] for p in places}
    everywhere = [e for e, at in found.items() if at == places]
    said = [f"for {listed(everywhere, most=NAMED)}"] if everywhere else []
    if len(places) > 1:
        said += [
            f"in {ANSWERS[p]} only for {listed(names, most=NAMED)}"
            for p, names in groups.items()
            if names
        ]
    return f", and the other way {joined(said)}" if said else ""


def facts(last: Measurement) -> Iterator[str]:
    """A sentence for each place: how many moved, how far, and beside the colon."""
    for place in measured(last):
        known, found = last.known(place), _compared(last, place)
        text = f"{WHOSE[place]}: {len(last.movers(place=place))} of {len(known)} moved"
        text += f", {number_text(last.size(place))}{SIGMA} on average"
        beside = [
            f"{found.count(sign)} lie {word}"
            for sign, word in ((1, "nearer the base than at the colon"), (-1, "further from it"))
            if found.count(sign)
        ]
        yield f"{text}; {joined(beside)}." if beside else f"{text}."
