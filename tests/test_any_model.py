"""Every architecture family runs from a bank to a verdict, and random weights do not pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from models import FAMILIES, TEMPLATE, causal_lm, multimodal
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from emoreg.bank import Text, load_bank, load_dosage
from emoreg.controls import said
from emoreg.extract import Choices, extract
from emoreg.validate import ESSENTIAL, validate

QUICK = ("llama", "gpt2", "qwen3_moe", "bloom")
TOPICS = {"fit": 8, "held-out": 4}


@cache
def bank() -> tuple[Text, ...]:
    """A few topics of every kind."""
    whole = load_bank()
    chosen = set()
    for kind in ("story", "transcript"):
        for split, number in TOPICS.items():
            topics = dict.fromkeys(t.topic for t in whole if (t.kind, t.split) == (kind, split))
            chosen |= set(list(topics)[:number])
    return tuple(t for t in whole if t.topic in chosen or (t.kind == "urgency" and t.topic < "u09"))


@cache
def bank_tokenizer() -> Any:
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(map(said, bank()), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=specials[0])
    made.chat_template = TEMPLATE
    return made


def to_a_verdict(model: Any) -> Any:
    tok = bank_tokenizer()
    vectors = extract(model, tok, bank(), None, Choices(skip_tokens=20))
    return validate(model, tok, vectors, bank(), load_dosage())


def check(found: Any) -> None:
    gates = {g.name: g for g in found.gates}
    assert found.verdict == "not usable"
    failed = [name for name in ESSENTIAL if gates[name].passed is False]
    assert failed
    assert all(name in found.reason for name in failed)
    assert all(g.passed is not None for g in found.gates)  # the bank allows every gate
    assert gates["held_out_accuracy"].value < 0.3  # random weights read no emotion


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_a_model_with_random_weights_is_not_usable(family: str) -> None:
    check(to_a_verdict(causal_lm(family, vocab_size=2048, max_position_embeddings=1024)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_a_vision_language_model_runs_too(kind: str) -> None:
    model = multimodal(kind)
    model.resize_token_embeddings(2048)
    model.config.text_config.max_position_embeddings = 1024
    check(to_a_verdict(model))


def test_without_a_chat_template_stories_alone_give_a_set(tmp_path: Path) -> None:
    tok, model = bank_tokenizer(), causal_lm(vocab_size=2048, max_position_embeddings=1024)
    template, tok.chat_template = tok.chat_template, None
    try:
        raw = [t for t in bank() if not t.messages]
        vectors = extract(model, tok, raw, [1], Choices(skip_tokens=20, facets=("stories",)))
        found = validate(model, tok, vectors, bank(), load_dosage())
    finally:
        tok.chat_template = template
    assert [f.name for f in vectors.facets] == ["stories"]
    unmeasured = [g.name for g in found.gates if g.passed is None]
    assert "auroc_calm_colon" in unmeasured
    assert "urgency" in unmeasured
    found.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "README.md", "card.json", "validation.html", "validation.json", "vectors.safetensors",
    }  # fmt: skip
