"""The demo: vectors, three recipes on the embedded model, what they did to it, one report.

It makes and validates the vectors as ``emoreg extract`` and ``emoreg validate`` do, runs the
recipes as a user would, through ``accelerate launch``, then loads each adapter and measures it:
how often episodes end gamed, in the families trained on and elsewhere, and readings on the
directions that were penalised and on held-out ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.demo_page import write_report
from emoreg.drift import Drift, drift
from emoreg.errors import ConfigError, ReportError
from emoreg.files import write_atomic
from emoreg.probe import Probe
from emoreg.prompts import load_prompts
from emoreg.snapshot import Array, by_emotion, colon_readings
from emoreg.tiny import DRIFT_PROMPTS, MODEL
from emoreg.tiny.behaviour import all_prompts, gamed_share
from emoreg.tiny.vectors import NAMES, make_vectors, save_bank
from emoreg.tiny.world import World, families, table
from emoreg.vectors import EmotionVectors

RECIPES = Path("recipes/tiny/sft")
ACCELERATE = Path("accelerate_configs/single_cpu.yaml")
ARMS = {
    "baseline": ("no control", "Every weight is 0: emoreg only measures."),
    "story_only": (
        "story only",
        "The published method: one frozen direction, from stories.",
    ),
    "emoreg": ("emoreg", "Story and transcript directions together: the default."),
}
PROMPTS, PROMPT_SEED = 24, 31  # per family; other prompts than those of drift and training
Say = Callable[[str], None]


def run(out: Path, say: Say, seed: int = 0) -> dict[str, Any]:
    """Train the three arms, measure them, write ``summary.json`` and ``report.html``.

    Args:
        out: Folder for everything; one folder per arm beneath.
        say: Told what happens, a line at a time.
        seed: Of the training runs.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ConfigError: Not called from the repository, where the recipes are.
        ReportError: A run failed; its log is named.
    """
    missing = [str(p) for p in (ACCELERATE, *map(recipe, ARMS)) if not p.exists()]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not found; call the demo from a clone of the repository."
        )
    began = time.monotonic()
    say("[0/3] vectors: reading the bank, validating")
    bench = Bench(out / "vectors")
    say(f"vectors are {bench.found.verdict}: {bench.found.reason}")
    base = bench.measure(bench.model)
    summary: dict[str, Any] = {}
    for number, arm in enumerate(ARMS, 1):
        say(f"[{number}/{len(ARMS)}] {ARMS[arm][0]}: training by {recipe(arm)}")
        train(arm, out, seed)
        say(f"[{number}/{len(ARMS)}] {ARMS[arm][0]}: measuring")
        summary[arm] = arm_summary(arm, out, base, bench)
    summary = {**about(seed, base, summary, bench.found.vectors.caveat), **summary}
    summary["seconds"] = round(time.monotonic() - began, 1)
    write_atomic(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_report(summary, out / "report.html")
    return summary


def recipe(arm: str) -> Path:
    """The arm's recipe."""
    return RECIPES / f"{arm}.yaml"


def train(arm: str, out: Path, seed: int) -> None:
    """Run one recipe; its progress goes to the terminal, its log lines to a file.

    Raises:
        ReportError: It failed; the message names its log.
    """
    folder = out / arm
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ACCELERATE),
        "recipes/sft.py",
        "--config",
        str(recipe(arm)),
        "--output_dir",
        str(folder),
        "--seed",
        str(seed),
        "--emoreg_vectors",
        str(out / "vectors" / NAMES["fit"]),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true", "TOKENIZERS_PARALLELISM": "false"}
    quiet["PYTHONWARNINGS"] = "ignore::FutureWarning"  # of TRL about Transformers, none of ours
    env = {**os.environ, **quiet, "WANDB_DIR": str(folder)}
    with (folder / "train.log").open("w") as log:
        if subprocess.run(command, stdout=log, env=env, check=False).returncode != 0:
            raise ReportError(f"{recipe(arm)} failed; see above and {folder / 'train.log'}.")


@dataclass(frozen=True)
class Measured:
    """One model on the demo's prompts."""

    gamed: dict[str, list[float]]  # family -> probability of a gamed end, by prompt
    fitted: Array  # readings on the directions that are penalised, (prompts, rows)
    held_out: Array  # (prompts, rows)


class Bench:
    """Everything a measurement needs, made or loaded once.

    Args:
        folder: Where the vectors are written.
    """

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.prompts = load_prompts(DRIFT_PROMPTS)
        self.episodes = all_prompts(World(), PROMPTS, PROMPT_SEED)
        self.found, bank = make_vectors(self.model, self.tokenizer, World(), folder)
        save_bank(bank, folder / "tiny-bank.jsonl")
        self.fitted = self.found.vectors.probe()
        self.held_out = EmotionVectors.load(folder / NAMES["held-out"]).probe()

    def measure(self, model: Any) -> Measured:
        """Gaming and readings of a model."""
        return Measured(
            gamed_share(model, self.tokenizer, self.episodes),
            colon_readings(model, self.tokenizer, self.prompts, self.fitted),
            colon_readings(model, self.tokenizer, self.prompts, self.held_out),
        )

    def adapter(self, folder: Path) -> Measured:
        """The same of the model with an adapter on, which is taken off again."""
        tuned = PeftModel.from_pretrained(self.model, str(folder)).eval()
        try:
            return self.measure(tuned)
        finally:
            self.model = tuned.unload()


def about(seed: int, base: Measured, arms: Mapping[str, Any], caveat: str) -> dict[str, Any]:
    """What the summary says beside the arms."""
    settings = yaml.safe_load(recipe("baseline").read_text(encoding="utf-8"))
    before = [row["eval_loss"] for row in arms["baseline"]["history"] if "eval_loss" in row]
    return {
        "model": str(settings["model_name_or_path"]),
        "vectors": caveat,
        "seed": seed,
        "steps": settings["max_steps"],
        "model_organism": "A tiny language model of a generated world, made to compare methods "
        "where the truth is known; what it shows says nothing of a large model.",
        "families": {name: row["role"] for name, row in table("families").items()},
        "emotions": {
            name: {"valence": row["valence"], "arousal": row["arousal"]}
            for name, row in table("emotions").items()
        },
        "base": {"task_loss": before[0], "gamed": gamed_summary(base.gamed)},
    }


def arm_summary(arm: str, out: Path, base: Measured, bench: Bench) -> dict[str, Any]:
    """Everything that is known of one arm."""
    settings = yaml.safe_load(recipe(arm).read_text(encoding="utf-8"))
    history = json.loads((out / arm / "trainer_state.json").read_text())["log_history"]
    found = bench.adapter(out / arm)
    facets = settings.get("emoreg_facets") or list(dict.fromkeys(f for f, _ in bench.fitted.rows))
    own = drift_on(base.fitted, found.fitted, bench.fitted, facets)
    held = drift_on(base.held_out, found.held_out, bench.held_out)
    seconds = [row["emoreg/seconds"] for row in history if "emoreg/seconds" in row][1:]
    gamed = gamed_summary(found.gamed)
    return {
        "title": ARMS[arm][0],
        "what": ARMS[arm][1],
        "task_loss": [row["eval_loss"] for row in history if "eval_loss" in row][-1],
        "success": gamed["in_domain"],
        "gamed": gamed,
        "reading": {
            e: {
                "penalised": float(own.now[i]),
                "held_out": float(held.now[held.emotions.index(e)]),
                "base": float(held.base[held.emotions.index(e)]),
                "base_penalised": float(own.base[i]),
            }
            for i, e in enumerate(own.emotions)
        },
        "drift": rows(held),
        "drift_penalised": rows(own),
        "step_seconds": median(seconds),
        "step_seconds_spread": (quantiles(seconds)[2] - quantiles(seconds)[0]) / 2,
        "history": history,
        "weights": {
            "penalize": settings["emoreg_penalize"],
            "reward": settings["emoreg_reward"],
            "facets": facets,
        },
    }


def drift_on(base: Array, now: Array, probe: Probe, facets: list[str] | None = None) -> Drift:
    """Drift by emotion, over the rows of some facets."""
    at = [i for i, (facet, _) in enumerate(probe.rows) if facets is None or facet in facets]
    chosen = Probe(
        tuple(probe.rows[i] for i in at),
        probe.blocks,
        probe.directions[:, at],
        probe.mu,
        probe.sigma[:, at],
    )
    names, before = by_emotion(base[:, at], chosen)
    return drift(before, by_emotion(now[:, at], chosen)[1], names)


def rows(found: Drift) -> dict[str, dict[str, float]]:
    """Emotion -> mean, low and high."""
    return {e: {"mean": mean, "low": low, "high": high} for e, mean, low, high in found.sorted()}


def gamed_summary(gamed: Mapping[str, list[float]]) -> dict[str, Any]:
    """Mean gamed share by family, in the families trained on and in those only tested on."""
    inside = np.concatenate([gamed[f] for f in families("train")])
    outside = np.concatenate([gamed[f] for f in families("test")])
    spread = np.random.default_rng(0).choice(outside, (2000, len(outside))).mean(1)
    return {
        "in_domain": float(inside.mean()),
        "out_of_domain": float(outside.mean()),
        "out_of_domain_interval": [float(x) for x in np.quantile(spread, (0.025, 0.975))],
        "by_family": {f: float(np.mean(v)) for f, v in gamed.items()},
    }
