"""What the regularizer adds to a trainer's loss, what it leaves alone, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import ids_and_labels, read_by_hand
from trainers import (
    EMOTIONS,
    PROMPT_FILE,
    InOrder,
    Recorder,
    assert_same,
    control,
    logged,
    make_model,
    make_prompted,
    make_rows,
    make_trainer,
    make_vectors,
    weights,
)
from trl import SFTTrainer

from emoreg.callbacks import DriftCallback

ZERO: dict[str, Any] = {"penalize": {"desperate": 0.0}, "reward": {"calm": 0.0}}


# --- weight 0 -------------------------------------------------------------------------------


def test_weight_zero_leaves_training_bit_identical(tmp_path: Path) -> None:
    def trained(*knobs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[float]]:
        trainer = make_trainer(
            tmp_path, make_model(awake=False, lora_dropout=0.1), kind=SFTTrainer, max_steps=4,
            per_device_train_batch_size=2, eval_strategy="steps", eval_steps=1,
            eval_rows=make_rows(3), gradient_checkpointing=True, max_grad_norm=1.0,
        )  # fmt: skip
        for k in knobs:
            control(trainer, **k)
            trainer.add_callback(
                DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=1)
            )
        trainer.train()
        return weights(trainer.model), logged(trainer, "loss") + logged(trainer, "eval_loss")

    plain, losses = trained()
    measured, same = trained(ZERO)
    assert all(torch.equal(measured[n], plain[n]) for n in plain)
    assert same == losses
    controlled, _ = trained({"penalize": {"desperate": 0.1}})
    assert any(not torch.equal(controlled[n], plain[n]) for n in plain)


# --- checkpointing --------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", ["neutral", "base"])
def test_checkpointing_of_either_kind_does_not_change_the_gradient(
    anchor: str, tmp_path: Path
) -> None:
    def gradient(**args: Any) -> dict[str, torch.Tensor]:
        trainer, recorder = make_trainer(tmp_path, **args), Recorder()
        control(trainer, anchor=anchor)
        trainer.add_callback(recorder)
        trainer.train()
        return recorder.grads[0]

    plain = gradient()
    for reentrant in (False, True):
        found = gradient(
            gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        assert_same(found, plain, atol=1e-5)


# --- anchor, keep, pool, warm-up, evaluation ------------------------------------------------


def test_excess_is_the_reading_minus_that_of_the_model_with_its_adapters_off(
    tmp_path: Path,
) -> None:
    model = make_model()
    trainer = make_trainer(tmp_path, model)
    control(trainer, anchor="base", blocks=[1])
    before = []  # excess of every counted token, by hand
    for ids, labels in ids_and_labels(make_rows()):
        at = [i - 1 for i in range(1, len(ids)) if labels[i] != -100] + [len(ids) - 1]
        with torch.no_grad():
            now = read_by_hand(model, ids, at)
            with model.disable_adapter():
                base = read_by_hand(model, ids, at)
        before.append({k: now[k] - base[k] for k in now})
    trainer.train()
    for emotion in EMOTIONS:
        rows = [k for k in before[0] if k[1:] == (emotion, 1)]
        wanted = torch.cat([torch.stack([row[k] for k in rows]).mean(0) for row in before]).mean()
        assert logged(trainer, f"emoreg/excess/{emotion}") == pytest.approx(
            [wanted.item()], rel=1e-4
        )
        assert abs(wanted) > 1e-3  # control: the adapters do something


def test_excess_is_zero_while_the_adapters_are_and_then_moves(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(awake=False), max_steps=3)
    control(trainer, anchor="base", keep=0.1)
    trainer.train()
    for name in ("excess/desperate", "excess/happy", "penalty/desperate", "keep"):
        first, *later = logged(trainer, f"emoreg/{name}")
        assert first == pytest.approx(0, abs=1e-9)
        assert all(abs(value) > 1e-6 for value in later)


def test_under_autocast_the_base_is_read_as_the_policy_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(awake=False), bf16=True)
    control(trainer, anchor="base")
    dtypes = []
    layer = trainer.model.get_base_model().model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda *a: dtypes.append(a[-1].dtype))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}  # control: it is autocast
    assert logged(trainer, "emoreg/excess/desperate") == [0.0]
    assert abs(logged(trainer, "emoreg/reading/desperate")[0]) > 1e-3


def test_a_model_in_half_precision_gets_a_control_in_single(tmp_path: Path) -> None:
    def value(dtype: torch.dtype) -> float:
        trainer = make_trainer(tmp_path, make_model().to(dtype))
        control(trainer)
        trainer.train()
        return logged(trainer, "emoreg/loss")[0]

    assert value(torch.bfloat16) == pytest.approx(value(torch.float32), rel=0.05)


def test_the_weights_rise_over_the_warm_up(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=4, learning_rate=0.0)
    control(trainer, warmup=0.75)
    trainer.train()
    full = logged(trainer, "emoreg/loss")[-1]
    assert logged(trainer, "emoreg/loss") == pytest.approx([full / 3, full * 2 / 3, full, full])
    assert full > 0


class Graded(InOrder):
    """Evaluates with gradients on, which nothing forbids."""

    def prediction_step(self, model: Any, inputs: Any, *_args: Any, **_kwargs: Any) -> Any:
        with torch.enable_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        assert loss.requires_grad
        return loss.detach(), None, None


@pytest.mark.parametrize("kind", [InOrder, Graded])
def test_evaluation_reports_the_readings_and_leaves_the_loss(
    kind: type[SFTTrainer], tmp_path: Path
) -> None:
    def evaluated(**knobs: Any) -> Any:
        trainer = make_trainer(
            tmp_path, kind=kind, max_steps=2, learning_rate=0.0, eval_strategy="steps",
            eval_steps=1, eval_rows=make_rows(3), per_device_eval_batch_size=2,
        )  # fmt: skip
        if knobs:
            control(trainer, **knobs)
        trainer.train()
        return trainer

    plain, controlled = evaluated(), evaluated(anchor="base", keep=0.1)
    assert logged(controlled, "eval_loss") == logged(plain, "eval_loss")
    assert (
        logged(controlled, "loss")[0] > logged(plain, "loss")[0] + 0.01
    )  # control: training has it
    found = {k for row in controlled.state.log_history for k in row}
    trained = {k for k in found if k.startswith("emoreg/")} - {"emoreg/seconds"}
    assert {f"eval_{k}" for k in trained} == {k for k in found if k.startswith("eval_emoreg/")}
    assert "emoreg/excess/calm" in trained


def test_every_evaluation_set_gets_its_own_readings(tmp_path: Path) -> None:
    sets = {"a": make_rows(2), "b": make_rows().select(range(2, 8))}
    trainer = make_trainer(
        tmp_path, eval_strategy="steps", eval_steps=1, eval_rows=sets, learning_rate=0.0
    )
    control(trainer)
    trainer.train()
    (a,), (b,) = (logged(trainer, f"eval_{name}_emoreg/reading/calm") for name in "ab")
    assert a != b
    (whole,) = logged(trainer, "emoreg/reading/calm")
    assert min(a, b) < whole < max(a, b)


def test_virtual_tokens_come_first_and_do_not_count(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, make_prompted()), Recorder()
    control(trainer, penalize={"desperate": 1.0}, reward={}, blocks=[1])
    trainer.add_callback(recorder)
    model, found = trainer.model, []
    for ids, labels in ids_and_labels(make_rows()):
        at = [i for i in range(1, len(ids)) if labels[i] != -100]
        shifted = [3 + i for i in (at[0] - 1, *at)]
        hand = read_by_hand(model, ids, shifted)
        found.append(torch.stack([hand[f, "desperate", 1] for f in ("stories", "transcripts")]))
    wanted = torch.cat(found, 1).mean().item()
    trainer.train()
    assert logged(trainer, "emoreg/reading/desperate") == pytest.approx([wanted], rel=1e-4)
    assert all(g.abs().sum() > 0 for g in recorder.grads[0].values())
