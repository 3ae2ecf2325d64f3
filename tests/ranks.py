"""Jobs on one process and on two, forked from one that has imported everything.

    python ranks.py FOLDER JOB …

A job is the words of a function of `JOBS` with colons between them. Of each, `FOLDER` gets a
``.json``: what each process told, how each ended, what it said, and how long the last one took to
end after the first had. Nobody ends the others: a process whose partner is gone must see it itself.
"""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported

import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - offline before anything is imported
import rank_failures
import torch
import zoo
from audit_bank import write_bank
from cases import CASES, Case, clean, talkative, trainer_of
from datasets import Dataset
from models import tokenizer, vector_set, with_lora
from trainers import PROMPT_FILE, Recorder
from ways import KNOBS, control, make, silence
from worker import is_shard

import emoreg.reporting
from emoreg import AuditCallback, DriftCallback
from emoreg.files import write_atomic
from emoreg.identity import identity

LIMIT = 120.0  # seconds for a job, and then it hangs
ROWS = 7  # the last batch is short
CONTROL: dict[str, Any] = {
    "anchor": "base", "keep": 0.05, "target": 0.2, "refit_steps": 1, "refit_texts": 8,
    "refit_tokens": 2, "alerts": {"drift/desperate": 1e3},
}  # fmt: skip
Told = dict[str, Any]


def trained(column: str, last: str, folder: Path, processes: int) -> Told:
    """An epoch of two steps, with an evaluation; four rows a step, whoever has them.

    Args:
        column: A trainer.
        last: The last batch: ``short`` on all processes together, or ``filled`` up by accelerate
            with the first rows, which one process is given twice.
        folder: To write to.
        processes: How many share the rows.
    """
    builder, given = zoo.TRAINERS[column], last == "filled" and processes == 1
    columns = {k: [*v[:ROWS], *v[: int(given)]] for k, v in builder.columns.items()}
    size = 4 // processes
    options: dict[str, Any] = {
        "max_steps": 2, "per_device_train_batch_size": size, "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": 1, "learning_rate": 5e-3, "optim": "sgd",
        "lr_scheduler_type": "constant", "logging_steps": 1,
        "accelerator_config": {"even_batches": last == "filled"},
    }  # fmt: skip
    evaluated = Dataset.from_dict({k: v[:ROWS] for k, v in builder.columns.items()})
    more = {"eval_dataset": evaluated} if last == "filled" else {}
    options |= {"eval_strategy": "steps", "eval_steps": 1} if more else {}
    model = with_lora(talkative(), task_type="CAUSAL_LM")
    trainer = make(column, folder, model, rows=Dataset.from_dict(columns), more=more, **options)
    silence(trainer)
    recorder = Recorder()
    control(trainer, bank=str(bank_in(folder)), **CONTROL)
    watched(trainer, folder)
    trainer.add_callback(recorder)
    trainer.train()
    grads = [{n: g.flatten().tolist() for n, g in step.items()} for step in recorder.grads]
    return {"logs": logs(trainer), "grads": grads}


def audited(case: str, kind: str, folder: Path, processes: int) -> Told:
    """Drift and audit of one model in some layout.

    Args:
        case: Of `CASES`, on two processes; or ``bf16``.
        kind: ``lora``, which is not trained, or ``whole``, which takes one step.
        folder: To write to.
        processes: How many there are.
    """
    mixed = Case(options={"bf16": True})
    alone = Case(size=8 if kind == "whole" else 4)  # as many rows as two processes have
    setting = mixed if case == "bf16" else alone if processes == 1 else CASES[case]
    if kind == "whole":
        moves = {"learning_rate": 1e-3, "max_steps": 2}
        trainer = make("SFT", folder, talkative(), **{**setting.shape, **moves})
    else:
        trainer = trainer_of("SFT", folder, setting)
    watched(trainer, folder)
    trainer.train()
    return {
        "sharded": sum(is_shard(p) for p in trainer.model.parameters()),
        "logs": logs(trainer),
        "processes": trainer.accelerator.num_processes,
        "type": trainer.accelerator.distributed_type.value,
    }


def watched(trainer: Any, folder: Path, **drift: Any) -> None:
    """Add the callbacks that measure."""
    vectors = vector_set(card={"model": identity(trainer.model, tokenizer())})
    blocks, prompts = KNOBS["blocks"], PROMPT_FILE
    trainer.add_callback(
        DriftCallback(trainer, vectors, prompts, blocks=blocks, response_tokens=2, **drift)
    )
    bank = bank_in(folder)
    trainer.add_callback(AuditCallback(trainer, vectors, bank, prompts, blocks=blocks))


def bank_in(folder: Path) -> Path:
    """The file of texts, the same in every process."""
    name = f"bank-{os.environ.get('RANK', '')}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    return write_bank(folder / name, topics=4)


def logs(trainer: Any) -> list[dict[str, float]]:
    """Every line of the trainer's log that has values of emoreg, without times."""
    lines = [
        {k: v for k, v in line.items() if "emoreg/" in k and "seconds" not in k}
        for line in trainer.state.log_history
    ]
    return [line for line in lines if line]


JOBS: dict[str, Callable[..., Told]] = {
    "trained": trained,
    "audited": audited,
    "fails": rank_failures.run,
}


def child(job: str, folder: Path, rank: int, processes: int) -> None:
    """One process of a job."""
    out = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    emoreg.reporting.write_runs = lambda runs, path: write_atomic(path, f"{len(runs)} runs")
    name, *words = job.split(":")
    with clean():
        told = JOBS[name](*words, folder / "run", processes)
    (folder / f"{rank}.json").write_text(json.dumps(told))
    if processes > 1:
        torch.distributed.barrier()


def run(job: str, folder: Path, processes: int) -> dict[str, Any]:
    """A job on some processes of its own."""
    folder.mkdir(parents=True)
    if processes > 1:
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    fork = multiprocessing.get_context("fork")
    each = [
        fork.Process(target=child, args=(job, folder, rank, processes)) for rank in range(processes)
    ]
    for process in each:
        process.start()
    first, last = ends(each)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    files = [folder / f"{rank}.json" for rank in range(processes)]
    return {
        "codes": [process.exitcode for process in each],
        "told": [json.loads(f.read_text()) if f.exists() else None for f in files],
        "said": [f.with_suffix(".txt").read_text()[-6000:] for f in files],
        "apart": last - first,
    }


def ends(each: Sequence[Any]) -> tuple[float, float]:
    """When the first and the last process ended; those that do not are killed."""
    began = time.monotonic()
    first = None
    while any(process.is_alive() for process in each):
        now = time.monotonic()
        if first is None and not all(process.is_alive() for process in each):
            first = now
        if now - (began if first is None else first) > LIMIT:
            for process in each:
                process.kill()
        time.sleep(0.05)
    now = time.monotonic()
    return (now if first is None else first), now


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    """Run the jobs: of each its last word is the number of processes."""
    folder = Path(sys.argv[1])
    for job in sys.argv[2:]:
        what, _, processes = job.rpartition(":")
        began = time.monotonic()
        found = run(what, folder / job, int(processes))
        found["took"] = time.monotonic() - began
        (folder / f"{job}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
