"""Tiny models of every family, a tokenizer and a vector set, all made here and now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from emoreg.probe import Facet
from emoreg.vectors import EmotionVectors

VOCAB, WIDTH, DEPTH = 96, 32, 3
SIZES = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8}, "mistral": {}, "phi": {}, "phi3": {}, "gpt2": {},
    "gpt_neox": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": WIDTH}, "falcon": {},
    "bloom": {}, "mixtral": {"num_local_experts": 4}, "qwen3_moe": {"head_dim": 8, **MOE},
    "olmo2": {}, "smollm3": {},
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def causal_lm(family: str = "llama", **changes: Any) -> Any:
    """A causal language model with random weights, in evaluation mode, the same at every call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def multimodal(kind: str) -> Any:
    """A vision-language model whose vision tower has as many layers as its decoder."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": DEPTH, "depth": DEPTH,
        "num_attention_heads": 2, "num_heads": 2, "image_size": 28, "patch_size": 14,
        "out_hidden_size": WIDTH,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**SIZES, "head_dim": 8, **({"rope_parameters": rope} if kind == "qwen2_5_vl" else {})}
    if kind == "llava":
        parts = {"text_config": {**text, "model_type": "llama"}}
        parts["vision_config"] = {**vision, "model_type": "clip_vision_model"}
    else:
        parts = {"text_config": text, "vision_config": vision}
    ids = {"image_token_id": 90, "video_token_id": 91, "image_token_index": 90}
    config = AutoConfig.for_model(kind, **parts, **ids)
    return AutoModelForImageTextToText.from_config(config).eval()


def with_lora(model: Any, **changes: Any) -> PeftModel:
    """LoRA on every linear layer, with a random B so that the adapter changes the model."""
    torch.manual_seed(1)
    options = {
        "r": 2,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "init_lora_weights": False,
        **changes,
    }
    return get_peft_model(model, LoraConfig(**options))


def batch(rows: int = 2, tokens: int = 7) -> dict[str, Tensor]:
    """Ids without specials; the last row is padded on the right."""
    ids = torch.randint(5, 80, (rows, tokens), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def hooks(model: nn.Module) -> dict[str, list[str]]:
    """Every hook of every module, by module, kind and function."""
    return {
        f"{name}.{kind}": [repr(f) for f in getattr(module, kind).values()]
        for name, module in model.named_modules()
        for kind in vars(module)
        if kind.endswith("_hooks") and getattr(module, kind)
    }


@contextmanager
def counting(modules: Sequence[nn.Module]) -> Iterator[list[int]]:
    """How often each module's forward runs while the context is open."""
    calls = [0] * len(modules)

    def count(at: int) -> Any:
        def hook(*_: object) -> None:
            calls[at] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def tokenizer(merges: Sequence[tuple[str, str]] = (), template: str = TEMPLATE) -> Any:
    """Byte-level BPE: one token per byte but for the merges, and a chat template."""
    words = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(BPE({w: i for i, w in enumerate(words)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIALS[0], eos_token=SPECIALS[1]
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[2:]})
    made.chat_template = template
    return made


def vector_set(
    facets: dict[str, Sequence[str]] | None = None,
    blocks: Sequence[int] = (0, 1, 2),
    width: int = WIDTH,
    card: dict[str, Any] | None = None,
) -> EmotionVectors:
    """A set of random directions, orthonormal between the facets of one emotion."""
    facets = facets or {
        "stories": ("calm", "desperate", "happy"),
        "transcripts": ("calm", "desperate"),
    }
    draw = torch.Generator().manual_seed(5)
    emotions = sorted({e for of in facets.values() for e in of})
    frames = torch.randn(len(emotions), len(blocks), width, len(facets), generator=draw)
    q = torch.linalg.qr(frames).Q
    made = [
        Facet(
            name,
            tuple(of),
            torch.stack([normalize(q[emotions.index(e), ..., k], dim=-1) for e in of]),
            torch.rand(len(of), len(blocks), generator=draw) + 0.5,
        )
        for k, (name, of) in enumerate(facets.items())
    ]
    mu = torch.randn(len(blocks), width, generator=draw)
    return EmotionVectors(tuple(made), tuple(blocks), mu, card or {})
