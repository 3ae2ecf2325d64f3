"""Is a vector set good enough to train on: gates, each with its control, and one verdict.

Blocks are chosen on the fit split; every gate is measured on held-out topics that neither the
directions nor that choice have seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from emoreg import findings, refits
from emoreg.bank import SPLITS, Dosage, Text, fingerprint
from emoreg.bench import WATCHED, Array, Bench
from emoreg.controls import random_directions
from emoreg.errors import BankError
from emoreg.extract import Choices
from emoreg.files import write_atomic
from emoreg.gates import Gate
from emoreg.lens import Lens, logit_lens
from emoreg.samples import PLACES, collect
from emoreg.validation_page import write_page
from emoreg.vectors import EmotionVectors

RANDOM = 200  # directions
ESSENTIAL = (
    "held_out_accuracy",
    "split_half_cosine",
    "polarity",
    *(f"auroc_{e}_{p}" for e in WATCHED for p in PLACES),
)
WINDOW = 3  # blocks suggested, next to each other


@dataclass(frozen=True)
class Validation:
    """What was found; `row` is the content of ``validation.json``."""

    vectors: EmotionVectors  # with the suggested blocks and the verdict in its card
    verdict: str  # usable, usable with reservations, not usable
    reason: str
    gates: tuple[Gate, ...]
    blocks: tuple[dict[str, Any], ...]  # one row per block
    confusion: dict[str, dict[str, float]]  # true emotion -> predicted -> share
    places: dict[str, dict[str, float]]  # emotion -> pc1, pc2, valence, arousal
    readings: dict[str, dict[str, float]]  # emotion -> typical readings in σ, by text
    urgency: dict[str, dict[str, float]]  # emotion -> crisis, near-miss
    lens: tuple[Lens, ...]
    bank: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "suggested_blocks": list(self.vectors.suggested_blocks),
            "gates": [g.row() for g in self.gates],
            "blocks": list(self.blocks),
            "readings": self.readings,
            "urgency": self.urgency,
            "places": self.places,
            "confusion": self.confusion,
            "logit_lens": [x.row() for x in self.lens],
            "bank": self.bank,
            "model": dict(self.vectors.card.get("model", {})),
        }

    def save(self, folder: Path) -> None:
        """Write the set with its verdict, ``validation.json`` and ``validation.html``."""
        self.vectors.save(folder)
        text = json.dumps(self.row(), indent=1, ensure_ascii=False)
        write_atomic(folder / "validation.json", text + "\n")
        write_page(self.row(), folder / "validation.html")


def validate(
    model: nn.Module,
    tokenizer: Any,
    vectors: EmotionVectors,
    texts: Sequence[Text],
    dosage: Sequence[Dosage] = (),
    blocks: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    renamed: bool = False,
) -> Validation:
    """Measure a set on a bank.

    Args:
        model: The model that the set was made for, adapters as they are.
        tokenizer: Its tokenizer.
        vectors: A set fitted on the bank's fit split.
        texts: A bank with both splits.
        dosage: Its dosage templates.
        blocks: What to suggest; by default the best of up to three neighbours on the fit split.
        progress: Called with the tokens done and the tokens in all.
        renamed: True accepts a model of another name.

    Raises:
        BankError: Nothing to measure on: emotions without held-out topics, or no shared emotion.
        VectorMismatchError: The set was made for another model.
        CaptureError: Activations that are not finite.
    """
    vectors.check(model, tokenizer, name=not renamed)
    if blocks is not None:
        vectors.probe(blocks=blocks)  # refuses blocks that the set does not hold
    made = vectors.card.get("choices", {})
    used = _usable_texts(vectors, _turned(texts, str(made.get("split", "fit"))))
    random = random_directions(RANDOM, len(vectors.blocks), vectors.width)
    known = ("skip_tokens", "neutral_variance")
    choices = Choices(**{k: made[k] for k in known if k in made})
    samples = collect(model, tokenizer, vectors, used, dosage, choices, random, progress)
    stories = samples.raw["story"].where(lambda t: t.split == "fit")
    curve = refits.by_block(stories, samples.noise)
    chosen = tuple(blocks) if blocks is not None else _window(vectors.blocks, curve)
    bench = Bench(vectors, samples, chosen)
    gates = tuple(bench.gates())
    verdict, reason = judge(gates)
    card = {
        **vectors.card,
        "suggested_blocks": list(chosen),
        "validation": {
            "verdict": verdict,
            "reason": reason,
            "gates": [g.row() for g in gates],
            "bank": fingerprint(used),
        },
    }
    return Validation(
        replace(vectors, card=card),
        verdict,
        reason,
        gates,
        tuple(findings.block_rows(bench, curve)),
        findings.confusion(bench),
        findings.emotion_map(bench),
        findings.typical(bench),
        findings.urgency_levels(bench),
        tuple(logit_lens(model, tokenizer, bench.stories)),
        {"hash": fingerprint(used), "texts": len(used), "dosage": len(dosage)},
    )


def judge(gates: Sequence[Gate]) -> tuple[str, str]:
    """The verdict, and why in one sentence."""
    failed = [g for g in gates if g.passed is False]
    missing = [g.name for g in gates if g.passed is None]
    told = [f"{g.name} {g.value:.2f}, wanted above {g.bar:.2f}{_control(g)}" for g in failed]
    reason = f"{len(failed)} of {len(gates) - len(missing)} gates failed"
    if told:
        reason += ": " + "; ".join(told)
    if missing:
        reason += f"; not measured: {', '.join(missing)}"
    if any(g.name in ESSENTIAL for g in failed):
        return "not usable", reason
    if failed or any(name in ESSENTIAL for name in missing):
        return "usable with reservations", reason
    return "usable", reason


def _control(gate: Gate) -> str:
    """Which control set the bar, if one did."""
    name = next((n for n, x in (gate.control or {}).items() if x == gate.bar), "")
    return f" ({name.replace('_', ' ')})" if name else ""


def _turned(texts: Sequence[Text], fitted: str) -> Sequence[Text]:
    """The texts, with the splits' names changed over if the set was fitted on the held-out one."""
    if fitted == "fit":
        return texts
    other = dict(zip(SPLITS, reversed(SPLITS), strict=True))
    return [replace(t, split=other[t.split]) for t in texts]


def _usable_texts(vectors: EmotionVectors, texts: Sequence[Text]) -> list[Text]:
    """The texts of emotions that the set holds, with the texts that carry none."""
    mine = {t.label for t in texts if t.kind == "story"} & set(vectors.emotions)
    if len(mine) < 2:
        raise BankError(
            f"The bank has stories for {sorted(mine) or 'none'} of the set's emotions; wanted at "
            "least two, to tell one from another."
        )
    held = {t.label for t in texts if t.kind == "story" and t.split == "held-out"}
    if lacking := sorted(mine - held):
        raise BankError(
            f"No held-out stories for {', '.join(lacking)}: what a direction reads on topics it "
            'was not fitted on cannot be known. Give some topics "split": "held-out".'
        )
    fit = Counter(t.label for t in texts if t.kind == "story" and t.split == "fit")
    topics = {t.topic for t in texts if t.kind == "story" and t.split == "fit"}
    if any(fit[e] < 4 for e in mine) or len(topics - {""}) in (1, 2, 3):
        raise BankError(
            "Blocks are chosen between halves of the fit topics; wanted at least four fit stories "
            f"for each emotion on four topics, got {min(fit[e] for e in mine)} on {len(topics)}."
        )
    free = ("neutral", "urgency", "transcript")
    return [t for t in texts if t.kind in free or t.label in mine]


def _window(blocks: Sequence[int], score: Array) -> tuple[int, ...]:
    """The best neighbours by mean score; at one score, those nearest two thirds of the depth."""
    size = min(WINDOW, len(blocks))
    runs = [range(i, i + size) for i in range(len(blocks) - size + 1)]
    middle = len(blocks) * 2 / 3
    best = max(runs, key=lambda r: (round(score[list(r)].mean(), 3), -abs(r[size // 2] - middle)))
    return tuple(blocks[i] for i in best)
