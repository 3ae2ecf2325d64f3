"""One process of the cost benchmark: some arms of one setting, in one order; writes a JSON file.

Not called by hand: `speed.py` starts one for each order. ``time`` times whole steps, all arms in
turn; ``count`` counts one step of each; ``run`` is drift, audits and refits; ``sweep`` the overhead
over emotions, blocks, tokens and rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
import transformers
from speed_arms import ARMS, BARE, RUN_ROWS, RUN_TOKENS, SHAPES, SWEEPS, Arm
from speed_build import Bench, Setting, base_model, tokenizer
from speed_count import count, fake, unset_fake_temporarily
from speed_run import Parts, Readers, clock_of

WARM = 1  # rounds that are not counted
SWEPT = (BARE, "measure", "penalty")


def arms_of(setting: Setting, names: list[str]) -> dict[str, Arm]:
    """Those of the names that the trainer has."""
    return {name: ARMS[name] for name in names if setting.trainer in ARMS[name].trainers}


def timed(setting: Setting, names: list[str], order: int, rounds: int) -> dict[str, Any]:
    """Seconds of every step of every arm, by round; bytes at the peak, on a GPU."""
    base, clock = base_model(setting), clock_of(setting.device)
    arms = arms_of(setting, names)
    benches = {name: Bench(setting, arm, base) for name, arm in arms.items()}
    names = list(benches)
    random.Random(order).shuffle(names)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int] = {}
    for turn in range(-WARM, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = _mark(setting.device)
            began = clock()
            benches[name].step()
            took = clock() - began
            if turn >= 0:
                seconds[name].append(took)
                peaks[name] = _peak(setting.device, before) + benches[name].own_bytes(2)
    found: dict[str, Any] = {"seconds": seconds, "order": names}
    if setting.device != "cpu":
        found["peak"] = peaks
    if "measure" in benches:
        found["line"] = _line(benches["measure"], clock)
    return found


def _line(bench: Bench, clock: Any) -> dict[str, Any]:
    """What a line of the log takes, and how long it is in `trainer_state.json`."""
    times = []
    for _ in range(3):
        bench.step()
        began = clock()
        line = bench.line()
        times.append(clock() - began)
    return {"seconds": times, "bytes": len(json.dumps(line, indent=2)), "values": len(line)}


def _mark(device: str) -> int:
    """What lies on a GPU before a step."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str, before: int) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated() - before


def counted(setting: Setting, names: list[str]) -> dict[str, Any]:
    """FLOPs, bytes at the peak and bytes saved of one step, without values."""
    found, setting = {}, replace(setting, device="cpu")
    with fake():
        base = base_model(setting)
        for name, arm in arms_of(setting, names).items():
            if arm.counted:
                bench = Bench(setting, arm, base, unset_fake_temporarily, optim="adamw_torch")
                found[name] = asdict(count(bench))
                del bench
                gc.collect()
    return {"counts": found}


def of_run(setting: Setting, repeats: int) -> dict[str, Any]:
    """What drift, audits and refits take beside a step."""
    parts = Parts(Bench(setting, ARMS[BARE], base_model(setting)))
    return {"seconds": parts.seconds(repeats, clock_of(setting.device))}


def of_run_counted(setting: Setting) -> dict[str, Any]:
    """Tokens and FLOPs of drift, audits and refits, and the FLOPs of steps to set them beside."""
    setting = replace(setting, device="cpu")
    steps = []
    for tokens in RUN_TOKENS:
        at = setting.with_size("tokens", tokens).with_size("rows", RUN_ROWS)
        found = counted(at, [BARE])["counts"][BARE]
        steps.append({"rows": RUN_ROWS, "tokens": tokens, "flops": found["flops"]})
    with fake():
        model = base_model(setting)
        with unset_fake_temporarily():
            forwards = Readers(model, setting, tokenizer()).forwards(model, setting.shape.depth)
    parts = {
        name: {**asdict(found), "flops": found.flops(setting.shape)}
        for name, found in forwards.items()
    }
    return {"steps": steps, "forwards": parts}


def swept(setting: Setting, rounds: int, values: bool) -> dict[str, Any]:
    """Of the arms swept, times or counts at each size."""
    rows, names = [], list(SWEPT)
    done: list[tuple[Setting, dict[str, Any]]] = []  # each line has a point in the middle of all
    for what, size in sizes(setting):
        at = setting.with_size(what, size)
        found = next((own for other, own in done if other == at), None)
        if found is None:
            found = timed(at, names, size, rounds) if values else counted(at, names)
            done.append((at, found))
        rows.append({"what": what, "size": size, **found})
    return {"rows": rows}


def sizes(setting: Setting) -> Iterator[tuple[str, int]]:
    """What is varied, and to what."""
    name = next(name for name, shape in SHAPES.items() if shape == setting.shape)
    for what, values in SWEEPS.get(name, {}).items():
        yield from ((what, value) for value in values)


def main() -> None:
    """Do one part of the work."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=("time", "count", "run", "run-count", "sweep", "sweep-count")
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--trainer", default="sft")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--order", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.getLogger("emoreg").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    setting = Setting(SHAPES[flags.shape], flags.trainer, flags.checkpointing, flags.device)
    if flags.what == "time":
        found = timed(setting, flags.arms, flags.order, flags.rounds)
    elif flags.what == "count":
        found = counted(setting, flags.arms)
    elif flags.what == "run":
        found = of_run(setting, flags.rounds)
    elif flags.what == "run-count":
        found = of_run_counted(setting)
    else:
        found = swept(setting, flags.rounds, flags.what == "sweep")
    flags.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
