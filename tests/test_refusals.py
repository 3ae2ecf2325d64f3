"""What cannot work is refused with the reason, before the optimizer has moved anything."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracle import ids_and_labels
from trainers import (
    EVERYTHING,
    Do,
    InOrder,
    control,
    make_base,
    make_model,
    make_prompted,
    make_rows,
    make_trainer,
    make_vectors,
)
from transformers import Trainer

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
from emoreg.regularizer import EmotionRegularizer
from emoreg.vectors import EmotionVectors


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


def narrow() -> Any:
    return make_base(width=16)


def deep() -> Any:
    return make_base(blocks=4)


def last_block_alone() -> Any:
    return make_model(layers_to_transform=[2])


Case = tuple[type[EmoregError], str, Callable[[], Any], Any, dict[str, Any]]
REFUSED: dict[str, Case] = {  # error, what the message says, model, vectors, knobs
    "width": (VectorMismatchError, "width: vectors 32, model 16", narrow, None, {}),
    "blocks": (VectorMismatchError, "blocks: vectors 3, model 4", deep, None, {}),
    "name": (VectorMismatchError, "other-name.*check_name", named_model, None, {}),
    "tokenizer": (VectorMismatchError, "tokenizer: vectors 'x'", make_model,
                  other_vectors(tokenizer="x"), {}),
    "emotion": (UnknownEmotionError, "'desparate'.*nearest: desperate", make_model, None,
                {"penalize": {"desparate": 0.1}}),
    "both": (ConfigError, "calm: both penalised and rewarded", make_model, None,
             {"penalize": {"calm": 0.1}}),
    "weight": (ConfigError, r"finite numbers >= 0, got \{'calm': -1", make_model, None,
               {"reward": {"calm": -1}}),
    "margin": (ConfigError, "emoreg_margin must be a finite number >= 0, got -0.5", make_model,
               None, {"margin": -0.5}),
    "knob": (ConfigError, "'penalise'; nearest: penalize", make_model, None, {"penalise": {}}),
    "block": (UnknownEmotionError, r"Blocks \[3\].*holds blocks \[0, 1, 2\]", make_model, None,
              {"blocks": [3]}),
    "facet": (UnknownEmotionError, "No facet 'diaries'.*stories, transcripts", make_model, None,
              {"facets": ["diaries"]}),
    "no facet": (UnknownEmotionError, "None of the facets.*'afraid'", make_model, None,
                 {"facets": ["transcripts"]}),
    "reach": (ConfigError, "at or below block 1", last_block_alone, None, {}),
    "base": (ConfigError, "no adapters to switch off", make_base, None, {"anchor": "base"}),
    "keep": (ConfigError, "no adapters to switch off", make_base, None, {"keep": 0.1}),
    "prompt": (ConfigError, "no adapters to switch off", make_prompted, None, {"anchor": "base"}),
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
    with pytest.raises(TrainerError, match=r"got LlamaForCausalLM.*EmotionTerms"):
        EmotionRegularizer(make_base(), make_vectors())  # type: ignore[arg-type]


def test_a_second_regularizer_on_one_trainer_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    with pytest.raises(ConfigError, match="has an EmotionRegularizer already"):
        EmotionRegularizer(trainer, make_vectors())
    control(trainer, name="second")
    with pytest.raises(ConfigError, match="already named 'second'"):
        EmotionRegularizer(trainer, make_vectors(), name="second")


def test_wandb_asked_for_and_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.args.report_to = ["wandb"]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else found(n, *a)
    )
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
    refused_in_training(
        trainer, CaptureError, r"scope \['completion', 'colon'\].*every label is -100"
    )


class Secretive(InOrder):
    """Keeps to itself which tokens are its completions."""

    def compute_loss(self, model: Any, inputs: Any, **_kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        return (model(**inputs).logits.logsumexp(-1) * (labels != -100)).mean()


def test_batches_that_do_not_tell_their_completions_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind=Secretive)
    before = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **k: before(model, inputs["hidden"], **k)
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda inputs: {"hidden": prepare(inputs)}
    control(trainer)
    refused_in_training(
        trainer, CaptureError, r"batches of Secretive do not tell.*\(they have hidden\)"
    )


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


def test_outputs_of_other_tokens_than_the_labels_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **k: before(
        model, {key: value[:, :-1] for key, value in inputs.items()}, **k
    )
    control(trainer)
    refused_in_training(trainer, CaptureError, r"are of \(8, 19\) tokens.*outputs of \(8, 18\)")


def test_a_capture_without_gradient_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    control(trainer)
    trainer.add_callback(Do("on_train_begin", lambda model, **_: model.requires_grad_(False)))
    refused_in_training(trainer, CaptureError, "no gradient.*enable_input_require_grads")
