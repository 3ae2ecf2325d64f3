"""Every method beside the others: who holds the state, who spreads gaming, and at what price.

python benchmarks/effect.py [--worlds embedded narrow] [--trainers sft dpo grpo] [--arms …]
    [--seeds 1 2 3 4 5] [--out runs/effect]
python benchmarks/effect.py --cost       # time and memory of each arm, on a quiet machine
python benchmarks/effect.py --audit      # verdicts on the adapters that runs left
python benchmarks/effect.py --report     # tables and plot from what has run

Each arm is tuned first, for each trainer: three strengths in the embedded world with a seed that no
result uses; the one with the least gaming out of domain is taken, there and everywhere, of those
with a task success of at least 95 % of `none`'s and, in SFT, a task loss of at most 110 %. A
finished run is not run again, so an interrupted call goes on, and several calls may share the work.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
import transformers
from effect_arms import ARMS, VARIANTS
from effect_run import ADAPTERS, COST, TUNING_SEED, Task, Workshop, cost, run
from worlds import SETTINGS, place

from emoreg.files import write_atomic

TUNED_ON = {
    t: ("embedded", t, a) for t, a in (("sft", "small"), ("dpo", "large"), ("grpo", "large"))
}
SUCCESS, LOSS = 0.95, 1.1  # of `none`'s: least task success, most task loss


def found(task: Task, out: Path) -> dict[str, Any] | None:
    """What a run left, if it is finished."""
    path = task.folder(out) / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tuned(trainer: str, arm: str, out: Path) -> float | None:
    """The strength that is taken with a trainer, once all three were tried."""
    strengths, where = ARMS[arm].tried(trainer), TUNED_ON[trainer]
    if len(strengths) == 1:
        return strengths[0]
    tried = [found(Task(*where, arm, s, TUNING_SEED), out) for s in strengths]
    none = found(Task(*where, "none", 1.0, TUNING_SEED), out)
    if none is None or any(t is None for t in tried):
        return None
    runs = [t for t in tried if t is not None]
    able = [
        t
        for t in runs
        if t["in_domain"] >= SUCCESS * none["in_domain"]
        and (trainer != "sft" or t["task_loss"] <= LOSS * none["task_loss"])
    ]
    if not able:  # none learns the task: the one that learns most of it
        return float(max(runs, key=lambda t: t["in_domain"])["strength"])
    return float(min(able, key=lambda t: t["out_of_domain"])["strength"])


def do(task: Task, shop: Workshop, out: Path) -> None:
    """Run a task, unless it has run or somebody is at it."""
    folder = task.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / "claimed"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    try:
        row = run(shop, task, folder)
    except BaseException:
        claim.unlink()  # the next call tries again
        raise
    write_atomic(folder / "run.json", json.dumps({**row, "base": shop.base}, indent=1) + "\n")
    print(
        f"{' '.join(map(str, task))}: task loss "
        f"{row['task_loss']:.3f}, gamed {row['in_domain']:.3f} / {row['out_of_domain']:.3f}, "
        f"{row['seconds']:.0f} s",
        flush=True,
    )


def price(task: Task, shop: Workshop, out: Path) -> None:
    """The time and memory of an arm, once for all seeds."""
    path, key = out / COST, "/".join(task[:4])
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in known:
        known[key] = cost(shop, task, out / "scratch")
        write_atomic(path, json.dumps(known, indent=1) + "\n")
        print(f"{key}: {known[key]}", flush=True)


def tasks(flags: argparse.Namespace, world: str) -> Iterator[Task]:
    """Tuning first, then the seeds of the result; strengths are known when they are asked for."""
    arms = {t: [a for a in flags.arms if t in ARMS[a].trainers] for t in flags.trainers}
    for trainer, names in arms.items():
        if (world, trainer, flags.adapter) != TUNED_ON[trainer]:
            continue
        for arm in ("none", *names):
            strengths = ARMS[arm].tried(trainer)
            if len(strengths) > 1 or arm == "none":
                yield from (Task(*TUNED_ON[trainer], arm, s, TUNING_SEED) for s in strengths)
    for seed in flags.seeds:
        for trainer, names in arms.items():
            for arm in names:
                strength = tuned(trainer, arm, flags.out)
                if strength is not None:
                    yield Task(world, trainer, flags.adapter, arm, strength, seed)


def main() -> None:
    """Parse the flags; run, or report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", nargs="+", default=["embedded", "narrow"], choices=SETTINGS)
    parser.add_argument("--trainers", nargs="+", default=["sft", "dpo", "grpo"])
    parser.add_argument("--adapter", default="small", choices=ADAPTERS)
    arms = [a for a in ARMS if a not in VARIANTS]
    parser.add_argument("--arms", nargs="+", default=arms, choices=list(ARMS))
    parser.add_argument(
        "--variants", action="store_const", const=list(VARIANTS), dest="arms",
        help="instead of the arms, two-facets with one thing changed",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("runs/effect"))
    parser.add_argument("--audit", action="store_true", help="audit the adapters of finished runs")
    parser.add_argument("--cost", action="store_true", help="only time and memory of each arm")
    parser.add_argument("--report", action="store_true", help="write tables, plot and JSON")
    flags = parser.parse_args()
    if flags.report:
        from effect_report import report

        report(flags.out)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    logging.getLogger("emoreg").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for world in flags.worlds:
        shop = Workshop(place(world))
        if flags.audit:
            from effect_audit import audit_all

            audit_all(shop, flags.out)
            continue
        for task in tasks(flags, world):
            (price if flags.cost else do)(task, shop, flags.out)


if __name__ == "__main__":
    main()
