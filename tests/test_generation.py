"""Who writes the completions does not matter: vLLM in this process or another, or other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from models import vector_set
from trainers import Recorder, assert_same, logged

from emoreg.identity import identity
from emoreg.regularizer import EmotionRegularizer

WRITTEN = [[70 + (3 * i + k) % 40 for k in range(2 + i % 4)] + [1] for i in range(8)]  # ragged
Generate = Callable[..., Any]


class Writer:
    """Stands where TRL keeps its vLLM: hands out completions of its own, and their log-probs."""

    def __init__(self, around: Callable[[], None]) -> None:
        self.around, self.synced = around, 0

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts: Any, **_kwargs: Any) -> Any:
        self.around()
        written = [WRITTEN[i % 8] for i in range(len(prompts))]
        return prompts, written, [[[-1.0]] * len(ids) for ids in written], None


def trained(tmp_path: Path, prepare: Callable[[Any], None]) -> tuple[Any, dict[str, Any]]:
    """A GRPO run whose completions are WRITTEN, and the gradient of the terms alone."""
    trainer, recorder = zoo.make("GRPO", tmp_path, learning_rate=0.0, max_steps=1), Recorder()
    prepare(trainer)
    before = trainer.compute_loss
    trainer.compute_loss = lambda *a, **k: before(*a, **k) * 0
    vectors = vector_set(card={"model": identity(trainer.model, trainer.processing_class)})
    weights: dict[str, Any] = {"penalize": {"desperate": 1.0}, "reward": {"calm": 0.5}}
    trainer.add_callback(EmotionRegularizer(trainer, vectors, check_name=False, **weights))
    trainer.add_callback(recorder)
    trainer.train()
    return trainer, recorder.grads[0]


def plainly(trainer: Any) -> None:
    """TRL's own generation, made to give WRITTEN."""
    own = trainer._generate_single_turn

    def generate(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(prompt_ids, *args, **kwargs)
        written = [WRITTEN[i % 8] for i in range(len(prompt_ids))]
        return tuple(written if part is found[0] else part for part in found)

    trainer._generate_single_turn = generate


def by_vllm(mode: str, around: Callable[[Any], None]) -> Callable[[Any], None]:
    def prepare(trainer: Any) -> None:
        trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, mode, -1
        trainer.vllm_generation = Writer(lambda: around(trainer))

    return prepare


def nothing(_trainer: Any) -> None:
    """Another process writes."""


def engine(trainer: Any) -> None:
    """The engine in this process runs the policy's own modules, in another thread, with gradients.

    Worse than vLLM, which has modules of its own: what must not be read is as near as it can be.
    """
    model = trainer.model
    ids = torch.tensor([[70, 71, 72]])
    thread = threading.Thread(target=lambda: model(input_ids=ids))
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("mode", "around"),
    [
        pytest.param(
            "colocate", engine, marks=pytest.mark.cell("ways", "vLLM in this process", "GRPO")
        ),
        pytest.param("server", nothing, marks=pytest.mark.cell("ways", "vLLM as a server", "GRPO")),
    ],
)
def test_completions_by_vllm_are_read_like_the_hosts_own(
    mode: str, around: Callable[[Any], None], tmp_path: Path
) -> None:
    trainer, found = trained(tmp_path / "vllm", by_vllm(mode, around))
    plain, wanted = trained(tmp_path / "plain", plainly)
    assert trainer.vllm_generation.synced == 1  # control: it was asked
    assert "sampling/importance_sampling_ratio/mean" in trainer.state.log_history[0]
    assert_same(found, wanted)
    for key in ("emoreg/loss", "emoreg/reading/calm", "emoreg/reading/desperate"):
        assert logged(trainer, key) == pytest.approx(logged(plain, key), rel=1e-5)


def test_other_completions_give_another_gradient(tmp_path: Path) -> None:
    """The control: what is compared above depends on the completions."""
    _, found = trained(tmp_path / "own", lambda _trainer: None)
    _, wanted = trained(tmp_path / "written", plainly)
    assert any(not torch.allclose(found[n], wanted[n], rtol=1e-2, atol=1e-6) for n in found)
