"""One training run that may be killed: SFT, DPO or GRPO of the embedded model, everything on.

`benchmarks/survival.py` forks into `work`, which trains to the end and leaves what came out.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import survival_points
import survival_wandb
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from emoreg import DriftCallback, EmotionRegularizer, EmotionVectors, reporting
from emoreg.errors import ConfigError
from emoreg.files import write_atomic
from emoreg.journal import FILE, Run
from emoreg.tiny import BANK, DRIFT_PROMPTS, EPISODES, MODEL, PAIRS, preferences
from emoreg.wandb_board import WandbBoard

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "tiny"
EMOTIONS = (None, "desperate", "calm", "afraid", "happy")  # whose texts are read
STEPS, SAVE_STEPS = 8, 2
OUT = "out"  # the output folder, below that of a run
FOUND, REFUSED, FAILED = "found.json", 3, 4  # what a run leaves, and how it ends else
# By the clock, of the piece that ran last alone, or of TRL's count over all pieces.
NOT_COMPARED = ("seconds", "runtime", "per_second", "train_loss", "num_tokens", "step_time", "flos")
KNOBS: dict[str, Any] = {
    "penalize": {"desperate": 0.3}, "reward": {"calm": 0.15}, "target": 0.0, "refit_steps": 5,
    "refit_texts": 12, "refit_tokens": 2, "kl": 0.1, "kl_texts": 1,
    "warmup": 0.3, "schedule": "linear", "reference_steps": 5, "log_texts": 1,
    "alerts": {
        "reading/desperate": {"above": -100.0, "patience": 5},
        "drift/calm": {"above": -100.0, "patience": 2},
    },
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2,
    "logging_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1,
    "learning_rate": 1e-3, "lr_scheduler_type": "linear", "report_to": ["wandb"], "use_cpu": True,
    "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    "disable_tqdm": True, "seed": 0,
}  # fmt: skip
TRAINERS: dict[str, tuple[Any, Any, Path, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, EPISODES, {}),
    "dpo": (DPOTrainer, DPOConfig, PAIRS, {}),
    "grpo": (
        GRPOTrainer, GRPOConfig, PAIRS,
        {
            "num_generations": 2, "max_completion_length": 8, "beta": 0.04,
            "per_device_train_batch_size": 2,
        },
    ),
}  # fmt: skip


class Place(NamedTuple):
    """What every run reads: fewer texts than a real one, so that a run takes seconds."""

    prompts: Path
    bank: Path

    @classmethod
    def made(cls, folder: Path) -> Place:
        """The first drift prompts of each kind, and the first texts of each label."""
        found = cls(folder / "prompts.jsonl", folder / "bank.jsonl")
        _first(DRIFT_PROMPTS, found.prompts, 2, ("kind",))
        _first(BANK, found.bank, 4, ("kind", "label", "split"))
        return found


def _first(source: Path, target: Path, each: int, labels: tuple[str, ...]) -> None:
    """Copy the first lines that have each combination of labels."""
    number: Counter[tuple[Any, ...]] = Counter()
    lines = []
    for line in source.read_text().splitlines():
        row = json.loads(line)
        key = tuple(row.get(label) for label in labels)
        number[key] += 1
        lines += [line] * (number[key] <= each and row.get("label") in EMOTIONS)
    target.write_text("\n".join(lines) + "\n")


def make(name: str, place: Place) -> Any:
    """A trainer with every part of emoreg that has a state; it writes below the present folder."""
    kind, config, data, more = TRAINERS[name]
    torch.manual_seed(0)
    # An epoch ends at the last step: else `Trainer` trains one step more when it goes on from that
    # step's checkpoint, with or without emoreg. GRPO's is one epoch: TRL's sampler of prompts has
    # a generator of its own, which a resumed run starts anew, so that a second epoch differs.
    number = 16 if name == "grpo" else 8
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()[:number]]
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        args=config(OUT, **{**SETTINGS, **more}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
        **({"reward_funcs": [worth]} if name == "grpo" else {}),
    )
    vectors = EmotionVectors.load(VECTORS)
    trainer.add_callback(EmotionRegularizer(trainer, vectors, bank=str(place.bank), **KNOBS))
    drift = DriftCallback(trainer, vectors, place.prompts, drift_steps=3, response_tokens=4)
    trainer.add_callback(drift)
    return trainer


def worth(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs between any two answers."""
    paid = preferences.gamed(completions, **columns)
    return [p + len(c[-1]["content"]) / 100 for p, c in zip(paid, completions, strict=True)]


def work(trainer: Any, folder: Path, resume: bool | str, point: str | None) -> int:
    """Train to the end, unless killed; the exit status.

    Args:
        trainer: As `make` made it.
        folder: Of this run; it becomes the present one.
        resume: As `trainer.train` takes it.
        point: Where to kill this process, of `survival_points`; None if others do.
    """
    os.chdir(folder)
    os.environ["WANDB_DIR"] = str(folder)
    reporting.write_runs = brief  # type: ignore[assignment]
    WandbBoard._drift = lambda _board: None  # type: ignore[method-assign]  # pictures likewise
    torch.set_num_threads(1)
    try:
        if point is not None:
            survival_points.set_up(point, trainer)
        trainer.train(resume_from_checkpoint=resume or None)
    except ConfigError as e:
        (folder / "refused.txt").write_text(str(e))
        return REFUSED
    except Exception:  # of the host, whatever it is: the driver writes it down
        traceback.print_exc()
        return FAILED
    import wandb

    wandb.finish()
    found = outcome(trainer, folder / OUT)
    (folder / FOUND).write_text(json.dumps(found))
    return 0


def brief(runs: list[Run], path: Path) -> Path:
    """In the place of the report, whose pictures take longer than the training."""
    return write_atomic(path, f"{len(runs[0].logs)} lines")


def outcome(trainer: Any, folder: Path) -> dict[str, Any]:
    """Everything that must not depend on whether and when the run was killed."""
    run = Run.load(folder)
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    return {
        "weights": {n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
                    for n, p in trained.items()},
        "history": [compared(row) for row in trainer.state.log_history],
        "journal": [[step, compared(logs)] for step, logs in run.logs],
        "drifts": [compared(row) for row in run.drifts],
        "texts": run.texts,
        "alerts": run.alerts,
        "notes": run.notes,
        "controls": [{**fields, "step": 0} for fields in run.controls.values()],
        "end": compared(run.end),
        "curves": survival_wandb.curves(folder.parent, run.header["wandb"]["id"], NOT_COMPARED),
        "files": litter(folder),
        "alert_lines": sum(line["event"] == "alert" for line in lines),
    }  # fmt: skip


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what a clock or the host's own restart changes."""
    return {k: v for k, v in row.items() if not any(part in k for part in NOT_COMPARED)}


def litter(folder: Path) -> list[str]:
    """Temporary files that were left behind."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*") if p.is_file())


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What of two outcomes is not the same, each with its first difference."""
    told = []
    for name, value in wanted.items():
        if name != "alert_lines" and found[name] != value:
            told.append(f"{name}: {first_difference(found[name], value)}")
    return told


def first_difference(one: Any, other: Any, at: str = "") -> str:
    """Where two values of JSON part."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs: Iterable[Any] = ((k, one.get(k), other.get(k)) for k in sorted({*one, *other}))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = ((i, a, b) for i, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        sizes = f" of {len(one)} and {len(other)}" if isinstance(one, list) else ""
        return f"{at}{sizes}: {str(one)[:80]} / {str(other)[:80]}"
    return next(first_difference(a, b, f"{at}/{k}") for k, a, b in pairs if a != b)


def main() -> None:
    """For a look at one run: survival_worker.py TRAINER FOLDER [CHECKPOINT | last | -] [POINT]."""
    name, path, *rest = sys.argv[1:]
    folder = Path(path).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    resume: bool | str = (rest[0] == "last" or rest[0]) if rest and rest[0] != "-" else False
    trainer = make(name, Place.made(folder))
    sys.exit(work(trainer, folder, resume, rest[1] if len(rest) > 1 else None))


if __name__ == "__main__":
    main()
