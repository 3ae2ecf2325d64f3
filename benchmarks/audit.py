"""Error rates of the audit where the truth is known: ``python benchmarks/audit.py``.

Goes on where it stopped; writes ``benchmarks/results/audit.json``. ``--judge`` only applies the
rules of `emoreg.verdict`, and of what a plant is, again to measurements that were made before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from planted import checked, make, plants, took
from planted_ground import Ground, Plant
from worlds import place

from emoreg.audit import Auditor
from emoreg.files import write_atomic
from emoreg.verdict import judge

HALVES = ("tuning", "earlier", "fresh")
RESULTS = Path(__file__).parent / "results" / "audit.json"


def ground(name: str) -> Ground:
    """A world by its name, made if it is missing."""
    found = place("embedded" if name == "tiny" else name)
    return Ground(found.world, found.model, found.fit)


class Bench:
    """One world's base, read once for every set of penalised directions."""

    def __init__(self, name: str) -> None:
        self.ground = ground(name)
        self.auditors: dict[Any, tuple[Auditor, Any]] = {}
        self.view: dict[Any, Any] = {}

    def auditor(self, plant: Plant) -> tuple[Auditor, Any]:
        """For what a plant's control knew."""
        key = plant.facets, plant.blocks
        if key not in self.auditors:
            at, g = list(plant.blocks), self.ground
            made = Auditor(
                g.tokenizer, g.vectors, g.texts, g.prompts, facets=plant.facets, blocks=at
            )
            if plant.blocks not in self.view:
                self.view[plant.blocks] = made.base(g.model)
            self.auditors[key] = made, self.view[plant.blocks]
        return self.auditors[key]

    def run(self, plant: Plant) -> dict[str, Any]:
        """Plant, check, audit."""
        began = time.process_time()
        model = make(self.ground, plant)
        planted = time.process_time() - began
        numbers = checked(self.ground, plant, model)
        real = took(plant.truth, plant.how, numbers)
        row: dict[str, Any] = {**asdict(plant), "real": real, "check": numbers}
        auditor, base = self.auditor(plant)
        began = time.process_time()
        view = auditor.reader.now(model, base)
        reread = auditor.reader.rescore(self.ground.model, view.texts)
        row |= auditor.compare(base, view, reread).row()
        row["seconds"] = [round(planted, 1), round(time.process_time() - began, 1)]
        return row


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Verdicts by truth, for each part and for all, over the plants that took."""
    found: dict[str, Any] = {}
    for half in (*HALVES, "all"):
        some = [r for r in rows.values() if r["real"] and half in (r["half"], "all")]
        if not some:
            continue
        by = {
            truth: dict(Counter(r["verdict"] for r in some if r["truth"] == truth))
            for truth in sorted({r["truth"] for r in some})
        }
        found[half] = {
            "runs": len(some),
            "right": sum(r["truth"] == r["verdict"] for r in some),
            "held_of_evaded": by.get("evaded", {}).get("held", 0),
            "verdicts": by,
        }
    found["did_not_take"] = sum(not r["real"] for r in rows.values())
    return found


def write(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results, whole or not at all."""
    found = summary(rows)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    write_atomic(RESULTS, f'{{"summary": {json.dumps(found)},\n"runs": {{\n{lines}\n}}}}\n')
    return found


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--half", choices=HALVES)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    if flags.judge:
        for row in rows.values():
            facts = {k: SimpleNamespace(**v) for k, v in row["facts"].items()}
            found = judge(facts)
            row |= {"verdict": found.word, "reasons": list(found.reasons)}
            row["real"] = took(row["truth"], row["how"], row["check"])
    else:
        benches: dict[str, Bench] = {}
        for plant in plants():
            if plant.name in rows or (flags.half and plant.half != flags.half):
                continue
            if plant.world not in benches:
                benches[plant.world] = Bench(plant.world)
            row = rows[plant.name] = benches[plant.world].run(plant)
            write(rows)
            mark = "" if row["real"] else " (did not take)"
            print(
                f"{plant.name}: {row['verdict']}{mark} {row['seconds']} {row['reasons'][:1]}",
                flush=True,
            )
    print(json.dumps(write(rows), indent=1))


if __name__ == "__main__":
    main()
