"""Adaptive weights, refits and the KL anchor in a run, and all of it after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import checkpointing
from hand import error
from launch import launch
from safetensors import safe_open
from safetensors.torch import save_file
from test_refit import NOTES, TEXTS
from torch import Tensor
from torch.nn.functional import log_softmax
from trainers import (
    Recorder,
    control,
    gradients,
    logged,
    make_base,
    make_model,
    make_tokenizer,
    make_trainer,
    silence,
    weights,
)
from windows import control as control_of_zoo
from windows import make as make_of_zoo

from emoreg import reader
from emoreg.errors import BankError, ConfigError

FILE = "emoreg-control.safetensors"
ALL: dict[str, Any] = {
    "penalize": {"desperate": 0.1}, "reward": {"calm": 0.05}, "blocks": [0, 1], "texts": TEXTS,
    "refit_steps": 2, "refit_tokens": 4, "refit_texts": 48, "target": 0.1, "kl": 0.5,
    "kl_texts": 2, "refit_facets": 6,
}  # fmt: skip
QUIET: dict[str, Any] = {"penalize": {"desperate": 0.0}, "reward": {}, "texts": TEXTS}


# --- resume ---------------------------------------------------------------------------------


def sft(folder: Path, steps: int = 6) -> tuple[Any, Any]:
    trainer = make_trainer(
        folder, make_model(awake=False, lora_dropout=0.1), save_strategy="steps",
        save_steps=min(steps, 3), per_device_train_batch_size=4, max_steps=steps,
    )  # fmt: skip
    return trainer, control(trainer, **ALL)


def dpo(folder: Path) -> tuple[Any, Any]:
    trainer = make_of_zoo("DPO", folder, save_strategy="steps", save_steps=3, max_steps=6)
    return trainer, control_of_zoo(trainer, **{**ALL, "anchor": "base"})


def history(trainer: Any) -> list[dict[str, float]]:
    """What was logged of each step, but by a clock and by TRL's count over all runs."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [
        {k: v for k, v in row.items() if "seconds" not in k and k != "num_tokens"} for row in rows
    ]


def held(guest: Any) -> tuple[dict[str, Tensor], str, dict[str, float]]:
    """The facets that are kept, and the weights."""
    return *guest._control._refitter.state(), guest.terms.weights


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_resumed_run_is_that_of_a_straight_one_to_the_bit(make: Any, tmp_path: Path) -> None:
    straight, guest = make(tmp_path)
    straight.train()
    again, other = make(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    wanted, found = weights(straight.model), weights(again.model)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert history(again) == history(straight)
    assert len(history(straight)) == 6
    (tensors, names, ws), (same, also, those) = held(guest), held(other)
    assert (names, ws) == (also, those)
    assert len(tensors) > 0  # control: there are facets
    assert all(torch.equal(same[k], tensors[k]) for k in tensors)
    with safe_open(tmp_path / "checkpoint-3" / FILE, "pt") as early:
        assert ws != ALL["penalize"] | ALL["reward"]
        assert "dual" in early.metadata()
    (tmp_path / "checkpoint-3" / FILE).unlink()
    lost, _ = make(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read .* or start at step 0"):
        lost.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def foreign(path: Path, how: str) -> None:
    """Put another control's state in the place of one."""
    with safe_open(path, "pt") as found:
        metadata = found.metadata()
        tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    if how == "text":
        path.write_text("nothing of the kind")
        return
    if how == "format":
        metadata["format"] = "emoreg-control-0"
    if how == "emotions":
        metadata["dual"] = metadata["dual"].replace("desperate", "sad")
    if how == "blocks":
        metadata["refit"] = '[["transcripts@2", "desperate"]]'
        tensors |= {"0.direction": torch.zeros(3, 32), "0.sigma": torch.ones(3)}
    if how == "step":
        tensors["step"] = torch.tensor([2])
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("how", ["text", "format", "emotions", "blocks", "step"])
def test_the_state_of_another_run_is_refused(how: str, tmp_path: Path) -> None:
    trainer, _ = sft(tmp_path, 1)
    trainer.train()
    foreign(tmp_path / "checkpoint-1" / FILE, how)
    again, _ = sft(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"[Rr]esume"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_without_anything_that_has_a_state_there_is_no_file(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    control(trainer)
    control(trainer, name="second", target=0.0)
    trainer.train()
    files = [p.name for p in (tmp_path / "checkpoint-1").glob("emoreg*")]
    assert files == ["emoreg-control-second.safetensors"]


def test_a_second_run_of_one_trainer_begins_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=0.0, max_steps=4)
    control(trainer, **ALL)
    runs = []
    for _ in range(2):
        trainer.train()
        runs.append(history(trainer))
    assert runs[0] == runs[1]
    assert runs[0][3]["emoreg/weight/desperate"] != runs[0][0]["emoreg/weight/desperate"]
    assert any("/transcripts@2" in key for key in runs[0][3])  # control: there was a refit
    assert not any("/transcripts@2" in key for key in runs[0][0])


# --- KL -------------------------------------------------------------------------------------


def kl_by_hand(model: Any, texts: Any) -> Tensor:
    """Mean over all tokens but the first of KL(base ‖ policy), from whole logits."""
    total, number = torch.zeros(()), 0
    for text in texts:
        row = torch.tensor([make_tokenizer()(text.text)["input_ids"]])
        with torch.no_grad(), model.disable_adapter():
            base = log_softmax(model(input_ids=row).logits[0, 1:], -1)
        own = log_softmax(model(input_ids=row).logits[0, 1:], -1)
        total = total + (base.exp() * (base - own)).sum()
        number += len(own)
    return total / number


@pytest.mark.parametrize("steps", [1, 4])
def test_the_kl_term_is_its_weight_times_the_mean_over_micro_batches(
    steps: int, tmp_path: Path
) -> None:
    model = make_model()
    trainer, recorder = (
        make_trainer(
            tmp_path, model, learning_rate=0.0, gradient_accumulation_steps=steps,
            per_device_train_batch_size=8 // steps, max_steps=2,
        ),
        Recorder(),
    )  # fmt: skip
    silence(trainer)
    guest = control(trainer, **QUIET, kl=3.0, kl_texts=1)
    trainer.add_callback(recorder)
    trainer.train()
    anchor = guest._control._kl
    for step in range(2):
        texts = [anchor.texts(step * steps + micro) for micro in range(steps)]
        model.zero_grad()
        value = torch.stack([kl_by_hand(model, some) for some in texts]).mean()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)  # PEFT's disable_adapter may change it
        (3.0 * value).backward()
        assert error(recorder.grads[step], gradients(model)) < 1e-4
        assert logged(trainer, "emoreg/kl")[step] == pytest.approx(value.item(), rel=1e-4)
    assert logged(trainer, "emoreg/kl")[0] != pytest.approx(logged(trainer, "emoreg/kl")[1])


def test_at_the_start_of_lora_the_kl_term_pulls_nowhere(tmp_path: Path) -> None:
    def grads(awake: bool, **knobs: Any) -> dict[str, Tensor]:
        trainer, recorder = make_trainer(tmp_path, make_model(awake=awake)), Recorder()
        control(trainer, **{**QUIET, **knobs})
        trainer.add_callback(recorder)
        trainer.train()
        return recorder.grads[0]

    assert error(grads(False, kl=10.0), grads(False)) < 1e-5
    assert error(grads(True, kl=10.0), grads(True)) > 1e-2  # control


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_the_anchors_forwards_are_neither_the_policys_nor_the_bases(
    beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's readings of a rollout are kept through the anchor's forwards and a refit."""
    extra: list[int] = []
    before = reader.base_outputs
    monkeypatch.setattr(reader, "base_outputs", lambda *a: (extra.append(1), before(*a))[1])
    trainer = make_of_zoo("GRPO", tmp_path, beta=beta, max_steps=4)
    control_of_zoo(trainer, **{**ALL, "anchor": "base"})
    trainer.train()
    assert len(logged(trainer, "emoreg/excess/desperate")) == 4
    assert len(logged(trainer, "emoreg/kl")) == 4
    assert logged(trainer, "emoreg/refit_facets/desperate")
    assert (len(extra) == 0) == (beta > 0)  # control: without a reference of the host's it is run


@pytest.mark.parametrize("name", ["SFT", "OnlineDPO"])
def test_the_anchor_acts_however_a_trainer_computes_its_loss(name: str, tmp_path: Path) -> None:
    found = []
    for kl in (0.0, 20.0):
        trainer, recorder = make_of_zoo(name, tmp_path, max_steps=1, learning_rate=0.0), Recorder()
        control_of_zoo(trainer, penalize={"desperate": 0.0}, reward={}, kl=kl, texts=TEXTS)
        trainer.add_callback(recorder)
        trainer.train()
        found.append(recorder.grads[0])
    assert len(logged(trainer, "emoreg/kl")) == 1
    assert error(found[1], found[0]) > 1e-2


# --- what it refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{"kl": 0.1}, {"refit_steps": 2}])
def test_without_a_base_there_is_neither_an_anchor_nor_a_refit(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, make_base())
    with pytest.raises(ConfigError, match="no adapters to switch off"):
        control(trainer, texts=TEXTS, **knobs)
    control(trainer, texts=TEXTS, target=0.0)  # control: adaptive weights need none
    control(make_trainer(tmp_path), texts=TEXTS, **knobs)


def test_the_anchor_beside_reentrant_checkpointing_is_refused_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where data parallel would fail in the first backward."""
    for reentrant in (True, False):
        trainer = make_trainer(tmp_path, **checkpointing(reentrant))
        for processes in (2, 1):
            with monkeypatch.context() as patch:
                patch.setattr(type(trainer.accelerator), "num_processes", processes)
                if reentrant and processes == 2:
                    with pytest.raises(ConfigError, match="use_reentrant: false"):
                        control(trainer, **QUIET, kl=0.1)
                else:
                    control(trainer, **QUIET, kl=0.1, name=str(processes))  # control


def test_texts_are_read_when_it_is_made_and_not_in_the_middle_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="A refit needs"):
        control(make_trainer(tmp_path), texts=NOTES, refit_steps=2)
    control(make_trainer(tmp_path), texts=NOTES, kl=0.1)  # control


# --- two processes --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes found, which ran the trainers one after the other."""
    out: Path = tmp_path_factory.mktemp("two") / "found.json"
    said = launch("control_worker.py", str(out), "SFT", "DPO", processes=2)
    assert out.exists(), said
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_two_processes_agree_on_weights_and_facets(
    name: str, on_two: dict[str, dict[str, Any]]
) -> None:
    found = on_two[name]
    for kind in ("weights", "facets", "adapters"):
        one, other = found[kind]
        assert one == other, kind
    assert found["weights"][0] != {**ALL["penalize"], **ALL["reward"]}
    assert len(found["facets"][0][1]) > 0
    assert found["anchored"][0] != found["anchored"][1]  # control: each reads texts of its own
    last = found["logs"][-1]
    assert last["emoreg/kl"] > 0
    assert last["emoreg/weight/desperate"] == pytest.approx(found["weights"][0]["desperate"])
