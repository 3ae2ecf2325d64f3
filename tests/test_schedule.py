"""The factor of a step by hand; dual ascent where the multiplier is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from emoreg.errors import ConfigError
from emoreg.schedule import HALF_LIFE, SCHEDULES, Dual, factor

NAMES = ("target", "rate", "ceiling", "utility")
UNUSED = 1e9  # a utility that never closes the gate


def dual(**changes: Any) -> Dual:
    start = changes.pop("start", {"x": 0.0})
    settings = {"target": 1.0, "rate": 0.1, "ceiling": 10.0, "utility": UNUSED}
    return Dual(start, **{**settings, **changes})


# max_steps, warmup, schedule -> factors of every step
BY_HAND = [
    (4, 0.0, "constant", [1, 1, 1, 1]),
    (4, 0.5, "constant", [0.5, 1, 1, 1]),
    (4, 1.0, "constant", [0.25, 0.5, 0.75, 1]),
    (4, 0.25, "constant", [1, 1, 1, 1]),
    (4, 0.0, "linear", [1, 0.75, 0.5, 0.25]),
    (6, 1 / 3, "linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
    (4, 1.0, "linear", [0.25, 0.5, 0.75, 1]),
    (1, 0.3, "linear", [1]),
]


@pytest.mark.parametrize(("steps", "warmup", "schedule", "wanted"), BY_HAND)
def test_the_factor_is_that_of_a_calculation_by_hand(
    steps: int, warmup: float, schedule: str, wanted: list[float]
) -> None:
    assert [factor(i, steps, warmup, schedule) for i in range(steps)] == pytest.approx(wanted)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100, 12345])
def test_a_constant_schedule_warms_up_as_it_always_did(steps: int, warmup: float) -> None:
    def before(step: int) -> float:
        rise = warmup * steps
        return min(1.0, (step + 1) / rise) if rise > 1 else 1.0

    at = range(0, steps, max(1, steps // 50))
    assert [factor(i, steps, warmup, "constant") for i in at] == [before(i) for i in at]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.37, 0.999, 1.0])
def test_a_linear_schedule_rises_then_falls_and_never_reaches_zero(warmup: float) -> None:
    found = [factor(i, 200, warmup, "linear") for i in range(200)]
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert max(found) == pytest.approx(1, abs=0.01)
    assert min(found) > 0
    assert warmup > 0.9 or found[-1] < 0.01  # control: it does fall


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_before_a_run_the_factor_is_one_and_after_it_that_of_the_last_step(schedule: str) -> None:
    assert factor(0, 0, 0.1, schedule) == 1
    assert factor(50, 50, 0.1, schedule) == factor(49, 50, 0.1, schedule) > 0


def test_an_unknown_schedule_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="constant, linear, got 'cosine'"):
        factor(0, 10, 0.0, "cosine")


def descend(
    weights: Dual, steps: int = 2000, told: Callable[[float], float | None] = lambda _: None
) -> list[tuple[float, float]]:
    """Least (x - 2)² with x <= 1 by gradient descent; the multiplier is 2. Pairs of x and it."""
    x, path = 0.0, []
    for _ in range(steps):
        x -= 0.05 * (2 * (x - 2) + weights.weights["x"])
        weights.update({"x": x}, told(x))
        path.append((x, weights.weights["x"]))
    return path


def loss(x: float) -> float:
    """The task loss of `descend`, above 0."""
    return (x - 2) ** 2 + 1


@pytest.mark.parametrize("start", [0.0, 9.0])
def test_dual_ascent_finds_the_multiplier(start: float) -> None:
    assert descend(dual(start={"x": start}))[-1] == pytest.approx((1, 2), abs=1e-6)
    assert descend(dual(start={"x": start}, rate=0.0))[-1][1] == start  # control


def test_a_constraint_that_does_not_bind_has_no_multiplier() -> None:
    assert descend(dual(start={"x": 5.0}, target=3.0))[-1] == pytest.approx((2, 0), abs=1e-6)


def test_each_emotion_has_its_own_multiplier() -> None:
    weights = dual(start={"up": 1.0, "down": 1.0, "silent": 1.0})
    weights.update({"up": 2.0, "down": 0.0}, None)
    assert weights.weights == pytest.approx({"up": 1.1, "down": 0.9, "silent": 1.0})


def test_no_weight_passes_the_ceiling_or_falls_below_zero() -> None:
    path = [weight for _, weight in descend(dual(ceiling=1.5, start={"x": 0.0}))]
    assert max(path) == path[-1] == 1.5
    assert min(path) == 0  # x starts within its limit


def test_the_gate_keeps_a_weight_from_rising_while_the_task_suffers() -> None:
    held, free = dual(utility=0.2, rate=0.005), dual(rate=0.005)
    x, weight = descend(held, told=loss)[-1]
    assert 0.2 < weight < 1.2
    assert loss(x) < 1.3  # of a lowest of 1
    assert held.gate_closed
    descend(free, told=loss)  # control: with room enough it goes where it would
    assert free.weights["x"] == pytest.approx(2, abs=0.05)
    assert not free.gate_closed


def closed() -> Dual:
    """Weights whose gate is closed, at 1."""
    weights = dual(start={"x": 1.0}, utility=0.1)
    for told in [1.0] * HALF_LIFE + [2.0] * HALF_LIFE:
        weights.update({"x": 1.0}, told)
    assert weights.gate_closed
    return weights


def test_a_closed_gate_lets_weights_fall_and_opens_when_the_loss_is_back() -> None:
    weights = closed()
    weights.update({"x": 5.0}, 2.0)
    assert weights.weights == {"x": 1.0}
    weights.update({"x": 0.0}, 2.0)
    assert weights.weights == {"x": pytest.approx(0.9)}
    for _ in range(10 * HALF_LIFE):
        weights.update({"x": 1.0}, 1.0)
    assert not weights.gate_closed
    weights.update({"x": 5.0}, 1.0)
    assert weights.weights == {"x": pytest.approx(1.3)}


def test_a_loss_weighs_half_after_the_half_life() -> None:
    """A half-life of ones and one of twos: the twos weigh 2 of 3, and the mean is 5/3."""
    for utility, wanted in ((0.66, True), (0.67, False)):
        weights = dual(utility=utility)
        for told in [1.0] * HALF_LIFE + [2.0] * HALF_LIFE:
            weights.update({"x": 1.0}, told)
        assert weights.gate_closed is wanted


def test_one_lucky_loss_at_the_start_does_not_close_the_gate() -> None:
    weights = dual(utility=0.1)
    for told in [0.1, *[2.0] * 50]:
        weights.update({"x": 1.0}, told)
        assert not weights.gate_closed


@pytest.mark.parametrize("told", [None, float("nan"), float("inf")])
def test_a_loss_that_is_none_or_not_finite_is_passed_over(told: float | None) -> None:
    open_, shut = dual(), closed()
    before = shut.state()
    for weights in (open_, shut):
        weights.update({"x": 2.0}, told)
    assert open_.weights == {"x": pytest.approx(0.1)}
    assert shut.state() == before


@pytest.mark.parametrize("first", [-0.01, -50.0, 0.0])
def test_a_policy_gradients_loss_never_closes_the_gate(first: float) -> None:
    weights = closed()
    for told in (first, *[3.0] * 100):
        weights.update({"x": 1.0}, told)
        assert not weights.gate_closed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_violation_that_is_not_finite_leaves_its_weight(value: float) -> None:
    weights = dual(start={"x": 0.5, "y": 0.5})
    weights.update({"x": value, "y": 2.0}, None)
    assert weights.weights == {"x": 0.5, "y": pytest.approx(0.6)}


def test_a_violation_of_an_emotion_without_a_weight_is_an_error() -> None:
    with pytest.raises(KeyError, match="y"):
        dual().update({"y": 1.0}, None)


@pytest.mark.parametrize("at", [0, 5, 137])
def test_a_run_that_is_resumed_goes_on_to_the_last_bit(at: int) -> None:
    settings = {"start": {"x": 0.1, "y": 0.7}, "utility": 0.2}

    def steps(weights: Dual, over: range) -> list[dict[str, Any]]:
        found = []
        for i in over:
            weights.update({"x": i % 7 / 3, "y": 1 / (i + 1)}, 2 + i % 97 / 30)
            found.append(weights.state() | {"closed": weights.gate_closed})
        return found

    first, second = dual(**settings), dual(**settings)
    steps(first, range(at))
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    fresh = dual(**settings)
    whole = steps(fresh, range(300))
    assert steps(second, range(at, 300)) == whole[at:]
    assert {row["closed"] for row in whole} == {True, False}  # control: the gate has a say
    if at:
        assert steps(dual(**settings), range(at, 300)) != whole[at:]  # and so has the state


def test_a_state_of_other_emotions_or_none_at_all_is_refused() -> None:
    weights = dual(start={"calm": 0.0, "desperate": 0.0})
    with pytest.raises(ConfigError, match=r"emotions \['x'\], wanted \['calm', 'desperate'\]"):
        weights.restore(dual().state())
    with pytest.raises(ConfigError, match=r"keys \['weights'\], wanted \['losses', 'lowest', "):
        weights.restore({"weights": {"calm": 0.0, "desperate": 0.0}})
    assert weights.weights == {"calm": 0.0, "desperate": 0.0}


def test_every_number_out_of_range_is_named_at_once() -> None:
    bad: dict[str, Any] = dict.fromkeys(NAMES, -1.0) | {"rate": float("nan")}
    with pytest.raises(ConfigError) as error:
        dual(**bad)
    assert all(name in str(error.value) for name in (*NAMES, "weight of x"))
    with pytest.raises(ConfigError, match=r"weight of x starts within 0 and the ceiling, 10.0"):
        dual(start={"x": 11.0})


def test_the_weights_that_are_handed_out_are_a_copy() -> None:
    weights = dual()
    weights.weights["x"] = 5.0
    weights.state()["weights"]["x"] = 5.0
    assert weights.weights == {"x": 0.0}
