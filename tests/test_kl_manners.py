"""What KL to the base leaves as it was, which texts it takes, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from anchored import SMALL, TEXTS, WORDS, anchor_of, made, tok
from models import causal_lm, hooks, tokenizer
from peft import PromptTuningConfig, get_peft_model

from emoreg.bank import Text
from emoreg.blocks import find_backbone
from emoreg.errors import ConfigError
from emoreg.kl import KLAnchor


def steps(anchor: Any, number: int = 3) -> list[tuple[Text, ...]]:
    return [anchor.texts(step) for step in range(number)]


def random_state() -> tuple[Any, ...]:
    numbers = np.random.get_state()
    return (torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2], random.getstate())


def test_random_state_mode_hooks_and_flags_are_left_as_they_were() -> None:
    model = made(adapted={"lora_dropout": 0.5}, attention_dropout=0.5).train()
    find_backbone(model).blocks[1].eval()  # a mode of its own

    def state() -> Any:
        modes = {n: m.training for n, m in model.named_modules()}
        flags = {n: p.requires_grad for n, p in model.named_parameters()}
        return random_state(), hooks(model), modes, flags, model.active_adapters

    before = state()
    anchor = anchor_of(model)
    anchor(0).backward()
    assert state() == before
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert state()[0] != before[0]  # control: dropout draws


def test_a_resumed_run_sees_what_an_uninterrupted_one_does() -> None:
    model = made()
    whole, resumed = anchor_of(model, seed=3), anchor_of(model, seed=3)
    values = [whole(step).item() for step in range(8)]
    random.seed(99)
    assert [resumed.texts(step) for step in range(5, 12)] == steps(whole, 12)[5:]
    assert [resumed(step).item() for step in range(5, 8)] == values[5:]
    assert steps(anchor_of(model, seed=4), 12) != steps(whole, 12)  # control: the seed has a say


def hash_of(text: Text) -> str:
    return text.text or str(text.messages)


def test_every_text_comes_once_each_time_around_in_another_order() -> None:
    found = steps(anchor_of(made(), batch_size=1), 10 * len(TEXTS))
    arounds = [found[i : i + len(TEXTS)] for i in range(0, len(found), len(TEXTS))]
    names = [[hash_of(text) for (text,) in around] for around in arounds]
    assert all(sorted(around) == sorted(map(hash_of, TEXTS)) for around in names)
    assert len({tuple(around) for around in names}) > 5


def test_without_a_chat_template_dialogues_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bare = tokenizer()
    bare.chat_template = None
    anchor = KLAnchor(made(), bare, TEXTS, batch_size=99)
    assert len(anchor.texts(0)) == len(WORDS)
    assert "1 dialogues are left out" in caplog.text


@contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(ConfigError) as error:
        yield
    assert all(word in str(error.value) for word in words), error.value


def test_a_model_without_a_base_is_refused() -> None:
    plain = causal_lm(**SMALL)
    with refused("no adapters", "peft_config"):
        anchor_of(plain)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with refused("no adapters"):
        anchor_of(get_peft_model(plain, prompt))


@pytest.mark.parametrize(
    "adapted", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_a_head_with_an_adapter_is_refused(adapted: Any) -> None:
    with refused("output head", "target_modules", "modules_to_save"):
        anchor_of(made(adapted=adapted))


def test_a_head_that_is_trained_or_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    model.get_output_embeddings().weight.requires_grad_(True)
    with refused("output head", "is trained"):
        anchor_of(model)
    inner = model.get_base_model()
    monkeypatch.setattr(inner, "get_output_embeddings", lambda: None)
    with refused("no output head"):
        anchor_of(model)


def test_sharded_weights_are_refused_when_made_and_when_called() -> None:
    model = made()
    anchor = anchor_of(model)
    next(model.parameters()).ds_id = 0
    with refused("sharded", "ZeRO-3"):
        anchor(0)
    with refused("sharded", "ZeRO-3"):
        anchor_of(model)


def test_logits_that_the_head_alone_does_not_give_are_refused() -> None:
    model = made()
    inner = model.get_base_model()
    own = inner.forward

    def forward(_self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        found.logits = found.logits + torch.linspace(0, 1, found.logits.shape[-1])
        return found

    inner.forward = MethodType(forward, inner)
    with refused("LlamaForCausalLM", "differ by 1,"):
        anchor_of(model)
    del inner.forward
    anchor_of(model)  # control


@pytest.mark.parametrize("wrong", [{"texts": []}, {"batch_size": 0}, {"max_tokens": 1}])
def test_nothing_to_read_is_refused(wrong: dict[str, Any]) -> None:
    with refused("wanted a text, batch_size >= 1 and max_tokens >= 2"):
        KLAnchor(made(), tok(), **{"texts": TEXTS, **wrong})
