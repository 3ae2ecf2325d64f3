"""What a batch tells, in each of its forms, and which forward is of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from models import tokenizer
from torch import Tensor
from trainers import logged
from windows import control

from emoreg.batches import Batch, media_ids, understand

I = -100  # noqa: E741
Sides = dict[str, list[bool]]


def rows(*values: list[int]) -> Tensor:
    return torch.tensor(values)


PAIR = {"chosen": [True, False], "rejected": [False, True]}
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...], list[list[int]], Sides]] = {
    "labels": (
        {"input_ids": rows([5, 6, 7]), "labels": rows([I, 6, 7])}, (), [[I, 6, 7]], {},
    ),
    "shifted labels": (
        {"input_ids": rows([5, 6, 7]), "shift_labels": rows([6, 7, I])}, (), [[I, 6, 7]], {},
    ),
    "completion mask": (
        {"input_ids": rows([5, 6], [5, 7]), "completion_mask": rows([0, 1], [0, 1])},
        ("chosen", "rejected"), [[I, 6], [I, 7]], PAIR,
    ),
    "no pairs without columns": (
        {"input_ids": rows([5, 6], [5, 7]), "completion_mask": rows([0, 1], [0, 1])},
        (), [[I, 6], [I, 7]], {},
    ),
    "judged": (
        {"input_ids": rows([5, 6], [5, 7]), "completion_mask": rows([0, 1], [0, 1]),
         "label": [False, True]},
        (), [[I, 6], [I, 7]], {"desired": [False, True], "undesired": [True, False]},
    ),
    "judged, older": (
        {"completion_input_ids": rows([5, 6]), "completion_labels": rows([I, 6]), "label": [True]},
        (), [[I, 6]], {"desired": [True], "undesired": [False]},
    ),
    "halves of unlike widths": (
        {"chosen_input_ids": rows([5, 6, 7]), "chosen_labels": rows([I, 6, 7]),
         "rejected_input_ids": rows([5, 8]), "rejected_labels": rows([I, 8])},
        (), [[I, 6, 7], [I, 8, I]], PAIR,
    ),
    "rollout with a tool": (
        {"prompt_ids": rows([4, 5]), "prompt_mask": rows([0, 1]),
         "completion_ids": rows([6, 7, 8, 0]), "completion_mask": rows([1, 1, 1, 0]),
         "tool_mask": rows([1, 0, 1, 1]), "advantages": torch.tensor([0.5])},
        (), [[I, I, 6, I, 8, I]], {"rewarded": [True], "unrewarded": [False]},
    ),
    "rollout put together": (
        {"input_ids": rows([4, 5, 6, 7]), "attention_mask": rows([1, 1, 1, 0]),
         "logits_to_keep": 2, "rewards": torch.tensor([1.0]), "v_star": torch.tensor([2.0])},
        (), [[I, I, 6, I]], {"rewarded": [False], "unrewarded": [True]},
    ),
    "where two answers part, padded left": (
        {"input_ids": rows([0, 5, 6, 7], [5, 6, 8, 9]),
         "attention_mask": rows([0, 1, 1, 1], [1, 1, 1, 1])},
        ("chosen", "rejected"), [[I, I, I, 7], [I, I, 8, 9]], PAIR,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "branches", "labels", "sides"), FORMS.values(), ids=FORMS)
def test_each_form_tells_its_completions_and_its_sides(
    inputs: dict[str, Any], branches: tuple[str, ...], labels: list[list[int]], sides: Sides
) -> None:
    found = understand(inputs, branches)
    assert found is not None
    assert found.labels.tolist() == labels
    assert {side: which.tolist() for side, which in found.sides.items()} == sides


@pytest.mark.parametrize(
    "inputs",
    [
        None, [{"prompt": "Why?"}], {"prompt": ["Why?"]}, {"input_ids": rows([5, 6])},
        {"input_ids": rows([5, 6]), "labels": torch.tensor([1])},  # a class, not tokens
    ],
)  # fmt: skip
def test_what_does_not_tell_is_not_guessed(inputs: Any) -> None:
    assert understand(inputs) is None


def test_tool_output_counts_as_a_tools_alone() -> None:
    batch = understand(FORMS["rollout with a tool"][0])
    assert batch is not None
    counted = {s: batch.count([s]).mask[0].tolist() for s in ("completion", "tool", "prompt")}
    assert counted["completion"] == [False, False, True, False, True, False]
    assert counted["tool"] == [False, False, False, True, False, False]
    assert not any(counted["prompt"])  # its one prompt token is the first of the sequence


def test_places_of_images_never_count() -> None:
    batch = Batch(rows([4, 90, 90, 5, 6]), rows([I, I, I, I, 6]))
    every = batch.count(["prompt", "completion"]).mask[0].tolist()
    assert every == [False, True, True, True, True]  # control: they would
    without = batch.count(["prompt", "completion"], never=[90]).mask[0].tolist()
    assert without == [False, False, False, True, True]
    assert media_ids(type("Config", (), {"image_token_id": 90, "video_token_index": None})) == (90,)


def test_a_forward_is_of_a_batch_whatever_stands_in_the_place_of_padding() -> None:
    batch = Batch(rows([5, 6, 0]), rows([I, 6, I]), rows([1, 1, 0]))
    assert batch.is_of(rows([5, 6, 9]))
    assert not batch.is_of(rows([5, 7, 0]))
    assert not batch.is_of(rows([5, 6]))
    assert not batch.is_of(None)


@pytest.mark.parametrize("name", [n for n in ("CPO", "ORPO", "DPO", "KTO") if n in zoo.TRAINERS])
def test_any_padding_token_will_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses() -> list[float]:
        trainer = zoo.make(name, tmp_path, eval_strategy="steps", eval_steps=1)
        control(trainer, anchor="base")
        trainer.train()
        return [*logged(trainer, "emoreg/loss"), *logged(trainer, "eval_emoreg/reading/calm")]

    plain = losses()

    def other() -> Any:
        made = tokenizer()
        made.pad_token = made.eos_token
        return made

    monkeypatch.setattr(zoo, "tokenizer", other)
    assert len(plain) == 4
    assert losses() == pytest.approx(plain, rel=1e-5)
