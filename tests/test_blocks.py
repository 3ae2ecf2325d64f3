"""The blocks of any decoder are found, others are refused in words; reach is what autograd says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import DEPTH, WIDTH, batch, causal_lm, multimodal, with_lora
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from emoreg.blocks import check_blocks, find_backbone, trainable_below
from emoreg.errors import BlocksNotFoundError
from emoreg.tap import Tap


class Engine(nn.Module):
    """As DeepSpeed's: holds the model in `module`, and a `config` that is not the model's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.config = module, {"train_batch_size": 1}


WRAPPERS: dict[str, Any] = {
    "peft": with_lora,
    "data parallel": nn.DataParallel,
    "engine": Engine,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "compiled parallel peft": lambda m: torch.compile(
        nn.DataParallel(with_lora(m)), backend="eager"
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_hides_no_block(wrap: Any) -> None:
    model = causal_lm()
    backbone = find_backbone(wrap(model))
    assert backbone.module is model.model
    assert list(backbone.blocks) == list(model.model.layers)
    assert backbone.width == WIDTH


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_5_vl"])
def test_a_vision_tower_of_the_same_depth_is_not_taken_for_the_decoder(kind: str) -> None:
    model = multimodal(kind)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == DEPTH]
    assert len(lists) == 2  # control: there is a choice
    assert list(find_backbone(model).blocks) == list(model.model.language_model.layers)


def test_a_classifier_on_a_decoder_has_its_blocks() -> None:
    config = causal_lm().config
    model = AutoModelForSequenceClassification.from_config(config)
    assert list(find_backbone(model).blocks) == list(model.model.layers)


def encoder_decoder() -> nn.Module:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes))


def encoder(auto: Any, **changes: Any) -> Any:
    """A BERT with some head; a decoder only if its configuration says so."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
    config = AutoConfig.for_model("bert", intermediate_size=64, **sizes, **changes)
    return auto.from_config(config)


def without_its_blocks() -> nn.Module:
    model = causal_lm()
    model.config.num_hidden_layers = 7
    return model


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "encoder-decoder": (encoder_decoder, ["T5ForConditionalGeneration", "decoder-only"]),
    "encoder": (
        lambda: encoder(AutoModelForSequenceClassification),
        ["BertForSequenceClassification is an encoder", "decoder-only"],
    ),
    "bare module": (lambda: nn.Linear(2, 2), ["Linear has no `config`", "transformers model"]),
    "no such list": (
        without_its_blocks,
        ["7 decoder blocks", "LlamaForCausalLM", "model.layers (3)"],
    ),
}


def marks(name: str) -> list[Any]:
    """The cells of the works-with table: the same check stands before every trainer."""
    if not name.startswith("encoder"):
        return []
    row = "encoder-only model" if name == "encoder" else "encoder-decoder model"
    why = "emoreg reads decoder-only models"
    return [pytest.mark.cell("ways", row, column, refused=why) for column in COLUMNS]


COLUMNS = ("SFT", "DPO", "GRPO")


@pytest.mark.parametrize(
    ("make", "words"),
    [pytest.param(*case, marks=marks(name), id=name) for name, case in REFUSED.items()],
)
def test_a_model_without_decoder_blocks_is_refused_with_what_was_found_and_wanted(
    make: Any, words: list[str]
) -> None:
    with pytest.raises(BlocksNotFoundError) as error:
        find_backbone(make())
    assert [w for w in words if w not in str(error.value)] == []


def test_a_model_of_an_encoders_family_that_is_a_decoder_is_taken() -> None:
    model = encoder(AutoModelForCausalLM, is_decoder=True)
    assert list(find_backbone(model).blocks) == list(model.bert.encoder.layer)


@pytest.mark.parametrize("blocks", [[3], [-1], [0, 99], []], ids=str)
def test_blocks_that_a_model_lacks_are_refused_with_those_it_has(blocks: list[int]) -> None:
    with pytest.raises(BlocksNotFoundError) as error:
        check_blocks(blocks, find_backbone(causal_lm()))
    assert str(blocks) in str(error.value)
    assert "blocks 0 to 2" in str(error.value)


def test_blocks_come_back_sorted_and_once_each() -> None:
    assert check_blocks([2, 0, 2], find_backbone(causal_lm())) == (0, 2)


def only(*parts: str) -> Any:
    """A model in which only parameters with one of these parts in their name are trained."""

    def make() -> nn.Module:
        model = causal_lm()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in parts))
        return model

    return make


def sharing_its_first_and_last_block() -> nn.Module:
    model = only("layers.0")()
    model.model.layers[2] = model.model.layers[0]
    return model


def lora_at(*layers: int) -> Any:
    return lambda: with_lora(causal_lm(), layers_to_transform=list(layers))


def prompt(config: type) -> Any:
    return lambda: get_peft_model(causal_lm(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))


REACH: dict[str, tuple[Any, bool]] = {
    "everything": (only(""), True),
    "nothing": (only("absent"), False),
    "embeddings": (only("embed_tokens"), True),
    "head": (only("lm_head"), False),
    "final norm": (only("model.norm."), False),
    "the block itself": (only("layers.1."), True),
    "a later block": (only("layers.2."), False),
    "LoRA below": (lora_at(0), True),
    "LoRA at": (lora_at(1), True),
    "LoRA above": (lora_at(2), False),
    "LoRA below and above": (lora_at(0, 2), True),
    "a block that runs twice": (sharing_its_first_and_last_block, True),
    "prompt tuning": (prompt(PromptTuningConfig), True),
    "prefix tuning": (prompt(PrefixTuningConfig), True),
}


@pytest.mark.parametrize(("make", "reaches"), REACH.values(), ids=REACH)
def test_trainable_below_says_whether_a_gradient_from_the_block_arrives(
    make: Any, reaches: bool
) -> None:
    model = make().train()
    assert trainable_below(find_backbone(model), 1, model) is reaches
    model.enable_input_require_grads()  # as TRL does: the output then has a gradient in any case
    with Tap(model, [1]) as tap:
        model(**batch(), use_cache=False)
        tap.acts[1].square().sum().backward()
    gradients = [p.grad.abs().max() for p in model.parameters() if p.grad is not None]
    assert any(g > 0 for g in gradients) is reaches
