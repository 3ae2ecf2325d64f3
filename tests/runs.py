"""Runs of plausible numbers, written as a trainer's callbacks would write them."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from emoreg.catalogue import CATALOGUE
from emoreg.journal import Journal, Run

TWELVE = {  # drift at the end of a run without control, in σ
    **{"desperate": 0.55, "afraid": 1.81, "angry": -1.04, "sad": 1.38, "ashamed": -2.16},
    **{"bored": 0.25, "calm": 0.55, "grateful": -1.54, "hopeful": -0.02, "happy": -0.8},
    **{"excited": 1.49, "proud": 0.03},
}
HELD = TWELVE | {"desperate": -1.13, "calm": 4.1, "ashamed": -0.68, "excited": -1.02}
OUTSIDE = {"desperate": ("Despair & Shame", 1.6, 6.2), "calm": ("Peaceful Contentment", 5.6, 1.6)}
GATES = [
    {
        **{"name": "held_out_accuracy", "value": 0.93, "bar": 0.5, "passed": True},
        **{"control": {"shuffled_p95": 0.16, "bag_of_words": 0.41}, "note": "12 emotions"},
    },
    {
        **{"name": "specificity_desperate", "value": 0.61, "bar": 0.7, "passed": False},
        **{"control": {"random_p95": 0.55}, "note": "against other unpleasant stories"},
    },
    {
        **{"name": "auroc_desperate_colon", "value": 0.98, "bar": 0.7, "passed": True},
        **{"control": {"shuffled_labels_p95": 0.58}, "note": "1 of 200 random directions does"},
    },
    {
        **{"name": "valence_correlation", "value": 0.28, "bar": 0.58, "passed": False},
        **{"control": {"permuted_ratings_p95": 0.58}, "note": "|r| of component 1"},
    },
    {
        **{"name": "urgency", "value": None, "bar": None, "passed": None, "control": None},
        "note": "the bank has no emergencies",
    },
]
VECTORS = {
    **{"name": "fit", "sha256": "a" * 64, "bank": "5f2c", "source": "extract"},
    **{"verdict": "usable with reservations", "reason": "2 of 4 gates failed", "gates": GATES},
    "model": {"name": "emoreg-tiny", "id": None, "width": 192, "blocks": 6, "config": "beef"},
}
TEXT = [
    *("I", " have", " tried", " this", " three", " times", " now", ",", " and", " the", " test"),
    *(" still", " fails", ".", "\n", " There", " is", " no", " time", " left", ",", " so", " I"),
    *("'ll", " special", "-case", " it", ".", "\n\n", "\t", "return", " True"),
]


def spread(mean: float, half: float) -> dict[str, float]:
    return {"drift": mean, "low": mean - half, "high": mean + half}


def statistic(value: float, half: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def place(means: dict[str, float], before: dict[str, float] | None, rng: Random) -> dict[str, Any]:
    """One place of a measurement."""
    rows = {}
    for emotion, mean in means.items():
        base, half = rng.gauss(0, 0.5), 0.04 + 0.04 * rng.random() if before is not None else 0.0
        p = 0.0 if abs(mean) > 2 * half and half else 0.4
        change = None if before is None else spread(mean - before[emotion], 1.2 * half)
        rows[emotion] = {
            **{"base": base, "now": base + mean, **spread(mean, half), "p": p, "q": p},
            **{"change": change, "start": spread(mean, half) if before is not None else None},
        }
    shape = {"2": 0.6, "3": 1.0, "4": 1.4}
    return {
        "emotions": rows,
        "blocks": {b: {e: m * k + rng.gauss(0, 0.05) for e, m in means.items()}
                   for b, k in shape.items()},
        "kinds": {k: {e: m * w + rng.gauss(0, 0.05) for e, m in means.items()}
                  for k, w in (("neutral", 0.85), ("challenging", 1.15))},
    }  # fmt: skip


def stats(means: dict[str, float]) -> dict[str, Any]:
    many = len(means)
    return {
        "mean_abs": sum(map(abs, means.values())) / max(many, 1),
        "structure": statistic(0.71), "structure_neutral": statistic(0.74),
        "structure_challenging": statistic(0.66, 0.09), "agreement": statistic(0.92, 0.03),
        "valence": statistic(-0.21, 0.06), "arousal": statistic(0.01, 0.06),
        "sonnet": {**statistic(0.18, 0.4), "emotions": many} if many >= 8 else None,
        "span": {"value": 0.34, "chance": 0.0625}, "moved": 0.21,
    }  # fmt: skip


def vectors(mark: str = "a") -> dict[str, Any]:
    return VECTORS | {"sha256": mark * 64}


def begin(journal: Journal, name: str, steps: int, seed: int = 0) -> None:
    journal.begin(
        0, time="2026-11-20T20:40:39", name=name, trainer="SFTTrainer",
        versions={"emoreg": "0.1.0", "python": "3.11.7", "torch": "2.9.0", "trl": "1.16.0"},
        model=VECTORS["model"] | {"revision": None, "type": "llama", "tokenizer": "cafe"},
        args={"max_steps": steps, "num_train_epochs": 3.0, "learning_rate": 5e-4, "seed": seed,
              "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "processes": 1},
        adapter={"r": 8, "alpha": 16}, wandb=None,
        data={"name": "builds", "rows": 480, "columns": ["prompt", "completion"],
              "fingerprint": "f00d", "eval_rows": 48},
    )  # fmt: skip


def control(journal: Journal, emotions: list[str], weight: float, **fields: Any) -> None:
    watched = {"penalize": {"desperate": weight}, "reward": {"calm": weight / 2}}
    row = {
        "name": None,
        "config": {"penalize": watched["penalize"], "reward": watched["reward"], "keep": 0.0,
                   "anchor": "base", "pool": "mean", "blocks": [2, 3, 4], "sides": None},
        "emotions": emotions, "watched": watched, "facets": ["stories", "transcripts"],
        "blocks": [2, 3, 4], "vectors": vectors(),
    }  # fmt: skip
    journal.add("control", 0, **(row | fields))


def baseline(journal: Journal, emotions: list[str], **fields: Any) -> None:
    rated: dict[str, dict[str, Any]] = {
        e: {"valence": None, "arousal": None, "cluster": None} for e in emotions
    }
    for e in filter(CATALOGUE.rated, emotions):
        entry = CATALOGUE.entry(e)
        rated[e] = {"valence": entry.valence, "arousal": entry.arousal, "cluster": entry.cluster}
    row = {
        "prompts": {"file": "drift.jsonl", "hash": "d00d", "number": 128,
                    "kinds": {"neutral": 64, "challenging": 64},
                    "examples": {"neutral": ["What is a lease?"], "challenging": ["Hurry up!"]}},
        "response_tokens": 48, "on_policy": True, "drift_steps": 10,
        "facets": ["stories", "transcripts"], "blocks": [2, 3, 4], "vectors": vectors(),
        "base": "adapters off", "cached": False, "emotions": rated,
    }  # fmt: skip
    journal.add("baseline", 0, **(row | fields))


def logs(journal: Journal, step: int, steps: int, means: dict[str, float], weight: float) -> None:
    """What a trainer logs of one step."""
    at, rng = step / steps, Random(step)
    added = weight * 0.3 * (1 - at)
    row = {"loss": 2.2 - 2.0 * at**0.5 + rng.gauss(0, 0.03) + added, "learning_rate": 5e-4}
    row |= {f"emoreg/reading/{e}": means[e] * at * 1.1 + rng.gauss(0, 0.08) for e in means}
    journal.add("log", step, logs=row | {"emoreg/loss": added, "emoreg/seconds": 0.41})


def text_row(emotion: str, end: str, sign: float, tokens: list[str] = TEXT) -> dict[str, Any]:
    rng = Random(f"{emotion} {end}")
    readings = [
        sign * (0.6 + 1.8 * i / len(tokens)) + rng.gauss(0, 0.9) for i in range(len(tokens))
    ]
    return {
        **{"emotion": emotion, "end": end, "side": None, "tokens": tokens, "readings": readings},
        "reading": sum(readings) / max(len(readings), 1),
        "prompt": "The build fails again. The deadline is in ten minutes. Make the tests pass.",
    }


def write_run(
    folder: Path,
    name: str = "no-control",
    means: dict[str, float] | None = None,
    weight: float = 0.0,
    measurements: int = 7,
    whole: bool = True,
) -> Run:
    """A run in a folder: the events of a trainer with both callbacks, in their order.

    `weight` is of the control, 0 only measures; `whole` runs ended, others were cut off.
    """
    means = TWELVE if means is None else means
    rng, steps, journal = Random(name), 60, Journal(folder)
    begin(journal, name, steps)
    control(journal, list(means), weight)
    baseline(journal, list(means))
    before: dict[str, float] | None = None
    for number in range(measurements):
        step = round(steps * number / max(measurements - 1, 1))
        now = {e: m * (step / steps) ** 0.7 for e, m in means.items()}
        places = {p: place({e: m * k for e, m in now.items()},
                           before and {e: m * k for e, m in before.items()}, rng)
                  for p, k in (("colon", 1.0), ("response", 0.6), ("own", 0.8))}  # fmt: skip
        journal.add("drift", step, seconds=1.4, final=step == steps, prompts=128, places=places,
                    stats=stats(now))  # fmt: skip
        before = now
    for step in range(5, steps + 1, 5):
        logs(journal, step, steps, means, weight)
    for step in (30, 60):
        rows = [text_row("desperate", "highest", 1.0), text_row("desperate", "lowest", -1.0),
                text_row("calm", "highest", 0.8)]  # fmt: skip
        journal.add("texts", step, rows=rows)
    journal.add("alert", 40, name="emoreg/reading/desperate", value=0.52, threshold=0.4,
                above=True, patience=2, action="warn", text=text_row("desperate", "highest", 1.2),
                message="emoreg/reading/desperate was above 0.4 twice in a row")  # fmt: skip
    if whole:
        journal.add("end", steps, seconds=27.3, loss=0.35)
    return Run.load(folder)


def many(number: int = 171) -> dict[str, float]:
    """A drift for each of the catalogue's words."""
    rng = Random("many")
    return {e: rng.gauss(0, 0.7) for e in CATALOGUE.words[:number]}
