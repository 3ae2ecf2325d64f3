"""Which tokens count: completion, colon, prompt, tool; padded, packed or padding-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from emoreg.errors import ConfigError

SCOPES = ("completion", "colon", "prompt", "tool")
# Kinds of sequences that a trainer tells apart; see emoreg.batches for what each one means.
# Places in a text whose readings are logged apart, whatever the scope; and what the scope counts.
PLACES, COUNTED = ("colon", "completion", "prompt"), "counted"
SIDES = ("chosen", "rejected", "reference", "desired", "undesired", "rewarded", "unrewarded")


@dataclass(frozen=True)
class Counted:
    """The tokens that are read, which of them the terms act on, and their sequences.

    What is derived is computed once and kept, so that a device is waited for when it is asked for
    first: before a forward, if its batch is known.
    """

    mask: Tensor  # bool, (batch, tokens)
    sequence: Tensor  # int64, (batch, tokens), the same number within one sequence, from 0
    sides: Mapping[str, Tensor] = field(default_factory=dict)  # side -> its rows, bool, (batch,)
    rows: Tensor | None = None  # bool, (batch,): the terms act on these; None on all
    places: Mapping[str, Tensor] = field(default_factory=dict)  # place -> bool, (batch, tokens)

    def of(self, sides: Collection[str]) -> Counted:
        """The same, with terms that act on some sides only; on all if none is named.

        Raises:
            ConfigError: A side that is not told here.
        """
        missing = set(sides) - set(self.sides)
        if missing:
            raise ConfigError(
                f"emoreg_sides asks for {', '.join(sorted(missing))}; the batch tells "
                f"{', '.join(self.sides) or 'no sides'}."
            )
        if not sides:
            return self
        return replace(self, rows=torch.stack([self.sides[side] for side in sides]).any(0))

    @cached_property
    def positions(self) -> Tensor:
        """Flat positions of the tokens that are read, (read,)."""
        return self.mask.flatten().nonzero().squeeze(1)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Groups whose readings are logged: what counts, the places, and what counts by side.

        Returns:
            Their names; the flat positions of the tokens that are in any of them, (tokens,);
            which token is in which group, bool, (groups, tokens).
        """
        apart = {side: self.mask & rows[:, None] for side, rows in self.sides.items()}
        found = {COUNTED: self.mask, **self.places, **apart}
        masks = torch.stack(list(found.values())).flatten(1)
        at = masks.any(0).nonzero().squeeze(1)
        return tuple(found), at, masks[:, at]

    @cached_property
    def read_sequences(self) -> Tensor:
        """The sequence of each token that is read, from 0 without gaps, (read,)."""
        return _renumbered(self.sequence.flatten()[self.positions])

    @cached_property
    def acting(self) -> Tensor | None:
        """Which of those the terms act on, int64, (acting,); None for all."""
        if self.rows is None:
            return None
        return self.rows[self.positions // self.mask.shape[1]].nonzero().squeeze(1)

    @cached_property
    def sequences(self) -> Tensor:
        """The sequence of each token that the terms act on, from 0 without gaps, (acting,)."""
        if self.acting is None:
            return self.read_sequences
        return _renumbered(self.sequence.flatten()[self.positions[self.acting]])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        tokens = len(self.sequences)
        return {"tokens": tokens, "sequences": int(self.sequences[-1]) + 1 if tokens else 0}

    def number(self, by: str) -> int:
        """How many ``tokens`` or ``sequences`` the terms act on."""
        return self._numbers[by]

    def padded_left(self, width: int) -> Counted:
        """The same in a batch of `width` tokens: virtual tokens come first and never count."""
        extra = width - self.mask.shape[1]
        if extra <= 0:
            return self
        shape = (self.mask.shape[0], extra)
        first = self.sequence[:, :1].expand(shape)
        none = self.mask.new_zeros(shape)
        return replace(
            self,
            mask=torch.cat([none, self.mask], 1),
            sequence=torch.cat([first, self.sequence], 1),
            places={k: torch.cat([none, v], 1) for k, v in self.places.items()},
        )


def _renumbered(sequence: Tensor) -> Tensor:
    """From 0 without gaps: numbers of sequences in order, (tokens,)."""
    begins = torch.ones_like(sequence)
    begins[1:] = (sequence[1:] != sequence[:-1]).to(begins)
    return begins.cumsum(0) - 1


def check_scope(scope: Collection[str]) -> tuple[str, ...]:
    """The scopes, in their order in `SCOPES`.

    Raises:
        ConfigError: An unknown scope, or none.
    """
    unknown = sorted(set(scope) - set(SCOPES))
    if unknown or not scope:
        raise ConfigError(
            f"scope must name some of {', '.join(SCOPES)}; got {unknown or 'nothing'}."
        )
    return tuple(s for s in SCOPES if s in scope)


def count_tokens(
    labels: Tensor,
    scope: Collection[str],
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    tool: Tensor | None = None,
) -> Counted:
    """The tokens of a batch that count.

    *completion* is every token with a label; *colon* the token just before a run of them, from
    which the first is predicted; *tool* what a tool put out between them, where that is told;
    *prompt* every other token, the colon among them. The first token of a sequence, which is an
    attention sink, and padding never count.

    Args:
        labels: -100 where the token is no target, (batch, tokens).
        scope: Some of ``completion``, ``colon``, ``prompt``, ``tool``.
        attention_mask: 0 at padding, (batch, tokens); None if nothing is padded.
        position_ids: (batch, tokens), which restart at 0 where packed sequences begin; needed
            to tell packed sequences apart.
        tool: True at tool output, (batch, tokens); without it that is *prompt*.

    Returns:
        The mask and the sequence numbers, both (batch, tokens).

    Raises:
        ConfigError: An unknown scope.
    """
    scope = check_scope(scope)
    real = (
        torch.ones_like(labels, dtype=torch.bool)
        if attention_mask is None
        else attention_mask.bool()
    )
    starts = _starts(real, position_ids)
    target = (labels != -100) & real
    follows = torch.zeros_like(target)
    follows[:, :-1] = target[:, 1:] & ~starts[:, 1:]
    colon = follows & ~target & real
    tool = torch.zeros_like(target) if tool is None else tool & real & ~target
    parts = {
        "completion": target,
        "colon": colon,
        "prompt": real & ~target & ~tool,
        "tool": tool,
    }
    mask = torch.zeros_like(target)
    for name in scope:
        mask |= parts[name] & ~starts
    sequence = starts.flatten().cumsum(0).reshape(starts.shape) - 1
    places = {name: parts[name] & ~starts for name in PLACES}
    return Counted(mask, sequence.clamp(min=0), places=places)


def _starts(real: Tensor, position_ids: Tensor | None) -> Tensor:
    """Where a sequence begins, bool, (batch, tokens): a row's first real token, and position 0.

    The first need not have position 0: positions may run on from padding on the left, and a packed
    row may begin in the middle of a text.
    """
    starts = real & (real.long().cumsum(1) == 1)
    if position_ids is not None and position_ids.shape == real.shape:
        starts |= (position_ids == 0) & real
    return starts


def colon_positions(attention_mask: Tensor) -> Tensor:
    """Index of the last real token of each row, (batch,), padded on either side."""
    width = attention_mask.shape[1]
    return width - 1 - attention_mask.flip(1).long().argmax(1)
