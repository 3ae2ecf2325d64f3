"""Prevent, ablate and cap: what is not edited, and that nothing stays behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import checkpointing
from edited import METHODS, TEXTS, gradient_by_hand, of_every_method, of_one_method, step
from hand import READ, blocks_of, error
from torch import Tensor, nn
from trainers import (
    Do,
    InOrder,
    Recorder,
    control,
    hooks,
    logged,
    make_model,
    make_rows,
    make_trainer,
    weights,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTTrainer

from emoreg.errors import ConfigError

# --- what is not ----------------------------------------------------------------------------


@of_every_method
def test_an_evaluation_is_of_the_model_without_edits(method: str, tmp_path: Path) -> None:
    rows = {"eval_rows": make_rows(3), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    trainer, recorder = step(tmp_path, method, **rows)
    plain, other = step(tmp_path, **rows)
    assert logged(trainer, "eval_loss") == logged(plain, "eval_loss")
    assert len(logged(trainer, "eval_loss")) == 3
    assert logged(trainer, "loss") != logged(plain, "loss")  # control: training is edited
    for found, unedited in zip(recorder.grads, other.grads, strict=True):
        assert error(found, unedited) > 1e-2  # also after an evaluation


@of_every_method
def test_what_is_read_is_a_blocks_own_output_before_the_edit(method: str, tmp_path: Path) -> None:
    trainer, _ = step(tmp_path, method, _blocks=[1])
    plain, _ = step(tmp_path, method, _blocks=[1], _penalize={"desperate": 0}, _reward={})
    found = {k: v for k, v in trainer.state.log_history[0].items() if k.startswith("emoreg/")}
    for emotion in ("desperate", "calm", "happy"):
        assert logged(trainer, f"emoreg/reading/{emotion}") == pytest.approx(
            logged(plain, f"emoreg/reading/{emotion}"), rel=1e-6
        )
    assert found["emoreg/loss"] == 0
    assert found["emoreg/penalty/desperate"] > 0  # what a penalty would act on is told all the same
    later, _ = step(tmp_path, method)
    assert logged(later, "emoreg/reading/desperate") != pytest.approx(
        logged(step(tmp_path, method, _penalize={"desperate": 0}, _reward={})[0],
               "emoreg/reading/desperate"), rel=1e-3,
    )  # control: a later block gets what was edited  # fmt: skip


@of_one_method
def test_with_weight_zero_training_is_bit_identical(method: str, tmp_path: Path) -> None:
    def trained(**knobs: Any) -> tuple[dict[str, Tensor], list[float]]:
        trainer = make_trainer(
            tmp_path, make_model(awake=False, lora_dropout=0.1), kind=SFTTrainer, max_steps=3,
            per_device_train_batch_size=2,
        )  # fmt: skip
        if knobs:
            control(trainer, method=method, **knobs)
        trainer.train()
        return weights(trainer.model), logged(trainer, "loss")

    plain, losses = trained()
    measured, same = trained(penalize={"desperate": 0.0}, reward={"calm": 0.0})
    assert all(torch.equal(measured[n], plain[n]) for n in plain)
    assert same == losses
    moved, _ = trained(**METHODS[method])
    assert any(not torch.equal(moved[n], plain[n]) for n in plain)  # control


class Broken(InOrder):
    """Fails in the middle of a forward, at its second step."""

    fails = True

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 1 and self.fails:
            blocks_of(model)[2].register_forward_pre_hook(self._fail)
        return super().compute_loss(model, *args, **kwargs)

    def _fail(self, *_: Any) -> None:
        raise KeyError("on purpose")


@of_one_method
def test_nothing_stays_on_the_model_after_training_or_an_error(method: str, tmp_path: Path) -> None:
    model, ids = make_model(), torch.tensor([[5, 6, 7, 8]])
    for kind in (InOrder, Broken):
        before = hooks(model)
        trainer = make_trainer(tmp_path, model, kind=kind, max_steps=2, learning_rate=0.0)
        own = set(vars(trainer))
        control(trainer, method=method, **METHODS[method])
        wanted = model(input_ids=ids).logits
        during: list[Any] = []
        trainer.add_callback(
            Do("on_step_begin", lambda during=during, **_: during.append(hooks(model)))
        )
        if kind is Broken:
            with pytest.raises(KeyError, match="on purpose"):
                trainer.train()
            model.get_base_model().model.layers[2]._forward_pre_hooks.clear()  # the test's own
        else:
            trainer.train()
        assert hooks(model) == before
        assert len(during[0]) > len(before)  # control: there were some
        assert "compute_loss" not in set(vars(trainer)) - own
        assert torch.equal(model.train()(input_ids=ids).logits, wanted)


def test_a_step_after_one_that_failed_is_edited_as_any_other(tmp_path: Path) -> None:
    model = make_model()
    trainer = make_trainer(tmp_path, model, kind=Broken, max_steps=2, learning_rate=0.0)
    control(trainer, method="cap", **{**METHODS["cap"], "blocks": READ})
    with pytest.raises(KeyError):
        trainer.train()
    model.get_base_model().model.layers[2]._forward_pre_hooks.clear()
    trainer.fails, recorder = False, Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    _, wanted = gradient_by_hand(model, "cap")
    assert [error(g, wanted) < 1e-5 for g in recorder.grads] == [True, True]


# --- in company -----------------------------------------------------------------------------


class Twice(InOrder):
    """Runs other tokens with gradients before those of its batch, as many or more of them."""

    more = 0

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = inputs["input_ids"]
        other = torch.full((len(ids), ids.shape[1] + self.more), 9)
        self.beside = model(input_ids=other).logits
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("more", [0, 3])
@of_one_method
def test_a_forward_of_other_tokens_is_left_alone(method: str, more: int, tmp_path: Path) -> None:
    model = make_model()
    trainer, recorder = make_trainer(tmp_path, model, kind=Twice, learning_rate=0.0), Recorder()
    trainer.more = more
    control(trainer, method=method, blocks=READ, **METHODS[method])
    trainer.add_callback(recorder)
    trainer.train()
    _, wanted = gradient_by_hand(model, method)
    assert error(recorder.grads[0], wanted) < 1e-5
    with torch.no_grad():
        plain = model.train()(input_ids=torch.full(trainer.beside.shape[:2], 9)).logits
    assert torch.allclose(trainer.beside, plain, atol=1e-5)


@of_one_method
def test_regularizers_act_in_the_order_they_were_added_in(method: str, tmp_path: Path) -> None:
    def reading(*order: str) -> float:
        trainer = make_trainer(tmp_path, learning_rate=0.0)
        for name in order:
            knobs = {"method": method, **METHODS[method]} if name == "edits" else {}
            control(
                trainer, **{"penalize": {"desperate": 0.1}, "blocks": [1], "name": name, **knobs}
            )
        trainer.train()
        return logged(trainer, "emoreg/reads/reading/desperate")[0]

    assert reading("reads", "edits") == reading("reads")
    assert reading("edits", "reads") != pytest.approx(reading("reads"), rel=1e-3)


@of_one_method
def test_the_kl_anchor_reads_the_model_without_edits(method: str, tmp_path: Path) -> None:
    grads = {}
    for names in ((None,), ("a", "b"), ("b", "a")):  # of one regularizer, or of one for each
        trainer, recorder = make_trainer(tmp_path, learning_rate=0.0), Recorder()
        acts: dict[str, Any] = {"method": method, "blocks": READ, **METHODS[method]}
        if names == (None,):
            control(trainer, texts=TEXTS, kl=5.0, **acts)
        else:
            for name in names:
                quiet = {"penalize": {"desperate": 0.0}, "reward": {}, "kl": 5.0, "texts": TEXTS}
                control(trainer, name=name, **(acts if name == "a" else quiet))
        trainer.add_callback(recorder)
        trainer.train()
        grads[names] = recorder.grads[0]
    plain, edit = (step(tmp_path, m, **k)[1].grads[0] for m, k in (("", {}), (method, {})))
    _, pull = step(
        tmp_path, "penalty", _penalize={"desperate": 0.0}, _reward={}, _kl=5.0, _texts=TEXTS
    )
    wanted = {n: edit[n] + pull.grads[0][n] - plain[n] for n in edit}
    for found in grads.values():
        assert error(found, wanted) < 1e-5
    assert error(edit, wanted) > 1e-3  # control: the anchor pulls


# --- compiled and checkpointed --------------------------------------------------------------


@pytest.mark.slow
@of_every_method
def test_a_compiled_model_is_edited_as_an_eager_one(method: str, tmp_path: Path) -> None:
    def trained(**args: Any) -> tuple[list[float], list[dict[str, Tensor]]]:
        torch._dynamo.reset()
        trainer, recorder = step(
            tmp_path, method, max_steps=3, learning_rate=1e-2, rows=make_rows(equal=True),
            eval_strategy="steps", eval_steps=2, eval_rows=make_rows(equal=True),
            per_device_train_batch_size=4, _warmup=0.9, **args,
        )  # fmt: skip
        keys = ("loss", "eval_loss", "emoreg/reading/desperate", "eval_emoreg/reading/desperate")
        return [v for k in keys for v in logged(trainer, k)], recorder.grads

    eager, grads = trained()
    torch._dynamo.utils.counters.clear()
    compiled, same = trained(torch_compile=True, torch_compile_backend="aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # control: it was compiled
    assert compiled == pytest.approx(eager, rel=1e-3)
    for found, wanted in zip(same, grads, strict=True):
        assert error(found, wanted) < 1e-3


@pytest.mark.parametrize("reentrant", [False, True])
def test_edits_are_refused_where_checkpointing_runs_hooks_again(
    reentrant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in some versions of Transformers, whose `__call__` is what is checkpointed."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = partial(nn.Module.__call__, self, **kwargs)
        checkpointed = self.gradient_checkpointing and self.training
        return self._gradient_checkpointing_func(run, *args) if checkpointed else run(*args)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", call, raising=False)
    with pytest.raises(ConfigError, match=r"again in backward.*switch gradient_checkpointing off"):
        step(tmp_path, "cap", **checkpointing(reentrant))
    _, recorder = step(tmp_path, "cap")  # control: without checkpointing they are not
    assert error(recorder.grads[0], gradient_by_hand(make_model(), "cap")[1]) < 1e-5
    step(tmp_path, "penalty", _penalize={"desperate": 0.1}, **checkpointing(False))  # nor is this
