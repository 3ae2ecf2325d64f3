"""A long run with everything on: does memory stay flat, and does anything stay behind?

python benchmarks/soak.py [--steps 2000]

Trains an adapter of a two-block Llama, built from its configuration, on the embedded model's
episodes, each arm in a process of its own: ``bare``, the trainer alone, and ``everything``: all
terms, refits, adaptive weights, KL, drift, audits, alerts, a line of the log every 5 steps, the
journal, checkpoints. Every 100 steps memory that is free is given back to the system, and what is
left is measured. What a log keeps for its readers grows by design, and is counted by itself. Writes
``benchmarks/results/soak.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import load_dataset
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from emoreg import AuditCallback, DriftCallback, EmotionRegularizer, EmotionVectors, boards
from emoreg.files import write_atomic
from emoreg.identity import identity
from emoreg.probe import Facet
from emoreg.tiny import BANK, DRIFT_PROMPTS, EPISODES, MODEL

RESULTS = Path(__file__).parent / "results" / "soak.json"
ARMS = ("bare", "everything")
WARM = 200  # steps until everything has run once
LIMIT = 1.0  # per cent that memory may grow after it
EVERY = 100
PROMPTS = 16
BLOCKS, WIDTH, OTHERS = 2, 32, 10
SEEN = "emoreg/reading/desperate"
KNOBS: dict[str, Any] = {
    "penalize": {"desperate": 0.3}, "reward": {"calm": 0.15}, "blocks": [0, 1], "target": 0.5,
    "refit_steps": EVERY, "refit_texts": 16, "refit_tokens": 8, "bank": str(BANK), "keep": 0.01,
    "kl": 0.01, "kl_texts": 1,
    "alerts": {SEEN: {"above": 3.0, "patience": 3}, "drift/desperate": 1.0},
}  # fmt: skip


class Watch(TrainerCallback):
    """Measures the process every `EVERY` steps."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer, self.began = trainer, time.monotonic()
        self.rows: list[dict[str, float]] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Measure, if it is due."""
        step = self.trainer.state.global_step
        if step % EVERY == 0:
            seconds = time.monotonic() - self.began
            self.rows.append({"step": step, **measured(self.trainer), "seconds": round(seconds, 1)})
            print(self.rows[-1], flush=True)


def measured(trainer: SFTTrainer) -> dict[str, float]:
    """Resident MB once free memory is given back, MB of the logs, tensors and hooks alive."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    room = boards._ROOMS.get(id(trainer))
    kept = [trainer.state.log_history, room.journal.run if room else None]
    return {
        "rss_mb": round(resident(), 3),
        "logs_mb": round(size(kept) / 2**20, 3),
        "tensors": sum(issubclass(type(o), Tensor) for o in gc.get_objects()),
        "hooks": hooks(trainer.model),
    }


def resident() -> float:
    """MB of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size(found: Any) -> int:
    """Bytes of lists, mappings and what is in them, each object once."""
    met: set[int] = set()
    todo, total = [found], 0
    while todo:
        each = todo.pop()
        if id(each) in met:
            continue
        met.add(id(each))
        total += sys.getsizeof(each)
        if isinstance(each, Mapping):
            todo += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            todo += each
        elif hasattr(each, "__dict__"):
            todo.append(vars(each))
    return total


def hooks(model: nn.Module | None) -> int:
    """How many hooks are on all modules."""
    assert model is not None
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def train(arm: str, steps: int, folder: Path) -> dict[str, Any]:
    """One arm: what was measured on the way, and what is left when all is let go of."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args = SFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", max_steps=steps, logging_steps=5,
        per_device_train_batch_size=2, learning_rate=1e-5, lr_scheduler_type="constant",
        save_strategy="steps", save_steps=EVERY, save_total_limit=1, disable_tqdm=True,
        gradient_checkpointing=False, dataloader_pin_memory=False, max_length=None,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = small(tokenizer)
    vectors = random_vectors(model, tokenizer)
    trainer = SFTTrainer(
        model, args, processing_class=tokenizer,
        train_dataset=load_dataset(str(EPISODES), split="train").select(range(256)),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    before = hooks(trainer.model)
    for add in watchers(trainer, vectors, folder) if arm == "everything" else ():
        trainer.add_callback(add())
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    lines = trainer.state.log_history
    return {
        "rows": watch.rows,
        "hooks_left": hooks(trainer.model) - before,
        "log_lines": len(lines),
        "lines_without_reading": sum("loss" in x and SEEN not in x for x in lines),
        "refits": sum("emoreg/refit_seconds" in x for x in lines),
        "drifts": sum("emoreg/drift_mean_abs" in x for x in lines),
        "audits": sum("emoreg/audit_verdict" in x for x in lines),
    }


def small(tokenizer: Any) -> LlamaForCausalLM:
    """A model that costs less than what watches it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=BLOCKS, num_attention_heads=2, initializer_range=0.2,
        max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def random_vectors(model: LlamaForCausalLM, tokenizer: Any) -> EmotionVectors:
    """Random directions: what they cost does not depend on where they point."""
    emotions = ("desperate", "calm", *(f"other {i}" for i in range(OTHERS)))
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(len(emotions), BLOCKS, WIDTH, generator=draw)
    sigma = torch.ones(len(emotions), BLOCKS)
    facet = Facet("stories", emotions, normalize(directions, dim=-1), sigma)
    card = {"model": identity(model, tokenizer), "choices": {"skip_tokens": 8}}
    return EmotionVectors((facet,), tuple(range(BLOCKS)), torch.zeros(BLOCKS, WIDTH), card)


def watchers(
    trainer: SFTTrainer, vectors: EmotionVectors, folder: Path
) -> list[Callable[[], TrainerCallback]]:
    """What makes the callbacks, each of them to be added before the next is made."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(DRIFT_PROMPTS.read_text().splitlines(True)[:PROMPTS]))
    few = {"prompts": prompts, "blocks": KNOBS["blocks"]}
    return [
        partial(EmotionRegularizer, trainer, vectors, **KNOBS),
        partial(DriftCallback, trainer, vectors, drift_steps=EVERY, response_tokens=8, **few),
        partial(AuditCallback, trainer, vectors, bank=BANK, audit_steps=WARM, **few),
    ]


def growth(rows: list[dict[str, float]]) -> dict[str, float]:
    """Per cent from step `WARM` to the end: of memory, of the logs in it, and of the rest."""
    first = next(row for row in rows if row["step"] == WARM)
    last, whole = rows[-1], first["rss_mb"]
    memory, logs = (last[k] - first[k] for k in ("rss_mb", "logs_mb"))
    highest = max(row["rss_mb"] for row in rows if row["step"] >= WARM) - whole
    return {
        "growth_percent": round(100 * memory / whole, 3),
        "of_it_logs_percent": round(100 * logs / whole, 3),
        "without_logs_percent": round(100 * (memory - logs) / whole, 3),
        "highest_percent": round(100 * highest / whole, 3),
        "tensors": last["tensors"] - first["tensors"],
        "hooks": last["hooks"] - first["hooks"],
    }


def soak(steps: int) -> dict[str, dict[str, Any]]:
    """Every arm in a process of its own."""
    found = {}
    for arm in ARMS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "found.json"
            own = [sys.executable, __file__, "--arm", arm, "--steps", str(steps)]
            environment = {**os.environ, "EMOREG_CACHE": f"{folder}/cache"}
            subprocess.run([*own, "--out", str(out)], check=True, env=environment)
            found[arm] = json.loads(out.read_text())
        found[arm] = {**growth(found[arm]["rows"]), **found[arm]}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--arm", choices=ARMS, help="this one alone, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    if flags.arm:
        found = train(flags.arm, flags.steps, flags.out.parent)
    else:
        found = {"steps": flags.steps, "limit_percent": LIMIT, "arms": soak(flags.steps)}
    write_atomic(flags.out, json.dumps(found, indent=1) + "\n")
    for arm, told in found.get("arms", {}).items():
        print(arm, {k: v for k, v in told.items() if k != "rows"})


if __name__ == "__main__":
    main()
