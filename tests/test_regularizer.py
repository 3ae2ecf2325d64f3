"""What the regularizer adds to a trainer's loss, what it leaves alone, and what it refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trainers import (
    EMOTIONS,
    EVERYTHING,
    PROMPT_FILE,
    Do,
    Recorder,
    assert_same,
    ids_and_labels,
    logged,
    make_base,
    make_config,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    make_vectors,
    read_by_hand,
    weights,
)
from transformers import Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTTrainer

from emoreg.blocks import find_backbone
from emoreg.callbacks import DriftCallback
from emoreg.errors import (
    CaptureError,
    ConfigError,
    EmoregError,
    MissingExtraError,
    TrainerError,
    UnknownEmotionError,
    VectorFileError,
    VectorMismatchError,
)
from emoreg.metrics import METRICS
from emoreg.regularizer import EmotionRegularizer
from emoreg.vectors import EmotionVectors

ZERO: dict[str, Any] = {"penalize": {"desperate": 0.0}, "reward": {"calm": 0.0}}


def control(trainer: Any, vectors: Any = None, **knobs: Any) -> EmotionRegularizer:
    """A regularizer that is added to its trainer."""
    found = EmotionRegularizer(trainer, vectors or make_vectors(), **{**EVERYTHING, **knobs})
    trainer.add_callback(found)
    return found


# --- weight 0 -------------------------------------------------------------------------------


def test_weight_zero_leaves_training_bit_identical(tmp_path: Path) -> None:
    def trained(*knobs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[float]]:
        trainer = make_trainer(
            tmp_path, make_model(awake=False, lora_dropout=0.1), kind=SFTTrainer, max_steps=4,
            per_device_train_batch_size=2, eval_strategy="steps", eval_steps=1, eval_rows=make_rows(3),
            gradient_checkpointing=True, max_grad_norm=1.0,
        )  # fmt: skip
        for k in knobs:
            control(trainer, **k)
            trainer.add_callback(DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=1))
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
def test_checkpointing_of_either_kind_does_not_change_the_gradient(anchor: str, tmp_path: Path) -> None:
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


def test_excess_is_the_reading_minus_that_of_the_model_with_its_adapters_off(tmp_path: Path) -> None:
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
        assert logged(trainer, f"emoreg/excess/{emotion}") == pytest.approx([wanted.item()], rel=1e-4)
        assert abs(wanted) > 1e-3  # control: the adapters do something


def test_excess_is_zero_while_the_adapters_are_and_then_moves(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(awake=False), max_steps=3)
    control(trainer, anchor="base", keep=0.1)
    trainer.train()
    for name in ("excess/desperate", "excess/happy", "penalty/desperate", "keep"):
        first, *later = logged(trainer, f"emoreg/{name}")
        assert first == pytest.approx(0, abs=1e-9)
        assert all(abs(value) > 1e-6 for value in later)


def test_the_weights_rise_over_the_warm_up(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=4, learning_rate=0.0)
    control(trainer, warmup=0.75)
    trainer.train()
    full = logged(trainer, "emoreg/loss")[-1]
    assert logged(trainer, "emoreg/loss") == pytest.approx([full / 3, full * 2 / 3, full, full])
    assert full > 0


def test_evaluation_reports_the_readings_and_leaves_the_loss(tmp_path: Path) -> None:
    def evaluated(**knobs: Any) -> Any:
        trainer = make_trainer(
            tmp_path, max_steps=2, learning_rate=0.0, eval_strategy="steps", eval_steps=1,
            eval_rows=make_rows(3), per_device_eval_batch_size=2,
        )  # fmt: skip
        if knobs:
            control(trainer, **knobs)
        trainer.train()
        return trainer

    plain, controlled = evaluated(), evaluated(anchor="base", keep=0.1)
    assert logged(controlled, "eval_loss") == logged(plain, "eval_loss")
    assert logged(controlled, "loss")[0] > logged(plain, "loss")[0] + 0.01  # control: training has it
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


# --- refusals -------------------------------------------------------------------------------


def other_vectors(**changes: Any) -> EmotionVectors:
    vectors = make_vectors()
    return replace(vectors, card={**vectors.card, "model": {**vectors.card["model"], **changes}})


def spoiled(value: float) -> EmotionVectors:
    vectors = make_vectors()
    first = vectors.facets[0]
    directions = first.directions.clone()
    directions[2, 1, 0] = value
    return replace(vectors, facets=(replace(first, directions=directions), *vectors.facets[1:]))


def named_model() -> Any:
    model = make_model()
    model.config._name_or_path = "somebody/other-name"
    return model


Case = tuple[type[EmoregError], str, Callable[[], Any], Any, dict[str, Any]]
REFUSED: dict[str, Case] = {  # error, what the message says, model, vectors, knobs
    "width": (VectorMismatchError, "width: vectors 32, model 16", lambda: make_base(width=16), None, {}),
    "blocks": (VectorMismatchError, "blocks: vectors 3, model 4", lambda: make_base(blocks=4), None, {}),
    "name": (VectorMismatchError, "other-name.*check_name", named_model, None, {}),
    "tokenizer": (VectorMismatchError, "tokenizer: vectors 'x'", make_model, other_vectors(tokenizer="x"), {}),
    "emotion": (UnknownEmotionError, "'desparate'.*nearest: desperate", make_model, None,
                {"penalize": {"desparate": 0.1}}),
    "both": (ConfigError, "calm: both penalised and rewarded", make_model, None,
             {"penalize": {"calm": 0.1}}),
    "weight": (ConfigError, r"finite numbers >= 0, got \{'calm': -1", make_model, None,
               {"reward": {"calm": -1}}),
    "margin": (ConfigError, "emoreg_margin must be a finite number >= 0, got -0.5", make_model, None,
               {"margin": -0.5}),
    "knob": (ConfigError, "'penalise'; nearest: penalize", make_model, None, {"penalise": {}}),
    "block": (UnknownEmotionError, r"Blocks \[3\].*holds blocks \[0, 1, 2\]", make_model, None,
              {"blocks": [3]}),
    "reach": (ConfigError, "at or below block 1", lambda: make_model(layers_to_transform=[2]), None, {}),
    "base": (ConfigError, "no adapters to switch off", make_base, None, {"anchor": "base"}),
    "nan": (VectorFileError, "stories: NaN or infinite directions for desperate", make_model,
            spoiled(float("nan")), {}),
    "length": (VectorFileError, "unit length .desperate is off", make_model, spoiled(3.0), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_when_the_callback_is_made(case: Case, tmp_path: Path) -> None:
    error, message, build, vectors, knobs = case
    trainer = make_trainer(tmp_path, build())
    before = dict(vars(trainer))
    with pytest.raises(error, match=f"(?s){message}"):
        EmotionRegularizer(trainer, vectors or make_vectors(), **{**EVERYTHING, **knobs})
    assert vars(trainer) == before


def test_a_renamed_model_is_accepted_when_asked_and_low_adapters_are_always(tmp_path: Path) -> None:
    control(make_trainer(tmp_path, named_model()), check_name=False)
    control(make_trainer(tmp_path, make_model(layers_to_transform=[0])))


def test_something_that_is_no_trainer_is_refused() -> None:
    with pytest.raises(TrainerError, match="got LlamaForCausalLM.*EmotionTerms"):
        EmotionRegularizer(make_base(), make_vectors())  # type: ignore[arg-type]


def test_a_second_regularizer_on_one_trainer_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    with pytest.raises(ConfigError, match="has an EmotionRegularizer already"):
        EmotionRegularizer(trainer, make_vectors())


def test_wandb_asked_for_and_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.args.report_to = ["wandb"]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else found(n, *a))
    with pytest.raises(MissingExtraError, match=r"emoreg\[wandb\]"):
        EmotionRegularizer(trainer, make_vectors())


def refused_in_training(trainer: Trainer, error: type[EmoregError], message: str) -> None:
    """Training raises, before the optimizer moved anything."""
    before = [(p, p.detach().clone()) for p in trainer.model.parameters()]
    with pytest.raises(error, match=message):
        trainer.train()
    assert all(torch.equal(now, was) for now, was in before)


def test_the_callback_of_another_trainer_is_refused(tmp_path: Path) -> None:
    first, second = make_trainer(tmp_path), make_trainer(tmp_path)
    second.add_callback(EmotionRegularizer(first, make_vectors()))
    refused_in_training(second, TrainerError, "made for another trainer")


def test_data_without_completion_tokens_is_refused(tmp_path: Path) -> None:
    ids = [i for i, _ in ids_and_labels(make_rows())]
    rows = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * len(i) for i in ids]})
    trainer = make_trainer(tmp_path, rows=rows)
    control(trainer)
    refused_in_training(trainer, CaptureError, "every label is -100.*no completion tokens")


def test_a_trainer_whose_batches_carry_no_labels_is_refused(tmp_path: Path) -> None:
    rows = make_rows().add_column("rejected", ["No."] * 8).rename_column("completion", "chosen")
    shared = make_config(tmp_path)
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1,
        dataloader_pin_memory=shared.dataloader_pin_memory, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = DPOTrainer(
        model=make_model(), args=args, train_dataset=rows, processing_class=make_tokenizer()
    )
    control(trainer)
    refused_in_training(trainer, CaptureError, "batches of DPOTrainer carry no labels")


def test_a_model_whose_blocks_are_bypassed_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    head = trainer.model.get_base_model()

    def swap(**_kwargs: Any) -> None:
        head.model = make_base().model  # after the tap was made for the old one

    trainer.add_callback(Do("on_train_begin", swap))
    refused_in_training(trainer, CaptureError, "0 forwards with gradients")


def test_several_policy_forwards_in_one_loss_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = trainer.compute_loss
    trainer.compute_loss = lambda *a, **k: before(*a, **k) + before(*a, **k)
    control(trainer)
    refused_in_training(trainer, CaptureError, "2 forwards with gradients")


def test_a_capture_without_gradient_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    trainer.add_callback(Do("on_train_begin", lambda model, **_: model.requires_grad_(False)))
    refused_in_training(trainer, CaptureError, "no gradient.*enable_input_require_grads")
