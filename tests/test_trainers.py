"""Every trainer of TRL: the term's gradient is that of a direct computation, and weight 0 is none.

The direct computation (`hand`) runs the policy over the sequences of a window one by one; which
these are is known from the data, or from what generation was made to say (`windows`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from hand import error
from models import with_lora
from torch import Tensor, nn
from trainers import PROMPT_FILE, logged, weights
from windows import (
    NO_EVALUATION,
    READABLE,
    UNREAD,
    Watch,
    cells,
    control,
    make,
    silence,
)

from emoreg.callbacks import DriftCallback
from emoreg.errors import CaptureError

NOTHING = {"penalize": {"desperate": 0.0}, "reward": {"calm": 0.0}}


def assert_by_hand(trainer: Any, name: str, **how: Any) -> Watch:
    """Train with the terms alone; every step has the gradient and the log of a computation."""
    silence(trainer)
    watch = Watch(trainer, name)
    control(trainer)
    trainer.train()
    assert len(watch.grads) == trainer.args.max_steps
    for step, grads in enumerate(watch.grads):
        means, wanted = watch.wanted(step, **how)
        assert error(grads, wanted) < 1e-5
        for key in ("loss", "penalty/desperate", "reward/calm", "reading/desperate"):
            found = logged(trainer, f"emoreg/{key}")[step]
            assert found == pytest.approx(means[key], rel=1e-5, abs=1e-6)
    assert len({len(row.ids) for row in watch.windows[0]}) > 1  # control: of ragged lengths
    return watch


@pytest.mark.parametrize("name", cells("LoRA", READABLE, fast=READABLE))
def test_with_lora_every_step_has_the_gradient_and_the_log_of_a_direct_computation(
    name: str, tmp_path: Path
) -> None:
    watch = assert_by_hand(make(name, tmp_path), name)
    assert error(watch.grads[1], watch.grads[0]) > 0.01  # control: another window, other weights
    assert all("lora" in key for key in watch.grads[0] if "score" not in key)


@pytest.mark.parametrize("name", cells("full", READABLE, fast=("SFT", "GRPO")))
def test_full_fine_tuning_has_that_gradient_too(name: str, tmp_path: Path) -> None:
    trainer = make(name, tmp_path, lora=False)
    before = weights(trainer.model)
    watch = assert_by_hand(trainer, name)
    assert watch.grads[0]["model.embed_tokens.weight"].norm() > 1e-3
    assert any(not torch.equal(now, before[n]) for n, now in weights(trainer.model).items())


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_the_terms_weigh_what_the_loss_of_grpo_weighs(loss_type: str, tmp_path: Path) -> None:
    trainer = make("GRPO", tmp_path, loss_type=loss_type, max_steps=1)
    unit = "sequences" if loss_type == "grpo" else "tokens"
    watch = assert_by_hand(trainer, "GRPO", unit=unit)
    _, other = watch.wanted(unit="tokens" if unit == "sequences" else "sequences")
    assert error(watch.grads[0], other) > 0.01  # control: the units differ


@pytest.mark.parametrize("name", cells("weight 0", READABLE))
def test_weight_zero_leaves_training_bit_identical(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.LORA, "lora_dropout", 0.1)
    evaluates = {"eval_strategy": "steps", "eval_steps": 1} if name not in NO_EVALUATION else {}
    known = zoo.TRAINERS[name].config.__dataclass_fields__
    awake = {"disable_dropout": False} if "disable_dropout" in known else {}

    def trained(**knobs: Any) -> tuple[dict[str, Tensor], list[float]]:
        model = None
        if "peft_config" not in zoo.TRAINERS[name].needs:
            model = with_lora(zoo.at_home(zoo.head(), tmp_path / "policy"), lora_dropout=0.1)
        trainer = zoo.make(name, tmp_path, model, **awake, **evaluates)
        assert dropout(trainer.model)  # control: there is something random
        if knobs:
            vectors = control(trainer, **knobs).vectors
            drift = DriftCallback(trainer, vectors, prompts=PROMPT_FILE, drift_steps=1)
            trainer.add_callback(drift)
        trainer.train()
        assert bool(logged(trainer, "eval_loss")) == bool(evaluates)
        return weights(trainer.model), logged(trainer, "loss") + logged(trainer, "eval_loss")

    plain, losses = trained()
    measured, same = trained(**NOTHING)
    assert all(torch.equal(measured[n], plain[n]) for n in plain)
    assert same == losses
    controlled, _ = trained(penalize={"desperate": 0.1})
    assert any(not torch.equal(controlled[n], plain[n]) for n in plain)


def dropout(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


if UNREAD.keys() & zoo.TRAINERS.keys():

    @pytest.mark.parametrize("name", UNREAD)
    def test_what_cannot_be_read_is_refused_before_anything_has_moved(
        name: str, tmp_path: Path
    ) -> None:
        trainer = make(name, tmp_path)
        before = weights(trainer.model)
        control(trainer)
        with pytest.raises(CaptureError, match=UNREAD[name]):
            trainer.train()
        assert all(torch.equal(now, before[n]) for n, now in weights(trainer.model).items())
