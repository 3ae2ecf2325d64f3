"""Kills training runs at random moments, resumes them, and compares with a run left in peace.

    python benchmarks/survival.py [--trainers sft dpo grpo] [--kills 30] [--seed 0]

A run is eight steps of the embedded model by a trainer of TRL, with all that has a state: adaptive
weights, refits, the KL anchor, a schedule, alerts with patience, drift, the journal, wandb offline,
dropout, gradient accumulation, a checkpoint every second step and two of them kept. It is killed
(SIGKILL) when it has used a share of the processor time of a whole run, drawn evenly, so that how
busy the machine is does not matter; every fifth is killed once more after its resume. Then each
trainer is killed at the exact points of `survival_points`, most of them while a file is written.

It is resumed as a user would: from the newest checkpoint; where that is refused as half-written,
from the one that the refusal names; without a whole checkpoint it starts again. The final weights
(bit by bit), `log_history`, the journal's lines, drifts, texts and alerts, and wandb's curves over
all pieces must be those of the uninterrupted run. Not compared: times, `train_loss` of the summary
and `num_tokens`, which the host counts anew after a resume.

Two differences of the host's are kept out, which are there without emoreg too: resumed from the
checkpoint of its very last step, `Trainer` trains a step more unless an epoch ends there, as here;
and GRPO's sampler starts anew on a resume, so that a second epoch has another order: here is one.
Kills after the last checkpoint are counted by themselves as well.

What is done is kept in benchmarks/results/survival.json; the command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.update(  # before anything is imported
    HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", WANDB_CONSOLE="off",
    WANDB_DISABLE_GIT="true", WANDB_DISABLE_CODE="true", WANDB_X_DISABLE_STATS="true",
    OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1",
)  # fmt: skip

import survival_points
import survival_worker as worker
import torch

from emoreg.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "survival.json"
PACKAGES = ("emoreg", "torch", "transformers", "trl", "peft", "wandb")
TICK = os.sysconf("SC_CLK_TCK")
AGAIN = 5  # every so-manieth run is killed a second time
MOST = 4  # attempts to resume one run


class Ended(NamedTuple):
    """How a piece of a run ended, its exit status (negative: the signal), and what it used."""

    status: int
    seconds: float


class Bench:
    """Runs of one trainer, each forked from this process, which has made it and never trained.

    Nothing here computes in more than one thread, so that there is none that a fork would lose.

    Args:
        name: Of the trainer.
        place: What every run reads.
        folder: Where runs are written.
    """

    def __init__(self, name: str, place: worker.Place, folder: Path) -> None:
        self.name, self.folder, self.number = name, folder, 0
        self.trainer = worker.make(name, place)
        self.run = self.fresh()
        self.whole = self.piece(self.run)
        assert self.whole.status == 0, (self.run / "log.txt").read_text()[-2000:]
        self.wanted = self.found(self.run)

    def fresh(self) -> Path:
        """An empty output folder."""
        self.number += 1
        path = self.folder / f"{self.name}-{self.number}"
        path.mkdir()
        return path

    def found(self, run: Path) -> dict[str, Any]:
        """What came out of a run."""
        found: dict[str, Any] = json.loads((run / worker.FOUND).read_text())
        return found

    def piece(
        self, run: Path, resume: bool | str = False, point: str | None = None, at: float = 0.0
    ) -> Ended:
        """Train until the end or a kill, after `at` seconds of processor time if that is given."""
        child = os.fork()
        if child == 0:
            log = os.open(run / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = worker.FAILED
            try:
                status = worker.work(self.trainer, run, resume, point)
            finally:
                os._exit(status)  # whatever it raises is the parent's business no more
        while at and _used(child) < at:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.005)
        if at:
            os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)

    def case(self, point: str | None, at: float, again: float) -> dict[str, Any]:
        """Kill one run, resume it until it ends, and compare."""
        run = self.fresh()
        first = self.piece(run, point=point, at=at)
        row: dict[str, Any] = {"killed": first.status == -signal.SIGKILL, "resumes": []}
        row["checkpoints"] = sorted(p.name for p in run.glob("out/checkpoint-*"))
        resume: bool | str = bool(row["checkpoints"])
        for _ in range(MOST if row["killed"] else 0):
            ended = self.piece(run, resume, at=again)
            again = 0.0
            row["resumes"].append([_short(resume), _word(ended.status)])
            if ended.status == 0:
                break
            resume = _next(run, ended)
        if not (run / worker.FOUND).exists():
            row["differs"] = ["it never ended: " + (run / "log.txt").read_text()[-300:]]
            return row
        found = self.found(run)
        row["differs"] = worker.differences(found, self.wanted)
        row["alert_lines"] = found["alert_lines"]
        return row


def _used(child: int) -> float:
    """Processor time of a process so far, seconds."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _short(resume: bool | str) -> str:
    return Path(resume).name if isinstance(resume, str) else "newest" if resume else "step 0"


def _word(status: int) -> str:
    words = {0: "ended", worker.REFUSED: "refused", worker.FAILED: "failed", -9: "killed"}
    return words.get(status, str(status))


def _next(run: Path, ended: Ended) -> bool | str:
    """What a user resumes from next: the newest, or what the refusal names, or the beginning."""
    if ended.status != worker.REFUSED:
        return any(run.glob("out/checkpoint-*")) if ended.status == -signal.SIGKILL else False
    _, named, rest = (run / "refused.txt").read_text().partition("resume_from_checkpoint='")
    return rest.split("'")[0] if named else False


def plan(
    kills: int, seed: int, name: str, seconds: float, points: bool
) -> dict[str, dict[str, Any]]:
    """Every kill of one trainer by its name."""
    rng, found = Random(f"{seed} {name}"), {}
    for i in range(kills):
        at, again = rng.uniform(0, seconds), rng.uniform(0, seconds / 2)
        found[f"random {i}"] = {"point": None, "at": at, "again": again * (i % AGAIN == AGAIN - 1)}
    for point in survival_points.POINTS if points else ():
        found[point] = {"point": point, "at": 0.0, "again": 0.0}
    return found


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts over the kills of one trainer."""
    killed = [r for r in rows.values() if r["killed"]]
    words = [word for r in killed for _, word in r["resumes"]]
    return {
        "kills": sum(name.startswith("random") and r["killed"] for name, r in rows.items()),
        "identical": sum(
            name.startswith("random") and r["killed"] and not r["differs"]
            for name, r in rows.items()
        ),
        "kills_at_points": sum(not n.startswith("random") and r["killed"] for n, r in rows.items()),
        "identical_at_points": sum(
            not n.startswith("random") and r["killed"] and not r["differs"] for n, r in rows.items()
        ),
        "killed_twice": sum([w for _, w in r["resumes"]].count("killed") for r in killed),
        "before_any_checkpoint": sum(r["resumes"][0][0] == "step 0" for r in killed),
        "after_the_last_checkpoint": [
            name
            for name, r in rows.items()
            if f"checkpoint-{worker.STEPS}" in r["checkpoints"] and r["killed"]
        ],
        "newest_refused_as_half_written": words.count("refused"),
        "host_failed": words.count("failed"),
        "ended_before_the_kill": sum(not r["killed"] for r in rows.values()),
        "differs": {name: r["differs"] for name, r in rows.items() if r["differs"]},
    }


def write(results: Path, seed: int, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results so far, whole or not at all."""
    found = {
        "date": date.today().isoformat(),
        "seed": seed,
        "versions": {name: version(name) for name in PACKAGES},
        "summary": {name: summary(own) for name, own in rows.items()},
        "runs": rows,
    }
    write_atomic(results, json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainers", nargs="+", default=list(worker.TRAINERS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", nargs="*", default=list(worker.TRAINERS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    flags = parser.parse_args()
    flags.out = flags.out.resolve()
    kept = json.loads(flags.out.read_text()) if flags.out.exists() else {"seed": flags.seed}
    rows = kept.get("runs", {}) if kept["seed"] == flags.seed else {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # below which the trainers that are forked from write nothing
        place = worker.Place.made(Path(folder))
        os.environ["EMOREG_CACHE"] = str(Path(folder) / "cache")
        for name in flags.trainers:
            own, points = rows.setdefault(name, {}), name in flags.points
            if all(what in own for what in plan(flags.kills, flags.seed, name, 1.0, points)):
                continue
            bench = Bench(name, place, Path(folder))
            print(name, "takes", bench.whole.seconds, "s", flush=True)
            found = plan(flags.kills, flags.seed, name, bench.whole.seconds, points)
            for what, how in found.items():
                if what not in own:
                    own[what] = {**how, **bench.case(**how)}
                    write(flags.out, flags.seed, rows)
                    print(name, what, own[what]["resumes"], own[what]["differs"], flush=True)
    print(json.dumps(write(flags.out, flags.seed, rows)["summary"], indent=1))


if __name__ == "__main__":
    main()
