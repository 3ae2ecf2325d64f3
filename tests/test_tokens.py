"""The same tokens count, whatever layout the collator chose, and only those that should."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from emoreg.errors import ConfigError
from emoreg.tokens import SCOPES, check_scope, colon_positions, count_tokens

# One sequence a line: p a token without a label, c one with; every token has a number of its own.
SEQUENCES = [
    "pppcc",
    "ppcppcc",  # two turns: two colons
    "pc",  # its colon is its first token, which never counts
    "cc",  # begins with a completion: no colon; packed behind a prompt it must not get one
    "ppp",  # no completion
    "ppcp",  # ends with a user's turn, before a sequence that begins with a completion
    "ccc",
]
NUMBERS = [[100 * i + j for j in range(len(s))] for i, s in enumerate(SEQUENCES)]
Batch = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # ids, labels, mask, positions
PAD = -1


def expected(sequence: str, numbers: list[int], scope: tuple[str, ...]) -> set[int]:
    """Token by token, from the definition."""
    found = set()
    for j, (kind, number) in enumerate(zip(sequence, numbers, strict=True)):
        before_completion = sequence[j + 1 : j + 2] == "c"
        if j > 0 and (
            (kind == "c" and "completion" in scope)
            or (kind == "p" and before_completion and "colon" in scope)
            or (kind == "p" and "prompt" in scope)
        ):
            found.add(number)
    return found


def labels_of(sequence: str, numbers: list[int]) -> list[int]:
    return [n if kind == "c" else -100 for kind, n in zip(sequence, numbers, strict=True)]


def padded(left: bool, positions: str | None = None) -> Batch:
    """One sequence a row. Padding carries a label, as where labels are a copy of the ids."""
    width = max(map(len, SEQUENCES)) + 2
    ids, labels = torch.full((2, len(SEQUENCES), width), 7).unbind()
    ids.fill_(PAD)
    mask = torch.zeros_like(ids)
    for i, (sequence, numbers) in enumerate(zip(SEQUENCES, NUMBERS, strict=True)):
        at = slice(width - len(sequence), None) if left else slice(len(sequence))
        ids[i, at] = torch.tensor(numbers)
        labels[i, at] = torch.tensor(labels_of(sequence, numbers))
        mask[i, at] = 1
    made = {
        None: None,
        "from the mask": (mask.cumsum(1) - 1).masked_fill(mask == 0, 1),
        "clipped": (mask.cumsum(1) - 1).clamp(min=0),
        "over padding": torch.arange(width).expand_as(mask),
        "one row for all": torch.arange(width).unsqueeze(0),
    }
    return ids, labels, mask, made[positions]


def packed(rows: list[list[int]], padding: int = 0) -> Batch:
    """Sequences behind each other in each row, told apart by positions; padding has position 0."""
    parts = [[], [], []]
    for row in rows:
        ids = [n for i in row for n in NUMBERS[i]]
        labels = [n for i in row for n in labels_of(SEQUENCES[i], NUMBERS[i])]
        positions = [j for i in row for j in range(len(SEQUENCES[i]))]
        for part, values, fill in zip(parts, (ids, labels, positions), (PAD, -100, 0), strict=True):
            part.append(values + [fill] * padding)
    width = max(map(len, parts[0]))
    assert all(len(r) == width for r in parts[0]), "rows of unequal length"
    ids, labels, positions = map(torch.tensor, parts)
    return ids, labels, None, positions


LAYOUTS: dict[str, Callable[[], Batch]] = {
    "padded right": lambda: padded(False),
    "padded left": lambda: padded(True),
    "padded left, positions from the mask": lambda: padded(True, "from the mask"),
    "padded left, positions clipped at 0": lambda: padded(True, "clipped"),
    "padded left, positions that count padding": lambda: padded(True, "over padding"),
    "padded right, positions that count padding": lambda: padded(False, "over padding"),
    "padded left, one row of positions": lambda: padded(True, "one row for all"),
    "packed": lambda: packed([[1, 5, 3], [0, 2, 4, 6]]),
    "padding-free": lambda: packed([list(range(len(SEQUENCES)))]),
    "padding-free, filled to a multiple": lambda: packed([list(range(len(SEQUENCES)))], padding=3),
}
SETS = [s for k in (1, 2, 3) for s in combinations(SCOPES, k)]


@pytest.mark.parametrize("scope", SETS, ids="+".join)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_tokens_count_in_every_layout(
    layout: Callable[[], Batch], scope: tuple[str, ...]
) -> None:
    ids, labels, mask, positions = layout()
    counted = count_tokens(labels, scope, mask, positions)
    found = ids[counted.mask].tolist()
    wanted = [expected(s, n, scope) for s, n in zip(SEQUENCES, NUMBERS, strict=True)]
    assert sorted(found) == sorted(set.union(*wanted))  # a list: nothing counts twice
    assert PAD not in found
    assert counted.mask.shape == counted.sequence.shape == ids.shape


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tokens_share_a_sequence_number_exactly_if_they_share_a_sequence(
    layout: Callable[[], Batch],
) -> None:
    ids, labels, mask, positions = layout()
    counted = count_tokens(labels, SCOPES, mask, positions)
    pairs = set(
        zip(
            (ids[counted.mask] // 100).tolist(),
            counted.sequence[counted.mask].tolist(),
            strict=True,
        )
    )
    assert len(pairs) == len(SEQUENCES)
    assert {row for row, _ in pairs} == set(range(len(SEQUENCES)))
    assert len({number for _, number in pairs}) == len(SEQUENCES)
    assert counted.sequence.min() >= 0


def test_without_positions_packed_sequences_cannot_be_told_apart() -> None:
    ids, labels, _, positions = packed([[5, 3]])  # control for the two theorems above
    told, untold = (count_tokens(labels, ["colon"], None, p).mask for p in (positions, None))
    assert ids[told].tolist() == [NUMBERS[5][1]]
    assert ids[untold].tolist() == [NUMBERS[5][1], NUMBERS[5][3]]


def test_a_row_that_is_all_padding_counts_nothing() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1]])
    counted = count_tokens(torch.full((3, 3), 7), ["completion"], mask)
    assert counted.mask.sum(1).tolist() == [2, 0, 2]  # the first token is the sink
    assert (counted.sequence[0] != counted.sequence[2]).all()


def test_virtual_tokens_come_first_and_never_count() -> None:
    ids, labels, mask, _ = padded(False)
    before = count_tokens(labels, SCOPES, mask)
    wider = before.padded_left(ids.shape[1] + 4)
    assert not wider.mask[:, :4].any()
    assert torch.equal(wider.mask[:, 4:], before.mask)
    assert torch.equal(wider.sequence[:, 4:], before.sequence)
    assert before.padded_left(ids.shape[1]) is before


@pytest.mark.parametrize(("scope", "named"), [(["colon", "answer"], "answer"), ([], "nothing")])
def test_an_unknown_or_empty_scope_is_refused_with_those_there_are(
    scope: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        count_tokens(torch.zeros(1, 2), scope)
    assert "completion, colon, prompt" in str(error.value)


def test_scopes_come_back_in_one_order() -> None:
    assert check_scope({"prompt", "completion"}) == ("completion", "prompt")


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_the_last_real_token_is_found_on_either_padding(left: bool) -> None:
    ids, _, mask, _ = padded(left)
    at = colon_positions(mask)
    assert ids.gather(1, at.unsqueeze(1)).squeeze(1).tolist() == [n[-1] for n in NUMBERS]


def test_a_batch_without_padding_needs_no_mask() -> None:
    labels = torch.tensor([[-100, -100, 7, 7]])
    for mask in (None, torch.ones_like(labels)):
        assert count_tokens(labels, SCOPES, mask).mask.tolist() == [[False, True, True, True]]
