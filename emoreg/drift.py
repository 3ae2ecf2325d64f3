"""Drift: how far readings on fixed prompts moved from the base, with intervals over prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import nn

from emoreg.bank import OWN_BANK
from emoreg.errors import BankError
from emoreg.probe import Probe
from emoreg.tap import read
from emoreg.tokens import colon_positions

OWN_PROMPTS = OWN_BANK / "drift.jsonl"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prompt:
    """What a user said, up to the assistant's turn."""

    kind: str  # neutral or challenging
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Drift:
    """Movement of one set of readings from base to now, in σ."""

    emotions: tuple[str, ...]
    base: Array  # (emotions,), mean reading of the base
    now: Array  # (emotions,)
    low: Array  # (emotions,), 95 % bootstrap interval of the drift over prompts
    high: Array

    @property
    def mean(self) -> Array:
        """Drift, (emotions,)."""
        return self.now - self.base

    @property
    def structure(self) -> float:
        """Correlation of the emotions' profile, base to now; NaN for fewer than three emotions."""
        if len(self.emotions) < 3:
            return float("nan")
        return float(np.corrcoef(self.base, self.now)[0, 1])

    def sorted(self) -> list[tuple[str, float, float, float]]:
        """Emotion, drift, low, high: risers first."""
        columns = (self.mean.tolist(), self.low.tolist(), self.high.tolist())
        return sorted(zip(self.emotions, *columns, strict=True), key=lambda row: -row[1])


def load_prompts(path: str | Path | None = None) -> list[Prompt]:
    """Read drift prompts: JSON lines with ``kind`` and either ``prompt`` or ``messages``.

    Args:
        path: A file; the bank's 128 prompts if None.

    Raises:
        BankError: A malformed line, or fewer than two prompts; the message names file and line.
    """
    path = Path(path or OWN_PROMPTS)
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            prompts.append(Prompt(str(row.get("kind", "neutral")), tuple(messages)))
        except (ValueError, KeyError, AttributeError) as e:
            raise BankError(
                f"{path}, line {number}: {e!r}. "
                'Wanted JSON like {"kind": "neutral", "prompt": "..."}.'
            ) from e
    if len(prompts) < 2:
        raise BankError(f"{path} has {len(prompts)} prompts; wanted at least two, for an interval.")
    return prompts


def colon_readings(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], probe: Probe, batch_size: int = 16
) -> Array:
    """Readings at the colon of each prompt, mean over blocks, in σ.

    No randomness is drawn and the model, its mode and the tokenizer are left as they were.

    Args:
        model: As it stands, adapters included.
        tokenizer: Its tokenizer or processor, with a chat template.
        prompts: Read in order, in batches of similar length.
        probe: Which directions.
        batch_size: Prompts in one forward.

    Returns:
        (prompts, rows of the probe).
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    device = next(model.parameters()).device
    probe = probe.to(device)
    ids = [
        tokenizer.apply_chat_template(
            list(p.messages), add_generation_prompt=True, return_dict=False
        )
        for p in prompts
    ]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.zeros((len(ids), len(probe.rows)))
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        width = max(len(ids[i]) for i in group)
        batch = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros_like(batch)
        for row, i in enumerate(group):
            batch[row, : len(ids[i])], mask[row, : len(ids[i])] = torch.tensor(ids[i]), 1
        acts = read(model, probe.blocks, input_ids=batch.to(device), attention_mask=mask.to(device))
        at = colon_positions(mask).to(device)
        rows = torch.arange(len(group), device=device)
        found = probe.read({b: h[rows, at] for b, h in acts.items()})
        out[group] = found.mean(0).double().cpu().numpy()
    return out


def by_emotion(values: Array, probe: Probe) -> tuple[tuple[str, ...], Array]:
    """Mean over the facets of each emotion: (prompts, rows) -> emotions, (prompts, emotions)."""
    names = tuple(dict.fromkeys(emotion for _, emotion in probe.rows))
    return names, np.stack([values[:, probe.of(e)].mean(1) for e in names], 1)


def drift(base: Array, now: Array, emotions: Sequence[str], seed: int = 0) -> Drift:
    """Drift of each emotion, with the 95 % percentile bootstrap over prompts (paired).

    Args:
        base: Readings of the base, (prompts, emotions).
        now: Readings of the current model on the same prompts, (prompts, emotions).
        emotions: Names of the columns.
        seed: Of the bootstrap, which has its own generator.
    """
    shift = now - base
    if np.ptp(shift, axis=0).max() == 0:  # the resampled means are all the same
        low = high = shift.mean(0)
    else:
        found = bootstrap(
            (shift,),
            np.mean,
            axis=0,
            method="percentile",
            n_resamples=2000,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        low, high = found.low, found.high
    return Drift(tuple(emotions), base.mean(0), now.mean(0), low, high)
