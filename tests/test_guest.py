"""A guest's manners: after a run, good or bad, everything of the user's is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from trainers import (
    EVERYTHING,
    PROMPT_FILE,
    Do,
    Recorder,
    assert_same,
    hooks,
    logged,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    make_vectors,
    weights,
)
from transformers import Trainer

from emoreg.callbacks import DriftCallback
from emoreg.journal import Run
from emoreg.prompts import load_prompts
from emoreg.regularizer import EmotionRegularizer
from emoreg.snapshot import by_emotion, colon_readings

State = dict[str, Any]


def invite(trainer: Trainer, **knobs: Any) -> None:
    """Both callbacks, with everything on that touches the model."""
    settings = {**EVERYTHING, "anchor": "base", "keep": 0.01, **knobs}
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **settings))
    drift = DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, drift_steps=1)
    trainer.add_callback(drift)


def belongings(trainer: Any) -> State:
    """What a guest could leave behind on a trainer, its model and its tokenizer."""
    methods = ("train", "compute_loss", "get_batch_samples", "log", "training_step", "evaluate")
    return {
        "attributes": set(vars(trainer)),
        "methods": {m: getattr(trainer, m) for m in methods},
        "hooks": hooks(trainer.model),
        "modes": {n: m.training for n, m in trainer.model.named_modules()},
        "trained": {n: p.requires_grad for n, p in trainer.model.named_parameters()},
        "model": {n: set(vars(m)) for n, m in trainer.model.named_modules()},
        "side": trainer.processing_class.padding_side,
    }


def broken_collator(trainer: Any) -> None:
    def collate(_rows: Any) -> Any:
        raise OSError("the disk is full")

    trainer.data_collator = collate


def broken_loss(trainer: Any) -> None:
    before = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        raise OSError("the disk is full")

    trainer.compute_loss = compute_loss


def interrupted(trainer: Any) -> None:
    def interrupt(**_kwargs: Any) -> None:
        raise KeyboardInterrupt

    trainer.add_callback(Do("on_step_end", interrupt))


ENDS: dict[str, tuple[Callable[[Any], None], type[BaseException] | None]] = {
    "good": (lambda _trainer: None, None),
    "collator": (broken_collator, OSError),
    "loss": (broken_loss, OSError),
    "interrupt": (interrupted, KeyboardInterrupt),
}


def spend(trainer: Trainer, error: type[BaseException] | None) -> None:
    if error is None:
        trainer.train()
    else:
        with pytest.raises(error):
            trainer.train()


@pytest.mark.parametrize("end", ENDS)
def test_a_run_leaves_nothing_behind_however_it_ends(end: str, tmp_path: Path) -> None:
    prepare, error = ENDS[end]
    found = []
    for guests in (False, True):  # the trainer's own traces are not ours
        trainer = make_trainer(
            tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, eval_rows=make_rows(2)
        )
        prepare(trainer)
        before = belongings(trainer)
        if guests:
            invite(trainer)
        spend(trainer, error)
        after = belongings(trainer)
        assert after["methods"] == before["methods"]
        del after["methods"]
        found.append(after)
    assert found[1] == found[0]


@pytest.mark.parametrize("end", ENDS)
def test_while_training_the_guest_is_there(end: str, tmp_path: Path) -> None:
    """The control of the test above: there is something to give back."""
    trainer = make_trainer(tmp_path)
    prepare, error = ENDS[end]
    prepare(trainer)
    before, seen = belongings(trainer), []
    invite(trainer)
    trainer.add_callback(Do("on_step_begin", lambda **_: seen.append(belongings(trainer))))
    trainer.add_callback(Do("on_epoch_begin", lambda **_: seen.append(belongings(trainer))))
    spend(trainer, error)
    for name in ("train", "compute_loss", "get_batch_samples", "log"):
        assert seen[0]["methods"][name] != before["methods"][name]


def test_a_second_run_of_the_same_trainer_is_controlled_like_the_first(tmp_path: Path) -> None:
    trainer, recorder = (
        make_trainer(
            tmp_path, learning_rate=0.0, max_steps=3, per_device_train_batch_size=4, logging_steps=2
        ),
        Recorder(),
    )  # the third step is in no line of the log
    invite(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    once = logged(trainer, "emoreg/loss")
    trainer.train()
    assert logged(trainer, "emoreg/loss") == once
    assert once[0] > 0
    assert_same(recorder.grads[3], recorder.grads[0], rtol=0, atol=0)
    steps = [row["step"] for row in trainer.state.log_history if "emoreg/drift/calm" in row]
    assert steps == [0, 1, 2, 3]
    assert [event["step"] for event in Run.load(tmp_path).drifts] == steps


def test_parameters_that_the_user_froze_stay_frozen(tmp_path: Path) -> None:
    def trained(guests: bool) -> tuple[dict[str, Any], list[float]]:
        trainer = make_trainer(tmp_path, max_steps=2)
        for name, parameter in trainer.model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        if guests:
            invite(trainer, penalize={"desperate": 0.0}, reward={"calm": 0.0}, keep=0.0)
        trainer.train()
        return weights(trainer.model), logged(trainer, "grad_norm")

    plain, norms = trained(False)
    found, same = trained(True)
    assert found.keys() == plain.keys()
    assert same == norms


def test_reading_drift_draws_no_randomness_and_changes_no_mode() -> None:
    model, tokenizer, probe = make_model(lora_dropout=0.5), make_tokenizer(), make_vectors().probe()
    model.train()
    model.get_base_model().model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    side, state = tokenizer.padding_side, torch.get_rng_state()
    prompts = load_prompts(PROMPT_FILE)
    first, second = (colon_readings(model, tokenizer, prompts, probe) for _ in range(2))
    assert (first == second).all()  # control: dropout, had it been on, would show
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert tokenizer.padding_side == side
    assert by_emotion(first, probe)[1].shape == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_model_gives_the_losses_and_the_control_of_an_eager_one(
    checkpointing: bool, tmp_path: Path
) -> None:
    def trained(**args: Any) -> tuple[list[float], list[float], list[dict[str, torch.Tensor]]]:
        torch._dynamo.reset()
        trainer = make_trainer(
            tmp_path, max_steps=3, per_device_train_batch_size=4, rows=make_rows(equal=True),
            eval_strategy="steps", eval_steps=2, eval_rows=make_rows(equal=True),
            gradient_checkpointing=checkpointing, **args,
        )  # fmt: skip
        recorder = Recorder()
        invite(trainer, penalize={"desperate": 1.0})
        trainer.add_callback(recorder)
        trainer.train()
        keys = ("loss", "emoreg/loss", "emoreg/penalty/desperate", "eval_loss", "eval_emoreg/keep")
        return [v for k in keys for v in logged(trainer, k)], recorder.grads

    eager, grads = trained()
    torch._dynamo.utils.counters.clear()
    compiled, same = trained(torch_compile=True, torch_compile_backend="aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # control: it was compiled
    assert len(eager) == 13
    assert compiled == pytest.approx(eager, rel=1e-4)
    for found, wanted in zip(same, grads, strict=True):
        assert_same(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_model_compiled_before_the_hooks_came_is_controlled_all_the_same(tmp_path: Path) -> None:
    torch._dynamo.reset()
    rows = make_rows(equal=True)
    trainer = make_trainer(
        tmp_path, rows=rows, eval_rows=rows, learning_rate=0.0, torch_compile=True,
        torch_compile_backend="aot_eager",
    )  # fmt: skip
    trainer.train()  # compiled, without hooks
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    invite(trainer, penalize={"desperate": 1.0})
    trainer.train()
    trainer.train()  # compiled with the hooks of the run before
    plain, first, second = recorder.grads
    assert_same(second, first)
    assert any(not torch.allclose(first[n], plain[n]) for n in plain)
