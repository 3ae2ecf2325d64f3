"""A model's answers are its likeliest tokens, one by one, whatever it is set to do."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from models import FAMILIES, causal_lm, multimodal, with_lora
from torch import nn
from trainers import hooks, make_base, make_model, make_prompted
from transformers import GenerationConfig, LlamaForCausalLM, LlamaForSequenceClassification

from emoreg import responses
from emoreg.errors import CaptureError
from emoreg.responses import answers, can_answer

PROMPTS = [[1, 5, 9, 20], [7, 8], [30, 31, 32, 33, 34, 35, 36], [40], [11, 12]]
END = 2


class Ends:
    eos_token_id = END


@torch.no_grad()
def one_by_one(model: nn.Module, prompt: list[int], tokens: int, end: int = END) -> list[int]:
    """Without padding, cache or `generate`."""
    ids = list(prompt)
    model.eval()
    while len(ids) < len(prompt) + tokens:
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    new = ids[len(prompt) :]
    return new if new == [end] else [t for t in new if t != end]


def state(model: nn.Module) -> Any:
    """What a guest could leave on a model."""
    return (
        hooks(model),
        {n: set(vars(m)) for n, m in model.named_modules()},
        {n: m.training for n, m in model.named_modules()},
        {n: id(vars(m).get("generation_config")) for n, m in model.named_modules()},
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_and_cached_they_are_those_of_one_prompt_by_itself(family: str) -> None:
    model = causal_lm(family)
    model.train()
    before = state(model)
    found = answers(model, Ends(), PROMPTS, 6)
    assert state(model) == before
    assert found == [one_by_one(model, p, 6) for p in PROMPTS]
    assert len({tuple(row) for row in found}) > 1  # control: prompts matter


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3"])
def test_multimodal_models_answer_texts(kind: str) -> None:
    model = multimodal(kind)
    assert answers(model, Ends(), PROMPTS, 4) == [one_by_one(model, p, 4) for p in PROMPTS]


def test_adapters_count_while_they_are_on() -> None:
    model = make_model()
    model.train()
    before = state(model)
    on = answers(model, Ends(), PROMPTS, 6)
    with model.disable_adapter():
        off = answers(model, Ends(), PROMPTS, 6)
    assert state(model) == before
    assert on == [one_by_one(model, p, 6, 1) for p in PROMPTS]
    assert off == [one_by_one(make_base(), p, 6, 1) for p in PROMPTS]
    assert on != off  # control


def test_virtual_tokens_come_first_and_are_no_padding() -> None:
    model = make_prompted()
    model.train()
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = answers(model, Ends(), PROMPTS, 6)
    assert state(model) == before
    assert found == [one_by_one(model, p, 6, 1) for p in PROMPTS]
    assert found != answers(make_base(), Ends(), PROMPTS, 6)  # control: they matter


def test_the_models_own_settings_have_no_say_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = causal_lm()
    plain = answers(model, Ends(), PROMPTS, 6)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=3, repetition_penalty=3.0, max_length=3,
        no_repeat_ngram_size=1, eos_token_id=END, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    own, before = model.generation_config, model.generation_config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(model, Ends(), PROMPTS, 6) == plain
    assert model.generation_config is own
    assert own.to_dict() == before
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    said = model.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=6)
    assert said[0, 7:].tolist() != plain[2]  # control: they would have one


@pytest.mark.parametrize("where", ["tokenizer", "generation_config", "config"])
def test_a_response_ends_before_any_token_that_ends_one(where: str) -> None:
    model = causal_lm()
    whole = answers(model, Ends(), PROMPTS, 8)
    first, third = whole[0][0], whole[2][2]
    model.config.eos_token_id, model.generation_config.eos_token_id = None, None
    tokenizer = Ends()
    owner: Any = {"tokenizer": tokenizer}.get(where) or getattr(model, where)
    for ends in (third, [END, third]):
        owner.eos_token_id = ends
        found = answers(model, tokenizer, PROMPTS, 8)
        assert found[2] == whole[2][: whole[2].index(third)]
    owner.eos_token_id = first
    assert answers(model, tokenizer, PROMPTS, 8)[0] == [first]  # nothing else is there to read


def test_a_batch_that_does_not_fit_is_run_again_in_halves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, real, sizes = causal_lm(), LlamaForCausalLM.generate, []
    plain = answers(model, Ends(), PROMPTS, 5)

    def tight(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", tight)
    limit = 2
    assert answers(model, Ends(), PROMPTS, 5) == plain
    assert sizes[0] == 5
    assert max(sizes[-2:]) <= 2
    assert "Out of memory: going on" in caplog.text
    limit = 0
    with pytest.raises(CaptureError, match=r"Out of memory .*drift_response_tokens"):
        answers(model, Ends(), PROMPTS, 5)


def test_batches_hold_prompts_of_like_length_up_to_a_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, widths, real = causal_lm(), [], LlamaForCausalLM.generate
    plain = answers(model, Ends(), PROMPTS, 5)

    def noted(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        widths.append(tuple(input_ids.shape))
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", noted)
    monkeypatch.setattr(responses, "BATCH_TOKENS", 21)
    assert answers(model, Ends(), PROMPTS, 5) == plain
    assert widths == [(3, 2), (1, 4), (1, 7)]


def test_a_classifier_has_no_answers() -> None:
    assert can_answer(make_base())
    assert can_answer(make_model())
    assert can_answer(with_lora(causal_lm()))
    assert not can_answer(LlamaForSequenceClassification(make_base().config))
