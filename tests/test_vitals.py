"""Vitals are what a slow hand finds: by place, side, facet, block, and over micro-batches."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import ids_and_labels, read_by_hand
from torch import Tensor
from trainers import (
    BLOCKS,
    EMOTIONS,
    WIDTH,
    logged,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
)

from emoreg.config import EmoRegConfig
from emoreg.meter import Meter
from emoreg.regularizer import EmotionRegularizer
from emoreg.terms import EmotionTerms, Terms
from emoreg.tokens import Counted, count_tokens

ROWS, LENGTH, WATCHED = 4, 24, ("desperate", "calm")
ONE = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
ONE.reduce = lambda table, _how: table
ONE.gather = lambda table: table


def make_batch(seed: int = 0, rows: int = ROWS) -> tuple[dict[int, Tensor], Counted]:
    """Outputs of two blocks for ragged rows, padded on either side, chosen and rejected."""
    generator = torch.Generator().manual_seed(seed)
    acts = {b: torch.randn(rows, LENGTH, WIDTH, generator=generator) for b in (0, 1)}
    labels = torch.full((rows, LENGTH), -100)
    mask = torch.zeros(rows, LENGTH, dtype=torch.long)
    for row in range(rows):
        begin, end = (row, LENGTH) if row % 2 else (0, LENGTH - 3 * row)
        mask[row, begin:end] = 1
        labels[row, begin + 4 + row : end] = 7
    for h in acts.values():
        h[mask == 0] = float("nan")  # what stands at padding must touch nothing
    sides = {"chosen": torch.arange(rows) < rows // 2, "rejected": torch.arange(rows) >= rows // 2}
    counted = count_tokens(labels, ("completion", "colon"), mask)
    return acts, Counted(counted.mask, counted.sequence, sides, places=counted.places)


def terms_of(**knobs: Any) -> EmotionTerms:
    settings = {"penalize": {"desperate": 0.0}, "reward": {"calm": 0.0}, "blocks": [0, 1]}
    return EmotionTerms(make_vectors(), EmoRegConfig.of(**{**settings, **knobs}))


def hand(acts: dict[int, Tensor], where: Tensor) -> dict[tuple[str, str, int], list[Tensor]]:
    """(facet, emotion, block) -> the reading of each token where a mask is, row by row."""
    vectors, found = make_vectors(), {}
    for facet in vectors.facets:
        for (i, emotion), block in product(enumerate(facet.emotions), acts):
            rows = []
            for row in range(len(where)):
                h = acts[block][row][where[row]].double() - vectors.mu[block].double()
                values = h @ facet.directions[i, block].double() / facet.sigma[i, block].double()
                rows.append(values)
            found[facet.name, emotion, block] = rows
    return found


def whole(found: dict[tuple[str, str, int], list[Tensor]], emotion: str, **only: Any) -> Tensor:
    """Mean over facets, then blocks, of every token's reading."""
    blocks = []
    for block in only.get("blocks", (0, 1)):
        parts = [
            torch.cat(rows)
            for (facet, e, b), rows in found.items()
            if (e, b) == (emotion, block) and facet in only.get("facets", ("stories", facet))
        ]
        blocks.append(torch.stack(parts).mean(0))
    return torch.stack(blocks).mean(0)


def approx(value: Any) -> Any:
    return pytest.approx(float(value), rel=1e-4, abs=1e-5)


# --- means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["", "_colon", "_completion", "_prompt", "_chosen", "_rejected"])
def test_means_by_place_and_side_are_those_of_every_tokens_own_reading(group: str) -> None:
    acts, counted = make_batch()
    found = terms_of()(acts, counted)
    place = group.removeprefix("_")
    side = counted.sides.get(place)
    where = counted.mask if side is None else counted.mask & side[:, None]
    where = counted.places.get(place, where)
    everyone = group in ("", "_colon", "_completion")
    values = []
    for emotion in EMOTIONS if everyone else WATCHED:
        wanted = whole(hand(acts, where), emotion).mean()
        assert found.mean(f"reading{group}/{emotion}") == approx(wanted)
        values.append(wanted)
    assert max(values) - min(values) > 0.03  # control: they are not all the same
    if not everyone:
        with pytest.raises(KeyError):
            found.mean(f"reading{group}/happy")


def test_facets_blocks_and_lengths_are_told_apart() -> None:
    acts, counted = make_batch()
    found, by_hand = terms_of()(acts, counted), hand(acts, counted.mask)
    for emotion in WATCHED:
        for facet in ("stories", "transcripts"):
            own = whole({k: v for k, v in by_hand.items() if k[0] == facet}, emotion)
            assert found.mean(f"reading/{emotion}/{facet}") == approx(own.mean())
        for block in (0, 1):
            own = whole(by_hand, emotion, blocks=(block,))
            assert found.mean(f"reading_block_{block}/{emotion}") == approx(own.mean())
    lengths = [acts[b][counted.mask].norm(dim=-1).mean() for b in (0, 1)]
    assert [found.mean(f"norm_block_{b}") for b in (0, 1)] == [approx(x) for x in lengths]
    assert found.mean("norm") == approx(sum(lengths) / 2)


@pytest.mark.parametrize("form", ["outputs", "readings"])
def test_the_excess_is_the_same_from_the_bases_outputs_and_from_its_readings(form: str) -> None:
    acts, counted = make_batch()
    before, _ = make_batch(seed=1)
    terms = terms_of()
    base = before if form == "outputs" else terms.read(before, counted.positions)
    found = terms(acts, counted, base)
    now, then = hand(acts, counted.mask), hand(before, counted.mask)
    for emotion in EMOTIONS:
        wanted = (whole(now, emotion) - whole(then, emotion)).mean()
        assert found.mean(f"excess/{emotion}") == approx(wanted)
        assert abs(wanted) > 1e-3


# --- what is not linear -----------------------------------------------------------------------


def test_the_top_tenth_is_of_each_sequence_and_the_maximum_of_all() -> None:
    acts, counted = make_batch()
    found = terms_of(margin=0.3)(acts, counted)
    for i, emotion in enumerate(WATCHED):
        values = whole(hand(acts, counted.mask), emotion)
        total = 0.0
        for part in values.split(counted.mask.sum(1).tolist()):
            kept = -(-len(part) // 10)
            total += len(part) * float(part.sort(descending=True).values[:kept].mean())
        assert found.mean(f"top/{emotion}") == approx(total / len(values))
        assert float(found.peaks["max/desperate", "max/calm"][i]) == approx(values.max())
        assert found.mean(f"over_margin/{emotion}") == approx((values > 0.3).double().mean())
        assert 0 < found.mean(f"over_margin/{emotion}") < 1
        assert found.mean(f"reading/{emotion}") < found.mean(f"top/{emotion}") < values.max()


def test_the_share_beyond_the_margin_is_over_the_anchor() -> None:
    acts, counted = make_batch()
    base, _ = make_batch(seed=1)
    knobs = {"penalize": {"desperate": 0.1}, "margin": 0.2}
    shares = {}
    for anchor in ("neutral", "base"):
        found = terms_of(**knobs, anchor=anchor)(acts, counted, base)
        over = whole(hand(acts, counted.mask), "desperate")
        if anchor == "base":
            over = over - whole(hand(base, counted.mask), "desperate")
        shares[anchor] = found.mean("over_margin/desperate")
        assert shares[anchor] == approx((over > 0.2).double().mean())
    assert shares["neutral"] != shares["base"]


def test_a_token_that_is_not_finite_spoils_its_own_groups_alone() -> None:
    acts, counted = make_batch()
    spoiled = {b: h.clone() for b, h in acts.items()}
    spoiled[1][0, 2] = float("inf")  # of the prompt of the first row, which is a chosen one
    assert bool(counted.places["prompt"][0, 2])
    found, clean = terms_of()(spoiled, counted), terms_of()(acts, counted)
    for name in ("reading/calm", "reading_chosen/calm", "reading_colon/happy", "norm", "top/calm"):
        assert found.mean(name) == approx(clean.mean(name))
    assert found.mean("reading_prompt/calm") != found.mean("reading_prompt/calm")  # NaN


def test_many_tokens_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    acts, counted = make_batch()
    whole = terms_of()(acts, counted, make_batch(seed=1)[0])
    monkeypatch.setattr("emoreg.vitals.CHUNK", 7)
    parts = terms_of()(acts, counted, make_batch(seed=1)[0])
    for names in whole.sums:
        for name in names:
            assert parts.mean(name) == approx(whole.mean(name))


def test_where_the_anchor_is_the_base_nothing_is_compared_with_another() -> None:
    """A run that only measures reads the base now and then: its lines must mean one thing."""
    acts, counted = make_batch()
    base, _ = make_batch(seed=1)
    measured = terms_of(anchor="base", margin=0.1)
    unread, read = measured(acts, counted), measured(acts, counted, base)
    for name in ("penalty/desperate", "reward/calm", "over_margin/calm"):
        assert read.mean(name) > 0
        with pytest.raises(KeyError):
            unread.mean(name)
    assert unread.mean("reading/calm") == approx(read.mean("reading/calm"))


# --- over micro-batches -----------------------------------------------------------------------


def drained(*parts: Terms) -> dict[str, float]:
    meter = Meter()
    for part in parts:
        for names, (totals, number) in part.sums.items():
            meter.add(names, totals, number)
        for names, values in part.peaks.items():
            meter.peak(names, values)
    return meter.drain(ONE)


def test_micro_batches_count_by_their_tokens_and_a_maximum_is_of_all_of_them() -> None:
    terms, acts_counted = terms_of(), [make_batch(), make_batch(seed=5, rows=2)]
    parts = [terms(*pair) for pair in acts_counted]
    found = drained(*parts)
    numbers = [int(counted.mask.sum()) for _, counted in acts_counted]
    assert numbers[0] > numbers[1] > 0
    for name in ("reading/happy", "top/calm", "norm", "reading/desperate/stories"):
        means = [part.mean(name) for part in parts]
        wanted = sum(m * n for m, n in zip(means, numbers, strict=True)) / sum(numbers)
        assert found[name] == approx(wanted)
        assert abs(found[name] - sum(means) / 2) > 1e-4  # control: not the mean of means
    highest = [float(part.peaks["max/desperate", "max/calm"][0]) for part in parts]
    assert found["max/desperate"] == approx(max(highest))
    assert highest[0] != highest[1]


def test_what_no_token_was_counted_for_is_not_logged() -> None:
    acts, counted = make_batch()
    none = Counted(counted.mask & False, counted.sequence, places=counted.places)
    found = drained(terms_of()(acts, none))
    assert "reading/calm" not in found
    assert "max/calm" not in found
    assert "reading_completion/calm" in found  # control: places are read whatever the scope


# --- in a trainer -----------------------------------------------------------------------------


def test_a_trainer_logs_the_places_of_its_own_tokens(tmp_path: Path) -> None:
    model, rows = make_model(), make_rows()
    found: dict[str, list[Tensor]] = {"colon": [], "completion": [], "prompt": []}
    for ids, labels in ids_and_labels(rows):
        first = next(i for i, label in enumerate(labels) if label != -100)
        at = {"colon": [first - 1], "completion": range(first, len(ids)), "prompt": range(1, first)}
        for place, where in at.items():
            reading = read_by_hand(model, ids, list(where))
            own = [v for (_, e, b), v in reading.items() if (e, b) == ("calm", 1)]
            found[place].append(torch.stack(own).mean(0).detach())
    trainer = make_trainer(tmp_path, model)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors()))
    trainer.train()
    values = {place: torch.cat(parts).mean() for place, parts in found.items()}
    for place, wanted in values.items():
        assert logged(trainer, f"emoreg/reading_{place}/calm") == [approx(wanted)]
    assert len({round(float(v), 3) for v in values.values()}) == 3


def test_the_base_is_read_on_every_so_manieth_step_and_as_it_is(tmp_path: Path) -> None:
    def excess(**knobs: Any) -> list[tuple[int, float]]:
        trainer = make_trainer(tmp_path, max_steps=4)
        trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **knobs))
        trainer.train()
        name = "emoreg/excess/desperate"
        return [(row["step"], row[name]) for row in trainer.state.log_history if name in row]

    always = excess(penalize={"desperate": 1e-9}, anchor="base")  # read in every step
    some = excess(reference_steps=2)
    assert [step for step, _ in always] == [1, 2, 3, 4]
    assert [step for step, _ in some] == [2, 4]
    assert [value for _, value in some] == pytest.approx([always[1][1], always[3][1]], rel=1e-3)
    assert abs(some[0][1]) > 1e-3
    assert excess(reference_steps=0) == []


def test_blocks_of_the_set_are_those_of_the_model() -> None:
    assert BLOCKS == 3  # the tests above read two of them, so that a mean over blocks is one
