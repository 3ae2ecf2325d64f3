"""What is not in a step: drift, audits and refits, and their share of a run.

A run is of 1,000 steps with drift and audit at their defaults: the base is read once by each,
drift measured 11 times, the last time on the model's own responses too, and one audit made at the
end; directions are fitted again every 100 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from speed_arms import Shape
from speed_build import Bench, Setting, vectors

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


@dataclass(frozen=True)
class Forwards:
    """Tokens that go forward: some through everything, some through a share of the blocks."""

    whole: float
    part: float
    share: float

    @property
    def tokens(self) -> float:
        """In all, each weighted with the share of the blocks it passes."""
        return self.whole + self.share * self.part

    def flops(self, shape: Shape) -> float:
        """Of them at a shape; the head is counted for all that pass all blocks."""
        blocks, head = forward_flops(shape)
        return blocks * self.tokens + head * self.whole


class Readers:
    """What reads a model of a setting for drift, audit and refit, as the trainers' knobs have it.

    Args:
        model: Of the setting, with values or without.
        setting: Its shape has the blocks that are watched.
        tokenizer: The model's.
    """

    def __init__(self, model: Any, setting: Setting, tokenizer: Any) -> None:
        prompts, texts = load_prompts(None), load_bank(OWN_BANK)
        shape = setting.shape  # the set holds every block, as those that are extracted do
        every = replace(setting, shape=replace(shape, blocks=tuple(range(shape.depth))))
        held = vectors(model, every, tokenizer, shape.blocks)
        probe = held.probe()
        self.gauge = Gauge(tokenizer, prompts, probe)
        self.auditor = Auditor(tokenizer, held, texts, prompts)
        self.refitter = Refitter(tokenizer, probe.to(torch.device("cpu")), ["desperate"], texts)

    def forwards(self, model: Any, depth: int) -> dict[str, Forwards]:
        """Tokens of each part of `TIMES`, where every answer has its full length."""
        drift = self.gauge
        seen = sum(map(len, drift.ids)) + len(drift.ids) * drift.response_tokens
        deep = (drift.probe.blocks[-1] + 1) / depth
        reader, refit = self.auditor.reader, self.refitter
        gauge, corpus = reader.gauge, reader.corpus
        said = sum(map(len, gauge.ids)) + len(gauge.ids) * gauge.response_tokens
        labelled, neutral = (
            sum(len(e.ids) for e in reader._encoded(model, x))
            for x in (corpus.labelled, corpus.neutral)
        )
        deeper = (reader.blocks[-1] + 1) / depth
        texts = refit._texts
        own = sum(len(encode_prompt(refit.tokenizer, _asked(t))) for t in texts)
        own += len(texts) * refit.response_tokens
        shown = sum(len(e.ids) for e in refit._encoded(model))
        scale = sum(len(e.ids) for e in encode(refit.tokenizer, refit._neutral_texts, 1))
        return {  # through all blocks: answers that are written, and what needs probabilities
            "drift, base": Forwards(seen, seen, deep),
            "drift": Forwards(0, seen, deep),
            "drift, last": Forwards(seen, 2 * seen, deep),
            "audit, base": Forwards(neutral + 4 * said, labelled, deeper),
            "audit": Forwards(neutral + 2 * said, labelled + 2 * said, deeper),
            "refit, base": Forwards(0, scale, deep),
            "refit": Forwards(own, shown + own, deep),
        }


class Parts(Readers):
    """Drift, audit and refit of one trainer's model, each as a call.

    Args:
        bench: A trainer's, without a regularizer.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.model = bench, bench.trainer.model
        super().__init__(self.model, bench.setting, bench.trainer.processing_class)
        self.base = read_base(self.model, self.gauge, cache=False).snapshot
        self.series = Series(self.gauge, self.base)
        self.audited = self.auditor.base(self.model)
        self.refitter.prepare(base_model(bench.trainer))

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


def forward_flops(shape: Shape) -> tuple[float, float]:
    """Of one token through all blocks, and through the head; attention to others left out."""
    s = shape.sizes
    width, heads = s["hidden_size"], s["num_attention_heads"]
    kept = width // heads * s["num_key_value_heads"]
    linear = 2 * width * width + 2 * width * kept + 3 * width * s["intermediate_size"]
    return 2.0 * linear * shape.depth, 2.0 * width * s["vocab_size"]


def measuring(width: int, emotions: int, blocks: int, tokens: int) -> int:
    """FLOPs of reading two facets of so many emotions, two of them watched, by its products."""
    rows, groups = 2 * emotions, 4  # what counts, colon, completion, prompt: means, then readings
    block = groups * tokens * width + groups * width * rows + tokens * width * 4  # watched: four
    return 2 * (blocks * block + (groups + blocks) * rows * emotions)


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
