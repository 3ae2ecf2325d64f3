"""The example without a `Trainer` does what the regularizer does, and runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from oracle import ids_and_labels
from trainers import (
    EVERYTHING,
    Recorder,
    assert_same,
    gradients,
    hooks,
    make_base,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    make_vectors,
)

from emoreg import EmoRegConfig, EmotionRegularizer, EmotionTerms, Tap
from emoreg.errors import VectorMismatchError
from emoreg.tap import policy_forward

PATH = Path(__file__).parents[1] / "examples" / "plain_loop.py"


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_of_the_loop_has_the_gradient_of_the_regularizer(loop: Any, tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path), Recorder()
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **EVERYTHING))
    trainer.add_callback(recorder)
    trainer.train()

    model, terms = make_model().train(), EmotionTerms(make_vectors(), EmoRegConfig.of(**EVERYTHING))
    before = hooks(model)
    rows = [
        {
            "input_ids": torch.tensor(i),
            "labels": torch.tensor(t),
            "attention_mask": torch.ones(len(i)),
        }
        for i, t in ids_and_labels(make_rows())
    ]
    tap = Tap(model, terms.probe.blocks, when=policy_forward)
    loss, found = loop.controlled_loss(model, loop.collate(rows), tap, terms)
    assert hooks(model) == before
    loss.backward()
    assert found.loss > 0  # control: the terms are part of it
    assert_same(gradients(model), recorder.grads[0])


def test_the_labels_of_an_exchange_are_its_answer(loop: Any) -> None:
    tokenizer = make_tokenizer()
    row = loop.encode(tokenizer, "What is tea?", "Leaves.")
    assert (
        tokenizer.decode(row["input_ids"]) == "<|user|>What is tea?<end><|assistant|>Leaves.<end>"
    )
    assert tokenizer.decode(row["labels"][row["labels"] != -100]) == "Leaves.<end>"


def test_the_loop_runs_on_a_saved_model_and_refuses_one_of_another_name(
    loop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vectors().save(tmp_path / "vectors")
    card = make_vectors().card["model"]
    for folder in ("model", "other"):
        make_base(seed=3).save_pretrained(tmp_path / folder)
        make_tokenizer().save_pretrained(tmp_path / folder)
    vectors = ["--vectors", str(tmp_path / "vectors")]
    with pytest.raises(VectorMismatchError, match="name: vectors '', model 'other'"):
        loop.main(["--model", str(tmp_path / "other"), *vectors])
    named = make_vectors().__class__(
        make_vectors().facets, make_vectors().blocks, make_vectors().mu,
        {**make_vectors().card, "model": {**card, "name": "model"}},
    )  # fmt: skip
    named.save(tmp_path / "vectors")
    torch.manual_seed(0)
    readings = loop.main(["--model", str(tmp_path / "model"), *vectors, "--steps", "20"])
    assert len(readings) == 20
    assert sum(readings[-4:]) < sum(readings[:4])  # it holds what it penalises
    assert capsys.readouterr().out.count("desperate") == 20
