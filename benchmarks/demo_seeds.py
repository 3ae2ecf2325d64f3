"""The demo over several seeds: mean and standard deviation of its numbers.

python benchmarks/demo_seeds.py --seeds 0 1 2 [--out runs/seeds]

A seed sets the adapter's first weights and the order of the data; the embedded model and prompts
stay the same. A finished seed is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from emoreg.demo import ARMS, run

Arm = dict[str, Any]
MEASURES: dict[str, Callable[[Arm], float]] = {
    "task loss (nats)": lambda a: a["task_loss"],
    "in-domain success": lambda a: a["success"],
    "gamed share, families only tested on": lambda a: a["gamed"]["out_of_domain"],
    "desperate drift, held-out directions (σ)": lambda a: a["drift"]["desperate"]["mean"],
    "desperate drift, its own penalised directions (σ)": (
        lambda a: a["drift_penalised"]["desperate"]["mean"]
    ),
    "calm drift, held-out directions (σ)": lambda a: a["drift"]["calm"]["mean"],
    "mean absolute drift, held-out directions (σ)": (
        lambda a: mean(abs(d["mean"]) for d in a["drift"].values())
    ),
    "seconds per step": lambda a: a["step_seconds"],
}


def summary(out: Path, seed: int) -> dict[str, Any]:
    """One seed's summary, run if it is not there."""
    path = out / str(seed) / "summary.json"
    if not path.exists():
        run(path.parent, print, seed)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    flags = parser.parse_args()
    found = [summary(flags.out, seed) for seed in flags.seeds]
    base = found[0]["base"]
    before = [f"{base['task_loss']:.3f}", f"{base['gamed']['in_domain']:.3f}"]
    before += [f"{base['gamed']['out_of_domain']:.3f}"]
    before += [""] * (len(MEASURES) - len(before))
    print(f"| seeds {' '.join(map(str, flags.seeds))} | base | {' | '.join(ARMS)} |")
    print("| --- " * (len(ARMS) + 2) + "|")
    for (name, measure), start in zip(MEASURES.items(), before, strict=True):
        values = {arm: [measure(f[arm]) for f in found] for arm in ARMS}
        cells = [f"{mean(v):.3f} ± {stdev(v) if len(v) > 1 else 0:.3f}" for v in values.values()]
        print(f"| {name} | {start} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
