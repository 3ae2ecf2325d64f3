"""Intervals cover, corrected finds are true ones, and every statistic is what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, false_discovery_control, pearsonr, ttest_1samp, ttest_rel

from emoreg.catalogue import CATALOGUE
from emoreg.drift import Move, drift, scalars
from emoreg.probe import Probe
from emoreg.published import likeness, shift
from emoreg.shape import agreement, centroid, span, statistics, structure
from emoreg.snapshot import Snapshot

KINDS = ["neutral"] * 30 + ["challenging"] * 30
NAMES = tuple(list(shift())[::3])  # 57 of the published emotions


def snapshot(readings: Any, mean: Any = ((0.0,),)) -> Snapshot:
    """Of (prompts, emotions) or (prompts, blocks, emotions)."""
    values = np.asarray(readings, dtype=np.float64)
    values = values[:, None] if values.ndim == 2 else values
    mean = np.asarray(mean, dtype=np.float32)
    return Snapshot({"colon": values}, mean, np.full(len(mean), 4.0, dtype=np.float32))


def probe(directions: Any, names: Sequence[str]) -> Probe:
    rows = torch.tensor(np.asarray(directions), dtype=torch.float32)
    blocks, number, width = rows.shape
    facets = tuple(("stories", e) for e in names)
    return Probe(facets, tuple(range(blocks)), rows, torch.zeros(blocks, width),
                 torch.ones(blocks, number))  # fmt: skip


def move(base: Any, now: Any, names: Sequence[str], kinds: Sequence[str]) -> dict[str, Any]:
    """Statistics of a move between readings, (prompts, emotions), at a point."""
    found = Move(tuple(names), (0,), kinds, snapshot(base), snapshot(now))
    return statistics(found, probe(np.ones((1, len(names), 1)), names))


# --- each emotion -----------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty_and_is_deterministic() -> (
    None
):
    rng, truth = np.random.default_rng(0), 0.4
    base = rng.normal(size=(64, 300))  # every column is one experiment of 64 prompts
    now = base + truth + rng.normal(size=base.shape)
    found, again = (drift(base, now, [str(i) for i in range(300)]) for _ in range(2))
    assert 0.89 < np.mean((found.low <= truth) & (truth <= found.high)) < 0.985
    assert np.mean((found.low <= 0) & (found.high >= 0)) < 0.2  # control: it excludes the false
    assert (found.low == again.low).all()
    assert (found.high == again.high).all()


def test_rounding_is_no_move_however_sure_it_is() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=(128, 3))
    now = base + np.array([0.01, 0.2, -0.2]) + 0.001 * rng.normal(size=base.shape)
    found = drift(base, now, ("rounded", "up", "down"))
    assert found.low[0] > 0  # sure
    assert found.q[0] < 1e-6
    assert (found.rose, found.fell) == (["up"], ["down"])


def test_interval_p_and_q_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    base, now = rng.normal(size=(40, 6)), rng.normal(0.2, size=(40, 6))
    found = drift(base, now, "abcdef")
    narrow = bootstrap(
        (now - base,), np.mean, axis=0, method="percentile", n_resamples=20000, random_state=rng
    ).confidence_interval
    wanted = ttest_1samp(now - base, 0).confidence_interval(0.95)
    np.testing.assert_allclose(found.low, wanted.low, atol=0.03)
    np.testing.assert_allclose(found.high, wanted.high, atol=0.03)
    wider = (found.high - found.low) / (narrow.high - narrow.low)
    assert wider.mean() > 1.01  # the bare percentiles cover too little
    p = ttest_rel(now, base).pvalue
    np.testing.assert_allclose(found.p, p)
    np.testing.assert_allclose(found.q, false_discovery_control(p))
    assert (found.q >= found.p).all()


def test_what_rose_and_fell_is_what_was_planted_and_one_false_find_in_twenty() -> None:
    rng, names = np.random.default_rng(1), [str(i) for i in range(171)]
    truth = np.zeros(171)
    truth[:20], truth[20:30] = 0.8, -0.8
    false, naive = [], []
    for _ in range(20):
        base = rng.normal(size=(128, 171))
        found = drift(base, base + truth + rng.normal(size=base.shape), names)
        assert set(names[:20]) <= set(found.rose)
        assert set(names[20:30]) <= set(found.fell)
        false.append(1 - 30 / len(found.rose + found.fell))
        naive.append(1 - 30 / (found.p <= 0.05).sum())
        assert found.mean[names.index(found.rose[0])] == found.mean.max()  # the largest first
        assert found.mean[names.index(found.fell[0])] == found.mean.min()
    assert np.mean(false) < 0.07
    assert np.mean(naive) > 0.15  # control: without the correction


def test_where_nothing_moved_something_is_found_in_one_of_twenty_measurements_at_most() -> None:
    rng, names, finds, naive = np.random.default_rng(2), [str(i) for i in range(171)], 0, 0
    for _ in range(100):
        base = rng.normal(size=(64, 171))
        found = drift(base, base + rng.normal(size=base.shape), names)
        finds += bool(found.rose or found.fell)
        naive += bool((found.p <= 0.05).any())
    assert finds <= 12  # 5 expected
    assert naive == 100  # control: without the correction every one has a false find


# --- the whole move ---------------------------------------------------------------------------


def test_structure_and_agreement_are_correlations_of_mean_profiles() -> None:
    rng, base = np.random.default_rng(3), np.random.default_rng(4).normal(size=(60, 57))
    pushed = rng.normal(size=57)
    noise = 0.3 * rng.normal(size=base.shape)
    found = move(base, base + pushed + noise, NAMES, KINDS)
    now = base + pushed + noise
    assert found["mean_abs"] == pytest.approx(np.abs((now - base).mean(0)).mean())
    assert found["structure"]["value"] == pytest.approx(pearsonr(base.mean(0), now.mean(0))[0])
    half = pearsonr(base[:30].mean(0), now[:30].mean(0))[0]
    assert found["structure_neutral"]["value"] == pytest.approx(half)
    shifts = (now - base)[:30].mean(0), (now - base)[30:].mean(0)
    assert found["agreement"]["value"] == pytest.approx(pearsonr(*shifts)[0])
    assert found["agreement"]["low"] > 0.9  # one push for both kinds
    apart = base + np.where(np.arange(60)[:, None] < 30, pushed, -pushed) + noise
    assert move(base, apart, NAMES, KINDS)["agreement"]["high"] < -0.9  # control
    for name in ("structure", "structure_neutral", "structure_challenging", "agreement"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


def test_the_interval_of_a_correlation_covers_that_of_many_prompts() -> None:
    rng = np.random.default_rng(5)
    base, pushed = rng.normal(size=12), rng.normal(size=12)
    truth, inside = pearsonr(base, base + pushed)[0], 0
    for _ in range(200):
        of_each = base + 0.5 * rng.normal(size=(60, 12))
        now = of_each + pushed + 0.5 * rng.normal(size=of_each.shape)
        found = structure(of_each, now)
        inside += found["low"] <= truth <= found["high"]
    assert 0.88 < inside / 200 < 0.99


def test_the_centroid_moves_with_the_ratings_and_not_with_all_emotions_alike() -> None:
    ratings = [CATALOGUE.valence(e) for e in NAMES]
    z = (np.array(ratings) - np.mean(ratings)) / np.std(ratings)
    rng = np.random.default_rng(6)
    noise = 0.1 * rng.normal(size=(60, 57))
    found = centroid(0.4 * z + 3.0 + noise, ratings)
    assert found is not None
    assert found["value"] == pytest.approx(0.4, abs=0.02)
    assert found["low"] < 0.4 < found["high"]
    flat = centroid(3.0 + noise, ratings)
    assert flat is not None
    assert flat["value"] == pytest.approx(0, abs=0.02)  # control
    both = centroid(np.column_stack([0.4 * z + 3.0 + noise, 100 * noise[:, :1]]), [*ratings, None])
    assert both == found  # an emotion without a rating has no part in it


def test_likeness_to_the_published_shift_is_a_correlation_over_shared_emotions() -> None:
    own = np.array([shift()[e] for e in NAMES])
    rng = np.random.default_rng(7)
    alike = own + np.std(own) * rng.normal(size=57)
    found = likeness([*NAMES, "no such word"], np.append(alike, 99.0))
    assert found is not None
    assert found["emotions"] == 57
    assert found["value"] == pytest.approx(pearsonr(own, alike)[0])
    assert 0.3 < found["low"] < found["value"] < found["high"] < 1
    against = likeness(NAMES, -alike)
    assert against is not None
    assert against["value"] == pytest.approx(-found["value"])  # control
    assert likeness(NAMES[:7], alike[:7]) is None
    assert len(shift()) == 171
    assert max(shift(), key=shift().__getitem__) == "brooding"  # of Table 16


def test_span_is_the_share_of_the_move_along_the_directions_beside_chance() -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(2, 3, 20))
    rows = np.concatenate([rows, rows[:, :1] + rows[:, 1:2]], 1)  # one adds nothing
    inside = np.stack([rows[b].T @ rng.normal(size=4) for b in range(2)])
    across = np.stack([np.linalg.svd(rows[b])[2][-1] for b in range(2)])
    directions, names = probe(rows, "abcd"), tuple("abcd")
    readings = np.zeros((2, 2, 4))

    def found(went: np.ndarray) -> dict[str, Any]:
        base = snapshot(readings, np.zeros((2, 20)))
        return span(Move(names, (0, 1), KINDS[:2], base, snapshot(readings, went)), directions)

    assert found(inside)["span"]["value"] == pytest.approx(1, abs=1e-4)
    assert found(across)["span"]["value"] == pytest.approx(0, abs=1e-4)
    half = inside / np.linalg.norm(inside, axis=1, keepdims=True) + across
    assert found(half)["span"]["value"] == pytest.approx(0.5, abs=1e-4)
    assert found(half)["span"]["chance"] == 3 / 20
    assert found(half)["moved"] == pytest.approx(math.sqrt(2) / 4, rel=1e-5)
    random = np.mean([found(rng.normal(size=(2, 20)))["span"]["value"] for _ in range(200)])
    assert random == pytest.approx(3 / 20, abs=0.02)


# --- where there is little --------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_two_prompts_that_shift_alike_have_an_interval_of_no_width(shift: float, p: float) -> None:
    base = np.array([[0.25], [1.5]])
    found = drift(base, base + shift, ["calm"])
    assert found.low[0] == found.high[0] == shift
    assert found.p[0] == found.q[0] == p
    assert math.isnan(found.structure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [NAMES, ("calm",), ("calm", "desperate"), ("x", "y", "z")])
@pytest.mark.parametrize("kinds", [["neutral"] * 4, ["challenging", "neutral"], ["a", "b", "c"]])
@pytest.mark.parametrize("went", ["nowhere", "alike", "apart"])
def test_whatever_is_too_little_is_said_to_be_nothing(
    names: Sequence[str], kinds: list[str], went: str
) -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(size=(len(kinds), len(names)))
    now = base + {"nowhere": 0, "alike": 0.5, "apart": rng.normal(size=base.shape)}[went]
    found = move(base, now, names, kinds)
    assert (found["sonnet"] is None) == (len(names) < 8)
    assert (found["valence"] is None) == (names != NAMES)
    few = len(names) < 3
    assert math.isnan(found["structure"]["value"]) == few
    one_kind = not {"neutral", "challenging"} <= set(kinds)
    assert math.isnan(found["agreement"]["value"]) or not (few or one_kind or went == "nowhere")
    if went == "nowhere":
        assert math.isnan(found["span"]["value"])
        assert found["sonnet"] is None or math.isnan(found["sonnet"]["value"])
    event = Move(tuple(names), (0,), kinds, snapshot(base), snapshot(now)).event()
    assert list(event["colon"]["kinds"]) == list(dict.fromkeys(kinds))
    logs = scalars({"colon": drift(base, now, names)}, found)
    assert all(map(math.isfinite, logs.values()))
    assert ("emoreg/drift_structure" in logs) == (not few)


def test_agreement_needs_two_prompts_of_each_kind() -> None:
    shift = np.random.default_rng(10).normal(size=(5, 6))
    few = agreement(shift, ["neutral"] * 4 + ["challenging"])
    assert math.isnan(few["value"])
    enough = agreement(shift, ["neutral"] * 3 + ["challenging"] * 2)
    assert -1 <= enough["low"] < enough["high"] <= 1  # control
