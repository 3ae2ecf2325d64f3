"""Where a control could get lost, or get in the way, without anybody noticing."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import windows
import zoo
from accelerate import Accelerator
from datasets import IterableDataset
from models import DEPTH, multimodal, tokenizer, with_lora
from torch import Tensor
from trainers import (
    WIDTH,
    Do,
    InOrder,
    Recorder,
    assert_same,
    control,
    logged,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
)
from transformers import LlamaConfig, LlamaForCausalLM

from emoreg.base import base_outputs
from emoreg.callbacks import DriftCallback
from emoreg.tap import Tap

PROMPTS = Path(__file__).parent / "prompts.jsonl"


def activations() -> int:
    """How many block outputs are alive."""
    gc.collect()
    alive = (x for x in gc.get_objects() if type(x) is Tensor)
    return sum(x.dim() == 3 and x.shape[-1] == WIDTH for x in alive)


@pytest.mark.parametrize("anchor", ["neutral", "base"])
def test_no_activation_outlives_its_step(anchor: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    control(trainer, anchor=anchor)
    control(trainer, anchor=anchor, name="second")
    trainer.add_callback(DriftCallback(trainer, make_vectors(), prompts=PROMPTS, drift_steps=1))
    before, alive = activations(), []
    trainer.add_callback(Do("on_step_end", lambda **_: alive.append(activations())))
    trainer.train()
    assert alive == [before] * 3


@pytest.mark.parametrize("targets", [["embed_tokens"], ["q_proj", "v_proj", "linear_1"]])
def test_the_base_of_a_multimodal_model_has_no_adapter_in_its_embeddings_either(
    targets: list[str],
) -> None:
    model = with_lora(multimodal("llava"), target_modules=targets)
    ids = torch.tensor([[5, 90, 90, 90, 90, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28)}
    trainer: Any = SimpleNamespace(model=model, ref_model=None, accelerator=Accelerator(cpu=True))
    with Tap(model, range(DEPTH)) as tap:
        model(**inputs, use_cache=False)
        policy, call = dict(tap.acts), tap.calls[0]
    with Tap(model, range(DEPTH)) as tap, torch.no_grad(), model.disable_adapter():
        model(**inputs, use_cache=False)
        wanted = dict(tap.acts)
    found = base_outputs(trainer, call, range(DEPTH))
    for block in range(DEPTH):
        torch.testing.assert_close(found[block], wanted[block])
        assert not torch.allclose(policy[block], wanted[block], atol=1e-3)  # control


@pytest.mark.parametrize("added", [True, False])
def test_a_trainer_that_nobody_names_any_more_is_freed(added: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    guest = control(trainer) if added else windows.EmotionRegularizer(trainer, make_vectors())
    gone = [weakref.ref(x) for x in (trainer, trainer.model, guest)]
    del trainer, guest
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_what_the_user_wraps_around_a_borrowed_method_is_called_and_stays(tmp_path: Path) -> None:
    trainer, calls = make_trainer(tmp_path), []
    control(trainer)
    inner = trainer.train

    @wraps(inner)
    def train(*args: Any, **kwargs: Any) -> Any:
        calls.append("user")
        return inner(*args, **kwargs)

    trainer.train = train
    control(trainer, name="second")
    trainer.train()
    assert calls == ["user"]
    assert vars(trainer)["train"] is train


def test_a_with_inside_training_does_not_end_the_control(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=3, learning_rate=0.0, eval_rows=make_rows(2), logging_steps=1
    )
    guest = control(trainer)

    def evaluate(**_kwargs: Any) -> None:
        if trainer.state.global_step == 1:
            with guest:
                trainer.evaluate()  # after which the trainer has nothing to log of this step

    trainer.add_callback(Do("on_step_end", evaluate))
    trainer.train()
    assert [r["step"] for r in trainer.state.log_history if "emoreg/loss" in r] == [2, 3]
    assert len(logged(trainer, "eval_emoreg/reading/calm")) == 1


def test_an_evaluation_just_before_the_optimizer_is_no_missing_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(2))
    trainer.add_callback(Do("on_pre_optimizer_step", lambda **_: trainer.evaluate()))
    control(trainer)
    trainer.train()
    assert len(logged(trainer, "emoreg/loss")) == 1


@pytest.mark.filterwarnings("ignore:.*return_outputs:FutureWarning")  # of TRL, about its predict
def test_an_evaluation_has_the_readings_of_its_own_set_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=make_rows(2))
    guest = control(trainer)
    with guest:
        wanted = trainer.evaluate()["eval_emoreg/norm"]
        trainer.predict(make_trainer(tmp_path, eval_rows=make_rows()).eval_dataset)
        assert trainer.evaluate()["eval_emoreg/norm"] == wanted


class Terse(InOrder):
    """Takes only the arguments that it needs."""

    def compute_loss(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)


class Calm(InOrder):
    """Switches the dropout of its backbone off while it trains."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        model.get_base_model().model.eval()
        return super().compute_loss(model, *args, **kwargs)


@pytest.mark.parametrize("kind", [Terse, Calm])
def test_a_subclass_with_habits_of_its_own_gets_the_same_gradient(
    kind: Any, tmp_path: Path
) -> None:
    grads = []
    for each in (InOrder, kind):
        trainer, recorder = make_trainer(tmp_path, kind=each), Recorder()
        control(trainer)
        trainer.add_callback(recorder)
        trainer.train()
        grads.append(recorder.grads[0])
    assert_same(grads[1], grads[0])


def test_a_reference_of_another_shape_is_no_base_and_no_obstacle(tmp_path: Path) -> None:
    own = zoo.make("DPO", tmp_path, lora=False)
    shape = {**own.model.config.to_dict(), "num_hidden_layers": 1}
    trainer = type(own)(
        own.model, LlamaForCausalLM(LlamaConfig(**shape)), own.args,
        train_dataset=zoo.Dataset.from_dict(dict(zoo.PAIRS)), processing_class=tokenizer(),
    )  # fmt: skip
    windows.control(trainer)
    trainer.train()
    assert logged(trainer, "emoreg/excess/calm") == []
    assert len(logged(trainer, "emoreg/loss")) == 2


def test_a_rollouts_base_outlives_an_evaluation(tmp_path: Path) -> None:
    trainer = zoo.make(
        "GRPO", tmp_path, beta=0.1, num_iterations=3, max_steps=3, eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    windows.control(trainer)
    trainer.train()
    assert len(logged(trainer, "emoreg/excess/calm")) == 3
    assert len(logged(trainer, "eval_emoreg/excess/calm")) == 3


def test_a_stream_is_not_drawn_from_to_look_at_it(tmp_path: Path) -> None:
    def losses(guests: bool) -> list[float]:
        random.seed(0)

        def stream() -> Iterator[dict[str, str]]:
            while True:
                i = random.randrange(8)
                yield {"prompt": zoo.PROMPTS[i], "chosen": zoo.GOOD[i], "rejected": zoo.BAD[i]}

        rows = IterableDataset.from_generator(stream)
        trainer = zoo.make("Reward", tmp_path, rows=rows)
        if guests:
            weights: Any = {"penalize": {"desperate": 0.0}, "reward": {"calm": 0.0}}
            windows.control(trainer, **weights)
        trainer.train()
        assert bool(logged(trainer, "emoreg/reading_chosen/calm")) == guests
        return logged(trainer, "loss")

    assert losses(True) == losses(False)


def test_sides_that_never_come_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": p, "completion": c, "label": True} for p, c in zip(zoo.PROMPTS, zoo.GOOD)]  # noqa: B905
    trainer = zoo.make("KTO", tmp_path, rows=rows)
    windows.control(trainer, sides=["undesired"])
    trainer.train()
    assert "sides ['undesired']; the loss has no term until some do" in caplog.text
    assert "The loss never had a term" in caplog.text


def test_attaching_what_is_attached_is_refused(tmp_path: Path) -> None:
    guest = control(make_trainer(tmp_path, make_model()))
    with guest, pytest.raises(TypeError, match="attached already"):
        guest.attach()
