"""Tiny models whose blocks are quantised in every way that works without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from cases import talkative
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig


def nf4(double: bool) -> BitsAndBytesConfig:
    """QLoRA's four bits, with computation in float32."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def torchao_int8() -> TorchAoConfig:
    """Weights in eight bits, activations as they are."""
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_dynamic() -> TorchAoConfig:
    """Weights in eight bits, activations quantised as they come."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


KINDS: dict[str, Callable[[], Any]] = {
    "nf4": lambda: nf4(double=False),
    "nf4_double": lambda: nf4(double=True),
    "bitsandbytes_int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao_int8": torchao_int8,
    "torchao_dynamic": torchao_dynamic,
    "quanto_int8": lambda: QuantoConfig(weights="int8"),
    "quanto_int4": lambda: QuantoConfig(weights="int4"),
}


def quantised(kind: str) -> Any:
    """A tiny Llama with quantised blocks, saved and loaded as a user would."""
    if kind == "hqq_int4":
        return quantised_by_hqq()
    with tempfile.TemporaryDirectory() as folder:
        talkative().save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=KINDS[kind](), device_map={"": "cpu"}
        )
    for module in model.modules():
        # As on a GPU. On CPUs with AVX512-BF16 a forward in evaluation mode packs the weights for
        # inference, and bitsandbytes 0.50.2 then trains on without gradients through them.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantised_by_hqq() -> Any:
    """Four bits by HQQ's own function: transformers 5.23 knows its format but cannot load it."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    base = talkative()
    bits = BaseQuantizeConfig(nbits=4, group_size=32)
    AutoHQQHFModel.quantize_model(base, bits, compute_dtype=torch.float32, device="cpu")
    return base


def linears(model: nn.Module) -> dict[str, Any]:
    """The linear layers inside the blocks, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if "layers." in name and "linear" in type(module).__name__.lower()
    }


@torch.no_grad()
def plain_twin(model: nn.Module) -> Any:
    """A model with plain weights that are those the quantised one uses.

    Every quantised layer is fed the identity, which returns its weights.
    """
    twin, used = talkative(), linears(model)
    for name, layer in linears(twin).items():
        layer.weight.copy_(used[name](torch.eye(layer.in_features)).T)
    return twin
