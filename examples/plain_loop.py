"""Hold an emotion in a training loop of your own: accelerate, and no `Trainer`.

python examples/plain_loop.py
python examples/plain_loop.py --model my-model --vectors vectors/my-model
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg import EmoRegConfig, EmotionTerms, EmotionVectors, Tap
from emoreg.tap import policy_forward
from emoreg.terms import Terms
from emoreg.tiny import MODEL
from emoreg.tokens import count_tokens

Batch = dict[str, Tensor]
PAIRS = [
    (
        "The test fails again and the release is today.",
        "Then we say so, and look at the log first.",
    ),
    ("What is 12 times 12?", "144."),
    ("I broke the build. What now?", "Take the last change back; after that we have time to look."),
    ("Name a river.", "The Danube."),
]


def encode(tokenizer: Any, prompt: str, answer: str) -> Batch:
    """Tokens of one exchange, with labels on the answer alone."""
    messages = [{"role": "user", "content": prompt}]
    start = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    end = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor(start + end),
        "labels": torch.tensor([-100] * len(start) + end),
        "attention_mask": torch.ones(len(start) + len(end), dtype=torch.long),
    }


def collate(rows: Sequence[Batch]) -> Batch:
    """A batch, padded on the right; padding has no label and never counts."""
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        k: pad_sequence([row[k] for row in rows], batch_first=True, padding_value=v)
        for k, v in fill.items()
    }


def controlled_loss(
    model: nn.Module, batch: Batch, tap: Tap, terms: EmotionTerms
) -> tuple[Tensor, Terms]:
    """The loss of one batch with emoreg's terms added, and what was read."""
    with tap:  # the hooks are there for this forward, and gone after it
        loss = model(**batch, use_cache=False).loss
        acts = dict(tap.acts)  # block -> (batch, tokens, width), with gradients
    counted = count_tokens(batch["labels"], terms.config.emoreg_scope, batch["attention_mask"])
    found = terms(acts, counted)  # sums over the counted tokens, and their number
    return loss + found.loss / found.number.clamp(min=1), found


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train for a few steps; the mean reading of *desperate* at each, in σ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--vectors", default="vectors/tiny")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(argv)

    accelerator = Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))

    vectors = EmotionVectors.load(args.vectors)
    vectors.check(model, tokenizer)  # refuses vectors made for another model
    config = EmoRegConfig.of(penalize={"desperate": 0.5}, reward={"calm": 0.25})
    terms = EmotionTerms(vectors, config)

    data = DataLoader(
        [encode(tokenizer, *pair) for pair in PAIRS], batch_size=2, collate_fn=collate
    )
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    # Only a forward with gradients in training mode is read: generation and references are not.
    tap = Tap(model, terms.probe.blocks, when=policy_forward)

    model.train()
    readings: list[float] = []
    while len(readings) < args.steps:
        for batch in data:
            loss, found = controlled_loss(model, batch, tap, terms)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            readings.append(found.mean("reading/desperate"))
            accelerator.print(
                f"step {len(readings)}: loss {loss:.3f}, desperate {readings[-1]:+.2f} σ"
            )
    return readings


if __name__ == "__main__":
    main()
