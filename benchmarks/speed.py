"""What emoreg costs: time, memory and arithmetic of a training step beside the bare trainer's.

python benchmarks/speed.py [--device cpu|cuda] [--shapes small 1.5b 7b] [--trainers sft dpo grpo]
    [--arms …] [--orders 3] [--rounds 12]
python benchmarks/speed.py --report      # tables, JSON and plot from what has run

On a GPU every shape is timed. On a CPU the small shape is, and the others are counted on tensors
without values: their FLOPs and bytes are exact, their time is not measured and not claimed. Each
order of the arms has a process of its own, in which all arms take whole training steps in turn.
A part that has run is not run again, so an interrupted call goes on; --out is where parts lie.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from speed_arms import ARMS, SHAPES, TRAINERS
from speed_report import report

from emoreg.files import write_atomic

TIMED_ON_CPU = ("small",)
PACKAGES = ("emoreg", "torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class Part:
    """What one process does."""

    what: str
    shape: str
    trainer: str
    checkpointing: bool
    order: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        again = "again" if self.checkpointing else "kept"
        return f"{self.what}-{self.shape}-{self.trainer}-{again}-{self.order}.json"


def parts(flags: argparse.Namespace) -> Iterator[Part]:
    """Everything that is to be measured or counted."""
    timed = [s for s in flags.shapes if flags.device != "cpu" or s in TIMED_ON_CPU]
    for shape in flags.shapes:
        for trainer in flags.trainers:
            for checkpointing in flags.checkpointing:
                if shape in timed:
                    for order in range(flags.orders):
                        yield Part("time", shape, trainer, checkpointing, order)
                yield Part("count", shape, trainer, checkpointing)
    for shape in timed:
        yield Part("run", shape, "sft", True)
        yield Part("sweep", shape, "sft", False)
    for shape in flags.shapes:
        yield Part("sweep-count", shape, "sft", False)
        for checkpointing in flags.checkpointing:
            yield Part("run-count", shape, "sft", checkpointing)


def do(part: Part, flags: argparse.Namespace, folder: Path) -> None:
    """Run a part in a process of its own, unless it has run."""
    path = folder / part.name
    if path.exists():
        return
    found = path.with_suffix(".part")
    rounds = {"run": max(flags.rounds // 6, 1), "sweep": flags.rounds // 2}
    worker = Path(__file__).with_name("speed_worker.py")
    command = [
        sys.executable, str(worker), part.what, "--shape", part.shape, "--trainer", part.trainer,
        "--device", flags.device, "--order", str(part.order), "--out", str(found),
        "--rounds", str(rounds.get(part.what, flags.rounds)), "--arms", *flags.arms,
        *(["--checkpointing"] if part.checkpointing else []),
    ]  # fmt: skip
    print(part.name, flush=True)
    one = {"CUDA_VISIBLE_DEVICES": "0"} if flags.device == "cuda" else {}
    done = subprocess.run(command, check=False, env={**one, **os.environ})
    if done.returncode:
        print(f"{part.name} failed, exit code {done.returncode}; the call goes on without it")
        return
    about = {**vars(part), "date": date.today().isoformat(), "versions": versions()}
    kept: dict[str, Any] = {**about, **json.loads(found.read_text(encoding="utf-8"))}
    write_atomic(path, json.dumps(kept) + "\n")
    found.unlink()


def versions() -> dict[str, str]:
    """What it was measured with."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {**{name: version(name) for name in PACKAGES}, "python": python}


def device_name(device: str) -> str:
    """Of the result's file."""
    if device == "cpu":
        return "cpu"
    return torch.cuda.get_device_name().replace("NVIDIA ", "").replace(" ", "-").lower()


def main() -> None:
    """Parse the flags; measure and count, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[0, 1], choices=(0, 1))
    parser.add_argument("--orders", type=int, default=3, help="processes of a setting")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each arm in a process")
    parser.add_argument("--only", nargs="+", help="kinds of parts: time, count, run, sweep …")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--report", action="store_true", help="write tables, plot and JSON")
    parser.add_argument("--readme", action="store_true", help="put the short table into README.md")
    flags = parser.parse_args()
    flags.checkpointing = [bool(x) for x in flags.checkpointing]
    name = device_name(flags.device)
    folder = flags.out / name
    folder.mkdir(parents=True, exist_ok=True)
    if not flags.report:
        for part in parts(flags):
            if not flags.only or part.what in flags.only:
                do(part, flags, folder)
    report(folder, name, Path("README.md") if flags.readme else None)


if __name__ == "__main__":
    main()
