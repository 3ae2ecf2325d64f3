"""Models that are more than a plain decoder: experts, images, tied weights, a head that scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from datasets import Dataset
from models import SIZES, TEMPLATE, tokenizer
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaProcessor,
)
from ways import Row, apart, by_hand, columns_of, llama, lora, make, places, step, trained, unpadded

PICTURE = "<image>"
CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    f"{{% if part.type == 'image' %}}{PICTURE}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    "{% endfor %}{% endif %}"
)


# --- experts --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("column", columns_of("mixture of experts with auxiliary loss"))
def test_experts_and_their_router_get_the_terms_beside_the_auxiliary_loss(
    column: str, family: str, tmp_path: Path
) -> None:
    # GRPO asks for it forward by forward; a model that always gives it cannot generate.
    always = {"output_router_logits": True} if column != "GRPO" else {}
    trainer = make(column, tmp_path, llama(family, router_aux_loss_coef=0.1, **always))
    found = step(trainer)
    assert found.log("aux_loss")[0] > 0  # control: there is one
    assert apart(found.grads, by_hand(found)) < 1e-5
    for part in ("experts", "mlp.gate."):
        early = [g for n, g in found.grads.items() if part in n and "layers.2" not in n]
        assert early
        assert all(g.abs().sum() > 0 for g in early)


# --- images ---------------------------------------------------------------------------------


def processor(template: str = TEMPLATE.replace("{{ m.content }}", CONTENT)) -> Any:
    """Text and images of 28 by 28 pixels, four patches each, to what LLaVA takes."""
    tok = tokenizer(template=template)
    tok.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", PICTURE]})
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    made = LlavaProcessor(
        image_processor=CLIPImageProcessor(**sides), tokenizer=tok, patch_size=14,
        vision_feature_select_strategy="default", image_token=PICTURE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    made.chat_template = template
    return made


def llava(picture: int) -> Any:
    """A vision-language model whose vision tower has as many layers as its decoder."""
    torch.manual_seed(0)
    ids = {"vocab_size": picture + 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    text = {**SIZES, "model_type": "llama", "initializer_range": 0.2, **ids}
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": SIZES["num_hidden_layers"], "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "llava", text_config=text, vision_config=vision, image_token_id=picture,
        vision_feature_select_strategy="default", vision_feature_layer=-1, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForImageTextToText.from_config(config).eval()


def pictured(column: str) -> Dataset:
    """Conversations that begin with a picture each."""
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {"prompt": zoo.chats(zoo.PROMPTS)}
    columns["images"] = [
        [Image.fromarray(draw.integers(0, 255, (28, 28, 3), dtype=np.uint8))] for _ in range(8)
    ]
    sides = {"SFT": {"completion": zoo.GOOD}, "DPO": {"chosen": zoo.GOOD, "rejected": zoo.BAD}}
    for name, texts in sides.get(column, {}).items():
        columns[name] = [[{"role": "assistant", "content": text}] for text in texts]
    return Dataset.from_dict(columns)


def viewer(column: str, tmp_path: Path, made: Any, rows: Any = None) -> tuple[Any, int]:
    """A trainer whose rows hold pictures, and the token in their places."""
    picture = made.tokenizer.convert_tokens_to_ids(PICTURE)
    text = lora(target_modules=r".*language_model.*(q_proj|v_proj|up_proj)")
    data: dict[str, Any] = {"rows": rows or pictured(column), "tok": made}
    data |= {} if column == "GRPO" else {"max_length": None}
    return trained(column, tmp_path, llava(picture), text, **data), picture


def with_pictures(batches: Any, prompt: bool) -> list[Row]:
    """The sequences, each with its picture; its prompt counts, or else its completion."""
    rows = unpadded(batches)
    pixels = [image for batch in batches for image in batch["pixel_values"]]
    for row, image in zip(rows, pixels, strict=True):
        row.extra = {"pixel_values": image[None]}
        if prompt:  # which ends at the colon
            row.at = list(range(1, row.at[0] + 1))
    return rows


@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize("scope", ["completion", "prompt"])
@pytest.mark.parametrize("column", columns_of("vision-language model"))
def test_text_is_read_behind_a_picture_that_itself_never_counts(
    column: str, scope: str, anchor: str, tmp_path: Path
) -> None:
    trainer, picture = viewer(column, tmp_path, processor())
    asked = {"scope": ["prompt"]} if scope == "prompt" else {}
    found = step(trainer, anchor=anchor, **asked)
    rows = with_pictures(found.batches, bool(asked))
    if asked:
        assert apart(found.grads, by_hand(found, rows, anchor)) > 1e-2  # control: they would count
    for row in rows:
        assert (row.ids == picture).sum() == 4
        row.at = [i for i in row.at if row.ids[i] != picture]
    assert apart(found.grads, by_hand(found, rows, anchor)) < 1e-5
    for row in rows:
        row.extra = {"pixel_values": torch.zeros_like(row.extra["pixel_values"])}
    assert apart(found.grads, by_hand(found, rows, anchor)) > 1e-3  # control: they are seen
    assert all("language_model" in name for name in found.grads)


def test_a_picture_that_the_host_learns_does_not_count_either(tmp_path: Path) -> None:
    rows = pictured("SFT")
    whole = [asked + told for asked, told in zip(rows["prompt"], rows["completion"], strict=True)]
    rows = rows.remove_columns(["prompt", "completion"]).add_column("messages", whole)
    trainer, picture = viewer("SFT", tmp_path, processor(), rows)
    found = step(trainer)
    assert (found.batches[0]["labels"] == picture).any()  # control: it is learned
    rows = with_pictures(found.batches, prompt=False)
    assert apart(found.grads, by_hand(found, rows)) > 1e-2
    for row in rows:
        row.at = [i for i in row.at if row.ids[i] != picture]
    assert apart(found.grads, by_hand(found, rows)) < 1e-5


def test_a_picture_at_the_very_start_is_the_first_token_and_no_word_behind_it(
    tmp_path: Path,
) -> None:
    made = processor("{% for m in messages %}" + CONTENT + "<|end|>{% endfor %}")
    trainer, picture = viewer("SFT", tmp_path, made)
    found = step(trainer, scope=["prompt"])
    rows = with_pictures(found.batches, prompt=True)
    for row in rows:
        assert row.ids[0] == picture  # control
        row.at = [i for i in row.at if row.ids[i] != picture]
    assert apart(found.grads, by_hand(found, rows)) < 1e-5


# --- tied weights, and a head that scores ---------------------------------------------------


@pytest.mark.parametrize("peft", ["lora", None])
@pytest.mark.parametrize("column", columns_of("tied embeddings"))
def test_tied_embeddings_get_the_terms_once(column: str, peft: str | None, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    trainer = trained(column, tmp_path, model, peft)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # control: they are one
    found = step(trainer)
    assert apart(found.grads, by_hand(found)) < 1e-5
    assert peft or found.grads["model.embed_tokens.weight"].abs().sum() > 0


def test_a_model_that_scores_is_read_behind_what_its_answers_share(tmp_path: Path) -> None:
    """Batches of a reward model tell no completions: those begin where two answers part."""
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1}
    shape = {**SIZES, **ids, "bos_token_id": None, "initializer_range": 0.2, "num_labels": 1}
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**shape)).eval()
    trainer = trained("Reward", tmp_path, model, lora(task_type="SEQ_CLS"), max_length=None)
    found = step(trainer, anchor="base")
    rows = []
    for asked, good, bad in zip(zoo.PROMPTS, zoo.GOOD, zoo.BAD, strict=True):
        both = [tokenizer()(asked + text + "<|end|>")["input_ids"] for text in (good, bad)]
        alike = [a == b for a, b in zip(*both, strict=False)]
        shared = alike.index(False)
        rows += [
            Row(torch.tensor(own), places([i >= shared for i in range(len(own))])) for own in both
        ]
    assert apart(found.grads, by_hand(found, rows, "base")) < 1e-5
    for row in rows:  # control: it is the answers
        row.at = list(range(1, len(row.ids)))
    assert apart(found.grads, by_hand(found, rows, "base")) > 1e-2
