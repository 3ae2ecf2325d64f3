"""The completions of a step that read highest and lowest, token by token, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from emoreg.tokens import Counted

TOKENS = 400  # of a completion that is shown
PROMPT = 300  # characters at the end of a prompt that are shown
CONTEXT = 6  # tokens before one that may share a character with it
UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character
Row = dict[str, Any]  # as in the events of the journal


@dataclass
class Examples:
    """Keeps the readings of one optimizer step until the next begins.

    Attributes:
        watched: The emotions that are read, in the order of the readings' columns.
    """

    watched: tuple[str, ...]
    _kept: list[tuple[Tensor, Counted, Tensor]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the last step."""
        self._kept = []

    def add(self, ids: Tensor, counted: Counted, readings: Tensor) -> None:
        """Take in a micro-batch.

        Args:
            ids: Tokens, (batch, tokens).
            counted: Which were read, of the same shape.
            readings: Of those, in σ, (read, watched).
        """
        self._kept.append((ids.detach(), counted, readings.detach()))

    def extremes(
        self,
        number: int,
        tokenizer: Any,
        accelerator: Any,
        emotions: Sequence[str] | None = None,
        side: str | None = None,
    ) -> list[Row]:
        """The completions of highest and lowest mean reading, over all processes.

        Every process must call it at once.

        Args:
            number: How many of each end, for each emotion.
            tokenizer: Writes the tokens as text.
            accelerator: Of the trainer.
            emotions: All that are watched by default.
            side: Completions of this side alone.

        Returns:
            For each emotion the highest first, then the lowest.
        """
        found = [span for span in self._spans() if side in (None, span.side)]
        wanted = [e for e in self.watched if emotions is None or e in emotions]
        own = [(len(found), {e: self._ends(found, e, number, tokenizer) for e in wanted})]
        everyone = gather_object(own) if accelerator.num_processes > 1 else own
        size = sum(part for part, _ in everyone)
        lowest = min(number, size // 2)
        highest = min(number, size - lowest)  # none is shown as both ends
        rows: list[Row] = []
        for emotion in wanted:
            for end, most in (("highest", highest), ("lowest", lowest)):
                ends = [row for _, of in everyone for row in of[emotion] if row["end"] == end]
                rows += sorted(ends, key=_value, reverse=end == "highest")[:most]
        return rows

    def _ends(self, found: list[_Span], emotion: str, number: int, tokenizer: Any) -> list[Row]:
        column = self.watched.index(emotion)
        order = sorted(found, key=lambda span: float(span.readings[:, column].nanmean()))
        ends = {"highest": order[-number:], "lowest": order[:number]}
        return [
            span.row(emotion, end, column, tokenizer) for end, some in ends.items() for span in some
        ]

    def _spans(self) -> Iterator[_Span]:
        """Every completion of the step of which any token was read."""
        for ids, counted, readings in self._kept:
            completion = counted.places.get("completion", counted.mask).cpu()
            mask, sequence = counted.mask.cpu(), counted.sequence.cpu()
            values = torch.full((*mask.shape, len(self.watched)), float("nan"))
            values[mask] = readings.float().cpu()
            here = mask & completion
            for row in range(len(ids)):
                for number in sequence[row][here[row]].unique().tolist():
                    own = sequence[row] == number
                    at = (here[row] & own).nonzero().squeeze(1)
                    # What stands between the assistant's turns is shown, without readings.
                    whole = torch.arange(int(at[0]), int(at[-1]) + 1)
                    prompt = ids[row].cpu()[own & (torch.arange(len(own)) < at[0])]
                    values[row][~here[row]] = float("nan")
                    sides = [name for name, rows in counted.sides.items() if bool(rows[row])]
                    side = sides[0] if sides else None
                    tokens = ids[row].cpu()[whole].tolist()
                    yield _Span(prompt.tolist(), tokens, values[row][whole], side)


@dataclass(frozen=True)
class _Span:
    """One completion: the tokens before it, its own, and their readings (tokens, watched).

    A token that was not read has NaN.
    """

    prompt: list[int]
    tokens: list[int]
    readings: Tensor
    side: str | None

    def row(self, emotion: str, end: str, column: int, tokenizer: Any) -> Row:
        values = self.readings[:, column].double()
        prompt = tokenizer.decode(self.prompt[-PROMPT:], skip_special_tokens=True)
        return {
            "emotion": emotion,
            "end": end,
            "reading": float(values.nanmean()),
            "side": self.side,
            "prompt": _end(prompt),
            "tokens": pieces(tokenizer, self.tokens[:TOKENS]),
            "readings": values[:TOKENS].tolist(),
            "cut": max(0, len(self.tokens) - TOKENS),
        }


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; together they are the text.

    A character of several tokens stands at the last of them.
    """
    found: list[str] = []
    ends = [0]  # where whole characters end; the last is where what is not told yet begins
    for at in range(len(ids)):
        start, held = ends[max(0, len(ends) - 1 - CONTEXT)], ends[-1]
        before = tokenizer.decode(ids[start:held], clean_up_tokenization_spaces=False)
        text = tokenizer.decode(ids[start : at + 1], clean_up_tokenization_spaces=False)
        if text.endswith(UNFINISHED) and at + 1 < len(ids):
            found.append("")
            continue
        found.append(text[len(before) :])
        ends.append(at + 1)
    return found


def _end(prompt: str) -> str:
    """The end of a prompt, from the beginning of a word on."""
    if len(prompt) <= PROMPT:
        return prompt
    cut = prompt[-PROMPT:]
    return "… " + cut[cut.find(" ") + 1 :]


def _value(row: Row) -> float:
    return float(row["reading"])
