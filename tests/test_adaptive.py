"""Adaptive weights follow the readings of a run, and no more than the task allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainers import (
    InOrder,
    control,
    logged,
    make_rows,
    make_trainer,
)
from windows import control as control_of_zoo
from windows import make as make_of_zoo


def path(trainer: Any, emotion: str, name: str = "") -> list[float]:
    return logged(trainer, f"emoreg/{name}weight/{emotion}")


def adaptive(folder: Path, kind: Any = InOrder, **how: Any) -> Any:
    args = {k: how.pop(k) for k in list(how) if k in Trained}
    trainer = make_trainer(folder, kind=kind, **{"learning_rate": 0.0, "max_steps": 4, **args})
    knobs = {"penalize": {"desperate": 0.1, "happy": 0.2}, "reward": {"calm": 0.3}, "blocks": [1]}
    control(trainer, **{**knobs, "target": 0.05, **how})
    trainer.train()
    return trainer


Trained = (
    "learning_rate", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "eval_strategy", "eval_steps", "eval_rows",
)  # fmt: skip


def test_weights_follow_the_mean_reading_beyond_the_target(tmp_path: Path) -> None:
    trainer = adaptive(tmp_path, target_rate=0.2, target=0.15)
    start, moves = {"desperate": 0.1, "happy": 0.2, "calm": 0.3}, set()
    for emotion, first in start.items():
        (reading, *same) = logged(trainer, f"emoreg/reading/{emotion}")
        assert same == [reading] * 3
        beyond = (-reading if emotion == "calm" else reading) - 0.15
        wanted = [max(0.0, first + 0.2 * beyond * (k + 1)) for k in range(4)]
        assert path(trainer, emotion) == pytest.approx(wanted, rel=1e-4)
        moves.add(beyond > 0)
    assert moves == {True, False}  # control: some rise and some fall


def test_weights_stay_under_the_ceiling_and_above_zero(tmp_path: Path) -> None:
    trainer = adaptive(tmp_path, target_rate=50.0, target=0.15, target_ceiling=0.7)
    last = [path(trainer, e)[-1] for e in ("desperate", "happy", "calm")]
    assert sorted({round(weight, 6) for weight in last}) == [0.0, 0.7]


def test_what_is_weighted_is_what_the_loss_has(tmp_path: Path) -> None:
    trainer = adaptive(tmp_path, target_rate=0.2)
    for step in (1, 3):  # with the weights after the step before
        row = trainer.state.log_history[step]
        before = trainer.state.log_history[step - 1]
        terms = {"desperate": "penalty", "happy": "penalty", "calm": "reward"}
        wanted = sum(
            before[f"emoreg/weight/{e}"] * row[f"emoreg/{kind}/{e}"] for e, kind in terms.items()
        )
        assert row["emoreg/loss"] == pytest.approx(wanted, rel=1e-4)


def test_accumulation_and_evaluations_do_not_change_the_path_of_the_weights(tmp_path: Path) -> None:
    whole = adaptive(tmp_path, learning_rate=1e-2)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "eval_rows": make_rows(3)}
    for args in (split, evaluated):
        other = adaptive(tmp_path, learning_rate=1e-2, **args)
        for emotion in ("desperate", "happy", "calm"):
            assert path(other, emotion) == pytest.approx(path(whole, emotion), rel=1e-5)
    naive = adaptive(tmp_path, learning_rate=1e-2, per_device_train_batch_size=4)
    assert path(naive, "calm") != pytest.approx(path(whole, "calm"), rel=1e-3)  # control


def test_only_the_sides_that_are_acted_on_count_for_the_weights(tmp_path: Path) -> None:
    found = {}
    for side in ("chosen", "rejected"):
        trainer = make_of_zoo("DPO", tmp_path, max_steps=1, learning_rate=0.0)
        control_of_zoo(trainer, target=0.0, target_rate=9.0, target_ceiling=99.0, sides=[side])
        trainer.train()
        (reading,) = logged(trainer, f"emoreg/reading_{side}/desperate")
        found[side] = path(trainer, "desperate")[0]
        assert found[side] == pytest.approx(1.0 + 9.0 * reading, rel=1e-4)
    assert found["chosen"] != pytest.approx(found["rejected"], rel=1e-3)  # control


class Worse(InOrder):
    """A task loss that is twice as high from step 12 on."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * (2 if self.state.global_step >= 12 else 1)


def test_no_weight_rises_while_the_task_suffers(tmp_path: Path) -> None:
    knobs = {"penalize": {"desperate": 0.1}, "reward": {"calm": 0.3}, "target": 0.0}
    closed, open_ = (
        adaptive(tmp_path, Worse, max_steps=16, target_utility=u, **knobs) for u in (0.05, 9.0)
    )
    gates = logged(closed, "emoreg/gate_closed")
    first = gates.index(1.0)
    assert gates == [0.0] * first + [1.0] * (16 - first)
    assert 12 <= first <= 13
    assert set(logged(open_, "emoreg/gate_closed")) == {0.0}
    ups = 0
    for emotion in ("desperate", "calm"):
        rises = path(open_, emotion)[-1] > path(open_, emotion)[0]
        assert path(closed, emotion)[:first] == path(open_, emotion)[:first]
        if rises:
            assert set(path(closed, emotion)[first:]) == {path(closed, emotion)[first - 1]}
            ups += 1
        else:
            assert path(closed, emotion) == path(open_, emotion)
    assert ups > 0  # control
