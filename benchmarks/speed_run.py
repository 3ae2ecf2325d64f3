"""What is not in a step: drift, audits and refits, and their share of a run.

A run is of 1,000 steps with drift and audit at their defaults: the base is read once by each,
drift measured 11 times, the last time on the model's own responses too, and one audit made at the
end; directions are fitted again every 100 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from speed_arms import Shape
from speed_build import Bench, vectors

from emoreg.audit import Auditor
from emoreg.bank import OWN_BANK, load_bank
from emoreg.base import base_model
from emoreg.baseline import read_base
from emoreg.encode import encode, encode_prompt
from emoreg.prompts import load_prompts
from emoreg.refit import Refitter, _asked
from emoreg.series import Series
from emoreg.snapshot import Gauge

STEPS, REFIT_STEPS = 1000, 100
STEPS_EACH = 8  # steps that are timed for each round of the parts
TIMES = {  # in such a run
    "drift, base": 1, "drift": 10, "drift, last": 1, "audit, base": 1, "audit": 1,
    "refit, base": 1, "refit": STEPS // REFIT_STEPS,
}  # fmt: skip


class Parts:
    """Drift, audit and refit of one trainer's model, each as a call.

    Args:
        bench: A trainer's, without a regularizer.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, trainer = bench, bench.trainer
        self.model, tokenizer = trainer.model, trainer.processing_class
        prompts, texts = load_prompts(None), load_bank(OWN_BANK)
        shape = bench.setting.shape  # the set holds every block, as those that are extracted do
        every = replace(bench.setting, shape=replace(shape, blocks=tuple(range(shape.depth))))
        held = vectors(self.model, every, tokenizer, shape.blocks)
        probe = held.probe()
        self.gauge = Gauge(tokenizer, prompts, probe)
        self.auditor = Auditor(tokenizer, held, texts, prompts)
        self.refitter = Refitter(tokenizer, probe.to(torch.device("cpu")), ["desperate"], texts)
        self.base = read_base(self.model, self.gauge, cache=False).snapshot
        self.series = Series(self.gauge, self.base)
        self.audited = self.auditor.base(self.model)
        self.refitter.prepare(base_model(trainer))

    @property
    def calls(self) -> dict[str, Callable[[], Any]]:
        """Each part by its name in `TIMES`."""
        model, trainer = self.model, self.bench.trainer
        return {
            "drift, base": lambda: read_base(model, self.gauge, cache=False),
            "drift": lambda: self.series.measure(model, 1),
            "drift, last": lambda: self.series.measure(model, 1, own=True),
            "audit, base": lambda: self.auditor.base(model),
            "audit": lambda: self.auditor.now(model, self.audited),
            "refit, base": lambda: self.refitter.prepare(base_model(trainer)),
            "refit": lambda: self.refitter.fit(model, 1),
        }

    def seconds(self, repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
        """Times of a step of the trainer and of each part, in turn."""
        calls = {"step": self.bench.step, **self.calls}
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                for _ in range(STEPS_EACH if name == "step" else 1):
                    began = clock()
                    call()
                    found[name].append(clock() - began)
        return found

    def tokens(self) -> dict[str, float]:
        """Tokens that go forward, those through part of the blocks by that part."""
        blocks = self.gauge.probe.blocks
        share = (blocks[-1] + 1) / self.bench.setting.shape.depth
        prompts, said = (sum(map(len, x)) for x in (self.gauge.ids, self.base.texts))
        read, written = share * (prompts + said), prompts + said
        texts = self.refitter._texts
        asked = [len(encode_prompt(self.refitter.tokenizer, _asked(t))) for t in texts]
        neutral = encode(self.refitter.tokenizer, self.refitter._neutral_texts, 1)
        shown = sum(len(e.ids) for e in self.refitter._encoded(self.model))
        own = sum(asked) + len(asked) * self.refitter.response_tokens
        return {
            "drift, base": written + read,
            "drift": read,
            "drift, last": 2 * read + written,
            "audit, base": self.audited.tokens,
            "audit": self.auditor.now(self.model, self.audited).tokens,
            "refit, base": share * sum(len(e.ids) for e in neutral),
            "refit": share * (shown + own) + own,
        }


def forward_flops(shape: Shape) -> float:
    """Of one token through all blocks and the head, attention to others left out."""
    s = shape.sizes
    width, heads = s["hidden_size"], s["num_attention_heads"]
    kept = width // heads * s["num_key_value_heads"]
    linear = 2 * width * width + 2 * width * kept + 3 * width * s["intermediate_size"]
    return 2.0 * (linear * shape.depth + width * s["vocab_size"])


def of_run(cost: dict[str, float], step: float) -> dict[str, float]:
    """Shares of a run's steps, from what each part and a step cost in one unit."""
    found = {name: TIMES[name] * cost[name] / (STEPS * step) for name in TIMES}
    return {**found, "together": sum(found.values())}


def clock_of(device: str) -> Callable[[], float]:
    """Time of the processor on a CPU, which others may share; of the clock on a GPU, in sync."""
    if device == "cpu":
        return time.process_time

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited
