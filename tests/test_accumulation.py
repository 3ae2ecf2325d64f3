"""The added term means the same however a window of examples is cut, padded or packed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import by_hand
from torch import Tensor
from trainers import (
    EVERYTHING,
    InOrder,
    Recorder,
    assert_same,
    gradients,
    logged,
    make_base,
    make_model,
    make_rows,
    make_trainer,
    make_vectors,
    silence,
)
from transformers import Trainer

from emoreg.config import EmoRegConfig
from emoreg.regularizer import EmotionRegularizer

DEFAULT = "completion+colon"
SHAPES = [(8, 1), (4, 2), (2, 4), (1, 8)]  # micro-batch, accumulation steps
KNOBS: dict[str, dict[str, Any]] = {
    "completion": {"scope": ["completion"]},
    "completion+colon": {},
    "prompt": {"scope": ["prompt"]},
    "margin": {"margin": 0.5, "facets": ["stories"]},
    "base+keep": {"anchor": "base", "keep": 0.05, "blocks": [2]},
    "top": {"pool": "top", "blocks": [1]},
}


@cache
def oracle(
    name: str, first: int = 0, last: int = 8, build: Callable[[], Any] = make_model
) -> tuple[float, dict[str, Tensor]]:
    """Value and gradient of a direct computation over unpadded rows."""
    model = build()
    loss = by_hand(model, make_rows().select(range(first, last)), config(name))
    loss.backward()
    return loss.item(), gradients(model)


def config(name: str) -> EmoRegConfig:
    return EmoRegConfig.of(**{**EVERYTHING, **KNOBS[name]})


def terms_alone(trainer: Any, name: str = DEFAULT) -> list[dict[str, Tensor]]:
    """Gradients at every optimizer step of a run whose own loss is silenced."""
    silence(trainer)
    recorder = Recorder()
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), config(name)))
    trainer.add_callback(recorder)
    trainer.train()
    return recorder.grads


@pytest.mark.parametrize("knobs", KNOBS)
def test_the_gradient_of_ragged_rows_is_that_of_a_direct_computation_for_every_accumulation(
    knobs: str, tmp_path: Path
) -> None:
    value, wanted = oracle(knobs)
    for size, steps in SHAPES:
        trainer = make_trainer(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        (found,) = terms_alone(trainer, knobs)
        assert_same(found, wanted)
        assert logged(trainer, "emoreg/loss") == pytest.approx([value], rel=1e-5)


def test_full_fine_tuning_gets_the_gradient_of_a_direct_computation_too(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_base(), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    (found,) = terms_alone(trainer)
    assert_same(found, oracle(DEFAULT, build=make_base)[1])
    assert found["model.embed_tokens.weight"].abs().sum() > 0  # control: not adapters alone


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor")
def test_a_second_forward_for_metrics_alone_is_not_read(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, label_smoothing_factor=0.1)
    (found,) = terms_alone(trainer)
    assert_same(found, oracle(DEFAULT)[1])


def test_a_shorter_last_window_is_a_mean_over_its_own_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, rows=make_rows(6), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_train_epochs=1, max_steps=-1, learning_rate=0.0,
    )  # fmt: skip
    whole, last = terms_alone(trainer)
    assert_same(whole, oracle(DEFAULT, 0, 4)[1])
    assert_same(last, oracle(DEFAULT, 4, 6)[1])


@pytest.mark.parametrize(("size", "steps"), [(8, 1), (2, 4), (2, 3)])
def test_without_a_count_of_items_it_is_the_mean_of_the_micro_batches_means(
    size: int, steps: int, tmp_path: Path
) -> None:
    class Plain(InOrder):
        """`transformers.Trainer`'s own loss, scale and log."""

        compute_loss, log = Trainer.compute_loss, Trainer.log

    trainer = make_trainer(
        tmp_path, kind=Plain, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
        num_train_epochs=1, max_steps=-1, learning_rate=0.0,
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = False
    found = terms_alone(trainer)
    parts = [oracle(DEFAULT, i, i + size)[1] for i in range(0, 8, size)]
    windows = [parts[i : i + steps] for i in range(0, len(parts), steps)]
    assert len(found) == len(windows)
    for got, window in zip(found, windows, strict=True):
        assert_same(got, {n: sum(p[n] for p in window) / len(window) for n in got})


def left_padded(collate: Any) -> Any:
    def collated(rows: Any) -> dict[str, Tensor]:
        batch = collate(rows)
        shift = (batch["attention_mask"] == 0).sum(1)
        assert shift.any()  # control: there is padding to move
        return {
            k: torch.stack([row.roll(int(s)) for row, s in zip(v, shift, strict=True)])
            for k, v in batch.items()
        }

    return collated


@pytest.mark.parametrize("layout", ["left", "padding_free", "packing"])
@pytest.mark.parametrize("knobs", ["completion+colon", "prompt", "base+keep", "top"])
def test_padding_and_packing_do_not_change_the_term(
    layout: str, knobs: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = {
        "left": {}, "padding_free": {"padding_free": True},
        "packing": {"packing": True, "max_length": 64, "per_device_train_batch_size": 8},
    }[layout]  # fmt: skip
    trainer = make_trainer(tmp_path, **more)
    if layout == "left":
        trainer.data_collator = left_padded(trainer.data_collator)
    if layout == "packing":
        assert len(trainer.train_dataset) < 8  # control: rows were joined
    (found,) = terms_alone(trainer, knobs)
    value, wanted = oracle(knobs)
    assert_same(found, wanted)
    assert logged(trainer, "emoreg/loss") == pytest.approx([value], rel=1e-5)


PROCESS = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from trainers import Recorder, logged, make_trainer, silence
from test_accumulation import DEFAULT, terms_alone

trainer = make_trainer(
    Path({folder!r}), per_device_train_batch_size=2, gradient_accumulation_steps=2
)
(found,) = terms_alone(trainer, {knobs!r})
assert trainer.accelerator.num_processes == 2
if trainer.is_world_process_zero():
    torch.save((found, logged(trainer, "emoreg/loss")), {folder!r} + "/found.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [DEFAULT, "base+keep"])
def test_two_processes_give_the_gradient_and_the_log_of_one(knobs: str, tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    tests = str(Path(__file__).parent)
    script.write_text(PROCESS.format(tests=tests, folder=str(tmp_path), knobs=knobs))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*torchrun, str(script)], env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, losses = torch.load(tmp_path / "found.pt")
    value, wanted = oracle(knobs)
    assert_same(found, wanted)
    assert losses == pytest.approx([value], rel=1e-5)
