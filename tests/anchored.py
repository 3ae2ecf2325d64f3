"""Models with adapters and texts to anchor them on, and KL to the base from whole logits."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from models import SIZES, tokenizer, with_lora
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM

from emoreg.bank import Text
from emoreg.kl import KLAnchor

TOKENS = 40
WORDS = (
    "The lamp is out.", "Take half of it out, then close the bag.", "Two miles.", "Yes.",
    "Old yeast, or a cold room, or both of them; and a longer text than the rest of these.",
    "The train leaves at six from the other side.", "Nobody knows.",
)  # fmt: skip
TALK = ({"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes, please."})
TEXTS = [*(Text("neutral", text=words) for words in WORDS), Text("neutral", messages=TALK)]
GPT2 = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
SMALL = {"vocab_size": 261, "max_position_embeddings": 64}
# family -> configuration in which what it does to its logits matters, and where adapters go
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "gemma2": ({"head_dim": 8, "final_logit_softcapping": 0.2}, {}),
    "gpt2": ({}, GPT2),
    "granite": ({"logits_scaling": 0.25}, {}),
    "cohere": ({"logit_scale": 5.0}, {}),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 16}, {"target_modules": ["q_proj", "v_proj"]}),
}


def made(family: str = "llama", adapted: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model with adapters that change it."""
    torch.manual_seed(0)
    settings, where = FAMILIES[family]
    config = AutoConfig.for_model(family, **{**SIZES, **SMALL, **settings, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 3  # or every distribution is nearly flat
    return with_lora(model, **{**where, **(adapted or {})})


tok = cache(tokenizer)


def anchor_of(model: Any, texts: list[Text] = TEXTS, batch_size: int = 3, **options: Any) -> Any:
    return KLAnchor(model, tok(), texts, batch_size, TOKENS, **options)


def ids_of(text: Text) -> list[int]:
    if text.messages:
        ids = tok().apply_chat_template(list(text.messages), return_dict=False)
    else:
        ids = tok()(text.text)["input_ids"]
    return ids[:TOKENS]


def direct(model: Any, texts: tuple[Text, ...]) -> Tensor:
    """The same from whole logits of the model itself, text by text, in float64."""
    total, number = torch.zeros((), dtype=torch.float64), 0
    for text in texts:
        row = torch.tensor([ids_of(text)])
        with torch.no_grad(), model.disable_adapter():
            base = log_softmax(model(input_ids=row).logits[0, 1:].double(), -1)
        found = log_softmax(model(input_ids=row).logits[0, 1:].double(), -1)
        total = total + (base.exp() * (base - found)).sum()
        number += len(found)
    return total / number


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    trained = {n: p for n, p in model.named_parameters() if "lora" in n}
    for parameter in trained.values():
        parameter.requires_grad_(True)  # PEFT's own disable_adapter, in `direct`, may change it
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
