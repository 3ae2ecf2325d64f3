"""Evaluation of every trainer: the readings are there and right, and nothing else has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hand import blocks_of, by_hand
from models import counting
from trainers import logged
from windows import (
    NO_EVALUATION,
    READABLE,
    Rollout,
    Row,
    cells,
    control,
    make,
    of_data,
    unit_of,
)

READINGS = ("reading/desperate", "reading/calm", "reading/happy", "penalty/desperate", "loss")


class Evaluated:
    """A trainer that stands still and evaluates once, on four rows of the data of `zoo`."""

    def __init__(self, name: str, tmp_path: Path, **knobs: Any) -> None:
        self.trainer = make(
            name, tmp_path, max_steps=1, learning_rate=0.0, eval_strategy="steps", eval_steps=1
        )
        self.rows: list[Row] = []
        self.forwards: list[int] = []
        self._rollout = Rollout(self.trainer.model, scripted=False)
        self._evaluate = self.trainer.evaluate
        self.trainer.evaluate = self
        if knobs:
            control(self.trainer, **knobs)
        self.trainer.train()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._rollout.rows = []
        with counting(blocks_of(self.trainer.model)) as calls:
            found = self._evaluate(*args, **kwargs)
        self.rows, self.forwards = self._rollout.rows, calls
        return found

    def log(self, key: str) -> list[float]:
        return logged(self.trainer, key)


@pytest.mark.parametrize(
    "name", cells("evaluation", [name for name in READABLE if name not in NO_EVALUATION])
)
def test_evaluation_keeps_its_loss_and_its_forwards_and_reports_the_readings(
    name: str, tmp_path: Path
) -> None:
    plain, found = Evaluated(name, tmp_path), Evaluated(name, tmp_path, margin=0.0)
    assert found.log("eval_loss") == plain.log("eval_loss")
    assert len(found.log("eval_loss")) == 1
    assert found.forwards == plain.forwards
    assert found.log("loss")[0] > plain.log("loss")[0] + 0.01  # control: training has it
    with torch.no_grad():
        rows = found.rows or of_data(name, range(4))
        means = by_hand(found.trainer.model.eval(), rows, unit_of(name))
    for key in READINGS:
        got = found.log(f"eval_emoreg/{key}")
        assert got == pytest.approx([means[key].item()], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "name", cells("evaluation", ["OnlineDPO"], refused="TRL's own evaluation of it fails")
)
def test_trl_cannot_evaluate_online_dpo_even_without_emoreg(name: str, tmp_path: Path) -> None:
    """It has no `prediction_step`, and the inherited one calls the model with prompts."""
    trainer = make(name, tmp_path, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        trainer.evaluate()
