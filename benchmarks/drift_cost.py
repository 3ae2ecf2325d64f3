"""What drift costs, in steps of the same training, and what share of a run that makes.

    python benchmarks/drift_cost.py                       # a small shape, in full
    python benchmarks/drift_cost.py --shape 1.5b --layers 3 6 --prompts 16 --rows 1   # on a CPU
    python benchmarks/drift_cost.py --shape 1.5b --device cuda --dtype bfloat16       # on a GPU

A step is LoRA on all linear layers with gradient checkpointing, as TRL trains by default: forward,
loss, backward, optimizer. Measured are what DriftCallback does at its defaults: the base (its
responses, and a read), a measurement (a read of prompts and responses up to the deepest watched
block, and all statistics of 171 emotions at three blocks), and the last one (its own responses, and
a read of those too). A run reads the base once, unless it is cached, and measures 11 times.

With several --layers the same is measured at each depth and a line through the times gives the
full depth; fewer --prompts and --rows (sequences in a step) count in proportion. Both are exact as
far as the work is: embeddings and head do not depend on depth, and blocks are all alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import normalize
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer

from emoreg.baseline import read_base
from emoreg.catalogue import CATALOGUE
from emoreg.probe import Probe
from emoreg.prompts import Prompt, load_prompts
from emoreg.series import Series
from emoreg.snapshot import Gauge
from emoreg.tiny import MODEL

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 9,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096,
    },
    "1.5b": {  # of Qwen2.5-1.5B
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
    },
}  # fmt: skip
MEASUREMENTS = 11  # of a run: at step 0, and ten times
PARTS = ("step", "base", "measurement", "last")


@dataclass
class Bench:
    """One model with a trainer, at one depth."""

    model: Any
    trainer: Any
    gauge: Gauge
    repeats: int
    device: torch.device

    def seconds(self) -> dict[str, float]:
        """Median time of each part."""
        base = read_base(self.model, self.gauge, cache=False).snapshot
        series, step = Series(self.gauge, base), self.step()
        parts: dict[str, Callable[[], Any]] = {
            "step": step,
            "base": lambda: read_base(self.model, self.gauge, cache=False),
            "measurement": lambda: series.measure(self.model, 1),
            "last": lambda: series.measure(self.model, 1, own=True),
        }
        for call in (step, parts["measurement"]):
            call()  # warm
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(self.repeats):  # in turn, so that a slower minute is everybody's
            for name, call in parts.items():
                times[name].append(self.timed(call))
        return {name: float(np.median(found)) for name, found in times.items()}

    def timed(self, call: Callable[[], Any]) -> float:
        """Time of one call: of the processor, which others may share, or by the clock on a GPU."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        self.wait()
        began = clock()
        call()
        self.wait()
        return clock() - began

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self) -> Callable[[], None]:
        """One training step of the trainer."""
        trainer = self.trainer
        trainer.create_optimizer_and_scheduler(1)
        trainer.current_gradient_accumulation_steps = 1
        trainer.activation_checkpointing = True
        loader = iter(trainer.get_train_dataloader())
        [inputs], items = trainer.get_batch_samples(loader, 1, self.device)
        trainer.model.train()

        def step() -> None:
            trainer.training_step(trainer.model, dict(inputs), num_items_in_batch=items)
            trainer.optimizer.step()
            trainer.model.zero_grad()

        return step


def make(flags: argparse.Namespace, layers: int) -> Bench:
    """A trainer and a gauge over a config-built model of so many layers."""
    torch.manual_seed(0)
    device, cpu = torch.device(flags.device), flags.device == "cpu"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    shape = {**SHAPES[flags.shape], "num_hidden_layers": layers}
    config = Qwen2Config(**shape, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None)
    model = Qwen2ForCausalLM(config).to(getattr(torch, flags.dtype)).to(device)
    row = torch.randint(5, len(tokenizer), (flags.tokens,)).tolist()
    data = Dataset.from_list([{"input_ids": row, "labels": row}] * flags.rows)
    args = SFTConfig(
        tempfile.mkdtemp(), use_cpu=cpu, bf16=not cpu, report_to="none", save_strategy="no",
        per_device_train_batch_size=flags.rows, max_length=flags.tokens, disable_tqdm=True,
        dataloader_pin_memory=False, max_steps=1, learning_rate=0.0,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )  # fmt: skip
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    deepest = 2 * layers // 3 - 1
    blocks = sorted({max(0, deepest - 2), max(0, deepest - 1), deepest})
    gauge = Gauge(tokenizer, chosen(flags.prompts), probe(config, blocks), 32)
    return Bench(trainer.model, trainer, gauge, flags.repeats, device)


def chosen(number: int) -> list[Prompt]:
    """The own prompts, evenly chosen by length."""
    prompts = sorted(load_prompts(), key=lambda p: len(p.messages[0]["content"]))
    return [prompts[i] for i in np.linspace(0, len(prompts) - 1, number).round().astype(int)]


def probe(config: Qwen2Config, blocks: list[int]) -> Probe:
    """Random directions for 171 emotions in two facets: what it costs does not depend on values."""
    rows = tuple((f, e) for f in ("stories", "transcripts") for e in CATALOGUE.words)
    shape = (len(blocks), len(rows), config.hidden_size)
    directions = normalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    ones = torch.ones(shape[:2])
    return Probe(rows, tuple(blocks), directions, torch.zeros(shape[0], shape[2]), ones)


def full_depth(found: dict[int, dict[str, float]], layers: int) -> dict[str, float]:
    """Times at full depth: as measured, or on the line through those of two depths or more."""
    if layers in found:
        return found[layers]
    depths = list(found)
    if len(depths) < 2:
        raise SystemExit(f"--layers: name {layers}, or two depths for a line through their times")
    return {
        part: float(np.polyval(np.polyfit(depths, [found[d][part] for d in depths], 1), layers))
        for part in PARTS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--layers", type=int, nargs="+", help="depths measured; the full one")
    parser.add_argument("--prompts", type=int, default=128, help="measured, of the 128")
    parser.add_argument("--rows", type=int, default=8, help="sequences in a measured step, of 8")
    parser.add_argument("--tokens", type=int, default=1024, help="in a sequence")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    layers = SHAPES[flags.shape]["num_hidden_layers"]
    found = {}
    for depth in flags.layers or [layers]:
        found[depth] = make(flags, depth).seconds()
        times = ", ".join(f"{part} {found[depth][part]:.2f} s" for part in PARTS)
        print(f"{depth} layers, {flags.rows} rows, {flags.prompts} prompts: {times}", flush=True)
    whole = full_depth(found, layers)
    step = whole["step"] * 8 / flags.rows
    cost = {part: whole[part] * 128 / flags.prompts / step for part in PARTS[1:]}
    print(f"\n{flags.shape}, {layers} layers, a step of 8 x {flags.tokens} tokens: {step:.2f} s")
    for part, steps in cost.items():
        print(f"{part}: {steps:.2f} steps")
    for name, base in (("with the base read", cost["base"]), ("base from the cache", 0.0)):
        steps = base + (MEASUREMENTS - 1) * cost["measurement"] + cost["last"]
        print(f"a run of 1000 steps, {name}: {steps:.1f} steps, {steps / 10:.2f} %")


if __name__ == "__main__":
    main()
