"""Step time of the regularizer as a ratio to the bare trainer, interleaved in one process.

python benchmarks/step_time.py [--steps 30]

SFT trainers over one config-built Llama each (same seed) take turns, in rotating order, at one full
training step of the same batch. Printed: the median of the paired ratios, with its quartiles; and
what a line of the log takes, which is not in a step: readings over all processes, the journal, and
on every tenth of a run the texts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import normalize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from emoreg import EmotionRegularizer, EmotionVectors
from emoreg.identity import identity
from emoreg.probe import Facet
from emoreg.tiny import MODEL

ARMS = {
    "bare": None,
    "bare, again": None,  # the noise of the measurement
    "weight 0, measures only": {},
    "penalty and reward": {"penalize": {"desperate": 1.0}, "reward": {"calm": 0.5}},
    "anchored to base": {"penalize": {"desperate": 1.0}, "reward": {"calm": 0.5}, "anchor": "base"},
}
sizes: dict[str, int] = {}  # of a line in trainer_state.json, bytes, by the arm's knobs
EMOTIONS = ("desperate", "calm", *(f"other {i}" for i in range(169)))
BLOCKS = (2, 4, 6)


def random_vectors(model: LlamaForCausalLM, tokenizer: object) -> EmotionVectors:
    """A set of 171 random directions at three blocks: what it costs does not depend on values."""
    width, torch_seed = model.config.hidden_size, torch.Generator().manual_seed(0)
    directions = torch.randn(len(EMOTIONS), len(BLOCKS), width, generator=torch_seed)
    facet = Facet(
        "stories", EMOTIONS, normalize(directions, dim=-1), torch.ones(len(EMOTIONS), len(BLOCKS))
    )
    card = {"model": identity(model, tokenizer), "suggested_blocks": list(BLOCKS)}
    return EmotionVectors((facet,), BLOCKS, torch.zeros(len(BLOCKS), width), card)


def make_step(
    knobs: dict[str, object] | None, tokens: int, batch: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One training step, forward, loss and backward, and one line of the log of such a trainer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688,
            num_hidden_layers=8, num_attention_heads=8, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    row = torch.randint(5, len(tokenizer), (tokens,)).tolist()
    data = Dataset.from_list([{"input_ids": row, "labels": row}] * batch)
    args = SFTConfig(
        tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        per_device_train_batch_size=batch, max_length=tokens, gradient_checkpointing=False,
        dataloader_pin_memory=False, disable_tqdm=True, max_steps=100, learning_rate=0.0,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )  # fmt: skip
    if knobs is not None:
        regularizer = EmotionRegularizer(trainer, random_vectors(model, tokenizer), **knobs)
        trainer.add_callback(regularizer)
        regularizer.on_train_begin(args, trainer.state, trainer.control)
    trainer.create_optimizer_and_scheduler(1)
    trainer.state.max_steps = 1000  # so that texts are rare, as in a run
    trainer.current_gradient_accumulation_steps = 1
    loader = iter(trainer.get_train_dataloader())
    [inputs], items = trainer.get_batch_samples(loader, 1, torch.device("cpu"))
    trainer.model.train()

    def step() -> None:
        trainer.training_step(trainer.model, dict(inputs), num_items_in_batch=items)
        trainer.model.zero_grad()

    def line() -> None:
        trainer.state.global_step += 1
        trainer.log({"loss": 1.0})
        sizes[str(knobs)] = len(json.dumps(trainer.state.log_history[-1], indent=2))

    return step, line


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    flags = parser.parse_args()
    steps = {name: make_step(knobs, flags.tokens, flags.batch) for name, knobs in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    lines: dict[str, list[float]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for turn in range(flags.steps + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for run, times in zip(steps[name], (seconds[name], lines[name]), strict=True):
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
    bare = np.array(seconds["bare"][3:])
    print(f"threads {torch.get_num_threads()}, {flags.steps} rounds, 171 emotions, blocks {BLOCKS}")
    print("| arm | median s | ratio to bare | quartiles | a line of the log, ms |")
    print("| --- | --- | --- | --- | --- |")
    for name, values in seconds.items():
        now = np.array(values[3:])
        low, mid, high = np.quantile(now / bare, (0.25, 0.5, 0.75))
        print(
            f"| {name} | {np.median(now):.3f} | {mid:.3f} | {low:.3f} to {high:.3f} | "
            f"{1000 * np.median(lines[name]):.1f} |"
        )

    print(f"a line of trainer_state.json, weight 0: {sizes[str({})]} bytes")


if __name__ == "__main__":
    main()
