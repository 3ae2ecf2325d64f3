"""Extraction as a ratio to the model's own bare forward over the same batches.

``python benchmarks/extract.py``: interleaved rounds on a random Llama and emoreg's bank.
The bare forward runs the decoder's own blocks up to the deepest asked one, without hooks, sums or a
head, on batches that were tokenised and padded before. Extraction is the whole call: tokenising,
padding, reading, sums in float64, directions, and the second pass over neutral texts for sigma.
A ratio of 1 costs nothing; tokens are real ones, padding is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from emoreg.bank import Text, load_bank
from emoreg.blocks import find_backbone
from emoreg.controls import said
from emoreg.encode import Encoded, encode
from emoreg.extract import Choices, extract
from emoreg.sweep import batches, pad

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|end|>", "<|user|>", "<|assistant|>"]


def make_tokenizer(texts: list[Text]) -> Any:
    """Byte-level BPE of 4,096 tokens, trained on the bank."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(map(said, texts), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIALS[0])
    made.chat_template = TEMPLATE
    return made


def make_model(flags: argparse.Namespace) -> Any:
    """A Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=flags.width,
        intermediate_size=4 * flags.width,
        num_hidden_layers=flags.depth,
        num_attention_heads=flags.width // 64,
        num_key_value_heads=flags.width // 64,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(flags.device, getattr(torch, flags.dtype)).eval()


@torch.no_grad()
def bare(model: nn.Module, encoded: list[Encoded], deepest: int, batch_tokens: int) -> None:
    """The model's own forward up to a block, and nothing else."""
    module, device = find_backbone(model).module, next(model.parameters()).device
    whole = module.layers
    module.layers = whole[: deepest + 1]
    try:
        for group in batches(encoded, batch_tokens):
            ids, mask = pad(group)
            module(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        module.layers = whole


def seconds(run: Callable[[], Any], device: str) -> float:
    """How long a call takes, the device's work included."""
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument(
        "--deepest", type=int, default=5, help="block, from 0; all up to it are read"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=400, help="of the bank, to save time")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    bank = load_bank()
    fit = [t for t in bank if t.split == "fit" and t.kind in ("story", "transcript")]
    emotions = {t.label for t in fit if t.kind == "story"}
    each = max(2, flags.texts // 32)
    texts = [t for t in bank if t.kind == "neutral"][: flags.texts // 4]
    for kind, labels in (("story", emotions), ("transcript", {t.label for t in fit} - emotions)):
        states = labels | ({"desperate", "calm", "frustrated"} if kind == "transcript" else set())
        for label in sorted(states):
            texts += [t for t in fit if (t.kind, t.label) == (kind, label)][:each]
    tokenizer, model = make_tokenizer(bank), make_model(flags)
    choices = Choices(batch_tokens=flags.batch_tokens)
    encoded = encode(tokenizer, texts, choices.skip_tokens)
    neutral = [e for e in encoded if e.text.kind == "neutral"]
    tokens = sum(len(e.ids) for e in (*encoded, *neutral))
    blocks = list(range(flags.deepest + 1))

    def run_bare() -> None:
        for part in (encoded, neutral):
            bare(model, part, flags.deepest, flags.batch_tokens)

    def run_extract() -> None:
        extract(model, tokenizer, texts, blocks, choices)

    run_bare()
    run_extract()
    ratios, rates = [], []
    for turn in range(flags.rounds):
        order = [run_bare, run_extract] if turn % 2 else [run_extract, run_bare]
        took = {run: seconds(run, flags.device) for run in order}
        ratios.append(took[run_bare] / took[run_extract])
        rates.append(tokens / took[run_extract])
        print(f"round {turn + 1}: bare {took[run_bare]:.2f} s, extract {took[run_extract]:.2f} s")
    low, _, high = quantiles(ratios) if len(ratios) > 1 else (ratios[0],) * 3
    print(
        f"{len(texts)} texts, {tokens} tokens, width {flags.width}, blocks 0 to {flags.deepest}, "
        f"{flags.dtype} on {flags.device}: {median(rates):.0f} tokens/s, "
        f"ratio to the bare forward {median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
