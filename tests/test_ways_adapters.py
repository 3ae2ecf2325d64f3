"""Whatever is trained, the terms reach it as plain reading by hand says, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn
from ways import (
    COLUMNS,
    apart,
    by_hand,
    cells,
    columns_of,
    control,
    llama,
    lora,
    make,
    step,
    stir,
    trained,
    unpadded,
)

from emoreg.errors import ConfigError

VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
PROMPTED = ("prompt tuning", "p-tuning", "prefix tuning")
WITH_BASE = (
    "LoRA", "DoRA", "rsLoRA", "IA3", "several adapters", "modules_to_save", "LoRA on MoE",
)  # fmt: skip


def two_adapters() -> Any:
    """One adapter that is trained, and a spare one, which would change the model if it were on."""
    model = get_peft_model(llama(), lora())
    model.add_adapter("spare", lora(r=3, target_modules=["k_proj"], init_lora_weights=False))
    return model


def trained_only(*parts: str) -> Any:
    """A model without adapters of which only some parameters are trained."""
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    return model


def larger(part: str) -> Callable[[nn.Module], None]:
    """Enlarge the parameters of some name by a half."""

    def change(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.data *= 1.5

    return change


def plain_scale(model: nn.Module) -> None:
    """Scale the adapters by alpha / r, not by alpha / sqrt(r)."""
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = dict.fromkeys(module.scaling, 8 / 2)


@dataclass(frozen=True)
class Way:
    """What is trained, and what the gradients would not survive if it were not there."""

    own: str  # in the name of every parameter that only this way has
    model: Callable[[], Any] = llama
    peft: Any = None
    without: Callable[[nn.Module], None] | None = None


EXPERTS = lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
WAYS = {
    "LoRA": Way("lora_B", peft=lora()),
    "DoRA": Way("lora_magnitude_vector", peft=lora(use_dora=True)),
    "rsLoRA": Way("lora_B", peft=lora(use_rslora=True), without=plain_scale),
    "IA3": Way("ia3_l", peft=IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                                       feedforward_modules=["down_proj"])),
    "several adapters": Way(
        "default", two_adapters, without=lambda m: m.base_model.set_adapter(["default", "spare"])
    ),
    "modules_to_save": Way("modules_to_save", peft=lora(modules_to_save=["embed_tokens"])),
    "prompt tuning": Way("prompt_encoder", peft=PromptTuningConfig(**VIRTUAL)),
    "p-tuning": Way("prompt_encoder", peft=PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16)),
    "prefix tuning": Way("prompt_encoder", peft=PrefixTuningConfig(**VIRTUAL)),
    "LoRA on MoE": Way("experts.lora_B", lambda: llama("mixtral"), EXPERTS),
    "full fine-tuning": Way("layers.0"),
    "embeddings only": Way("embed_tokens", lambda: trained_only("embed_tokens")),
}  # fmt: skip


def trained_as(row: str, column: str, tmp_path: Path, **args: Any) -> Any:
    """The trainer of one way."""
    return trained(column, tmp_path, WAYS[row].model(), WAYS[row].peft, **args)


@pytest.mark.parametrize(("row", "column"), cells(WAYS))
def test_the_gradient_is_that_of_unpadded_rows_read_by_hand(
    row: str, column: str, tmp_path: Path
) -> None:
    way, found = WAYS[row], step(trained_as(row, column, tmp_path))
    rows = unpadded(found.batches, left=column == "GRPO" and row in PROMPTED)
    assert apart(found.grads, by_hand(found, rows)) < 1e-5
    own = {n: g for n, g in found.grads.items() if way.own in n and "layers.2" not in n}
    assert own
    assert all(g.abs().sum() > 0 for g in own.values())
    (way.without or larger(way.own))(found.trainer.model)
    assert apart(found.grads, by_hand(found, rows)) > 1e-3  # control: it is this way that did it


@pytest.mark.parametrize(("row", "column"), cells(WITH_BASE))
def test_the_base_is_the_model_with_all_of_it_off(row: str, column: str, tmp_path: Path) -> None:
    for own in [{"beta": 0.0}, {"beta": 0.1}] if column == "GRPO" else [{}]:
        found = step(trained_as(row, column, tmp_path, **own), anchor="base")
        assert apart(found.grads, by_hand(found, anchor="base")) < 1e-5
        assert apart(found.grads, by_hand(found)) > 1e-2  # control: there is a base
        assert max(map(abs, found.log("emoreg/excess/desperate"))) > 1e-3


@pytest.mark.parametrize("column", columns_of("an adapter from before"))
def test_an_adapter_of_which_the_host_keeps_a_copy_is_off_in_the_base(
    column: str, tmp_path: Path
) -> None:
    referred = {"beta": 0.1} if column == "GRPO" else {}
    for row in ("LoRA", "modules_to_save"):
        model = get_peft_model(llama(), deepcopy(WAYS[row].peft))
        stir(model)
        trainer = trained(column, tmp_path, model, None, **referred)
        assert ("ref" in model.peft_config) == (column != "SFT")  # control: its reference
        found = step(trainer, anchor="base")
        assert apart(found.grads, by_hand(found, anchor="base")) < 1e-5
        assert apart(found.grads, by_hand(found)) > 1e-2  # control: there is a base
        assert model.active_adapter == "default"


ALL, NO_BASE = "full fine-tuning, anchor base", "no adapters to switch off, and no reference model"
REFERRED = {"DPO": {}, "GRPO": {"beta": 0.1}}


@pytest.mark.parametrize("column", columns_of(ALL, list(REFERRED)))
def test_without_adapters_the_base_is_the_reference_model(column: str, tmp_path: Path) -> None:
    trainer = trained_as("full fine-tuning", column, tmp_path, **REFERRED[column])
    assert trainer.ref_model is not None
    found = step(trainer, anchor="base")
    assert apart(found.grads, by_hand(found, anchor="base")) < 1e-5
    assert apart(found.grads, by_hand(found)) > 1e-2  # control: there is a base


@pytest.mark.parametrize("column", columns_of(ALL, ["SFT"], refused=NO_BASE))
def test_without_adapters_or_a_reference_model_the_base_is_refused(
    column: str, tmp_path: Path
) -> None:
    for name, args in ((column, {}), ("GRPO", {"beta": 0.0})):
        trainer = trained_as("full fine-tuning", name, tmp_path, **args)
        with pytest.raises(ConfigError, match="no adapters to switch off"):
            control(trainer, anchor="base")
        control(trainer)  # control: all else is well


@pytest.mark.parametrize(
    "column",
    columns_of("prompt learning, anchor base", refused="a learned prompt is no change of weights"),
)
def test_a_learned_prompt_has_no_base(column: str, tmp_path: Path) -> None:
    for way in PROMPTED:
        trainer = trained_as(way, column, tmp_path)
        with pytest.raises(ConfigError, match=r"another PEFT adapter that changes\s+weights"):
            control(trainer, anchor="base")
        control(trainer)  # control: all else is well


@pytest.mark.parametrize(
    "column", columns_of("adapters above the blocks read", refused="no gradient reaches them")
)
def test_adapters_above_the_blocks_read_are_refused(column: str, tmp_path: Path) -> None:
    trainer = make(column, tmp_path, peft=lora(layers_to_transform=[2]))
    with pytest.raises(ConfigError, match="No trainable parameter lies at or below block 1"):
        control(trainer)
    control(trainer, blocks=[2])  # control: what is read there reaches them


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "column", columns_of("head or final norm only", refused="no gradient reaches them")
)
def test_a_head_or_a_final_norm_alone_is_refused(
    column: str, checkpointing: bool, tmp_path: Path
) -> None:
    saved = lora(layers_to_transform=[2], modules_to_save=["model.norm", "lm_head"])
    ways = {"head": (trained_only("lm_head"), None), "norm": (trained_only("model.norm"), None)}
    ways["saved"] = (llama(), saved)
    for model, peft in ways.values():
        trainer = make(column, tmp_path, model, peft, gradient_checkpointing=checkpointing)
        with pytest.raises(ConfigError, match="No trainable parameter lies at or below block 1"):
            control(trainer)
        trainer.model.get_input_embeddings().requires_grad_(True)
        control(trainer)  # control: these come before


@pytest.mark.parametrize("column", COLUMNS)
def test_an_adapter_on_the_head_is_refused_by_trl_itself(column: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        make(column, tmp_path, peft=lora(target_modules=["lm_head"]))


def test_two_adapters_that_are_both_on_are_both_reached(tmp_path: Path) -> None:
    model = two_adapters()
    trainer = make("SFT", tmp_path, model)
    model.base_model.set_adapter(["default", "spare"])
    stir(model)
    found = step(trainer, anchor="base")
    assert apart(found.grads, by_hand(found, anchor="base")) < 1e-5
    for name in ("default", "spare"):
        assert any(torch.count_nonzero(g) for n, g in found.grads.items() if f".{name}." in n)
