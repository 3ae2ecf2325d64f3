"""Ratios, shares and bars of the costs, from the parts that have run; their JSON and plot."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from speed_arms import AGAIN, ARMS, BARE, EMOTIONS, SHAPES, SWEEPS, TRAINERS
from speed_run import measuring, of_run
from speed_tables import fill, table

from emoreg.files import write_atomic

mpl.use("agg")
from matplotlib.figure import Figure

RESULTS = Path("benchmarks/results")
ACCUMULATED = (1, 8)  # micro-batches of a step that a run's shares are told for
SMALL_BAR, RUN_BAR = 1.03, 1.05
Row = dict[str, Any]


def report(folder: Path, name: str, page: Path | None = None) -> None:
    """Write ``results/speed-<device>.json`` and ``results/speed.svg``; print the tables.

    Args:
        folder: Where the parts lie.
        name: Of the device.
        page: That is given the short table between its marks.
    """
    path = RESULTS / f"speed-{name}.json"
    parts = gathered(folder, path)
    found = list(parts.values())
    rows, runs, sweeps = ratios(found), run_shares(found), scaling(found)
    data = {
        "device": name,
        "dates": sorted({p["date"] for p in found}),
        "versions": found[-1]["versions"],
        "unit": "ratios to the bare trainer of the same setting; time is measured, flops, peak and "
        "saved are counted unless `peak_measured`; null is not measured",
        "rows": rows,
        "log_line": log_line(found),
        "run": runs,
        "scaling": sweeps,
        "bars": bars(rows, runs),
        "parts": {name: parts[name] for name in sorted(parts)},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(path, written(data))
    if sweeps:
        draw(sweeps, RESULTS / "speed.svg")
    print(table(data))
    if page is not None:
        fill(data, page)


def gathered(folder: Path, path: Path) -> dict[str, Row]:
    """Parts by name: those that ran before and are kept in the result, and those of the folder.

    Raises:
        SystemExit: There are none.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    own = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    if not kept and not own:
        raise SystemExit(f"Nothing has run yet in {folder}; call this without --report first.")
    return {**kept, **own}


def written(data: Row) -> str:
    """As JSON, each part on one line."""
    parts = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in data["parts"].items())
    rest = json.dumps({k: v for k, v in data.items() if k != "parts"}, indent=1)
    return f'{rest[:-2]},\n "parts": {{\n{parts}\n }}\n}}\n'


def ratios(parts: Sequence[Row]) -> list[Row]:
    """One row for each arm of each setting: ratios to its bare trainer."""
    settings: dict[tuple[str, str, bool], list[Row]] = defaultdict(list)
    for part in parts:
        if part["what"] in ("time", "count"):
            settings[part["shape"], part["trainer"], part["checkpointing"]].append(part)
    found = []
    order = {name: i for i, name in enumerate((*SHAPES, *TRAINERS, *ARMS))}
    for key in sorted(settings, key=lambda k: (order[k[0]], order[k[1]], k[2])):
        shape, trainer, checkpointing = key
        for arm in ARMS:
            row = _row(settings[key], arm)
            if row:
                at = {"shape": shape, "trainer": trainer, "checkpointing": checkpointing}
                found.append({**at, "arm": arm, **row})
    return found


def _row(parts: Sequence[Row], arm: str) -> Row:
    timed = [p for p in parts if p["what"] == "time" and arm in p["seconds"]]
    counts = [p["counts"] for p in parts if p["what"] == "count" and arm in p["counts"]]
    if not timed and not counts:
        return {}
    found: Row = {"time": None, "flops": None, "peak": None, "saved": None}
    if timed:
        found["time"] = _time([_pairs(p["seconds"], arm) for p in timed])
        found["seconds"] = float(np.median([x for p in timed for x in p["seconds"][arm]]))
    measured = [p for p in timed if "peak" in p]
    if counts:
        own, bare = counts[0][arm], counts[0][BARE]
        found |= {k: own[k] / bare[k] for k in ("flops", "peak", "saved")}
        found["counted"] = own
    if measured:
        found["peak_measured"] = float(
            np.median([p["peak"][arm] / p["peak"][BARE] for p in measured])
        )
    return found


def _pairs(seconds: dict[str, list[float]], arm: str) -> list[float]:
    """Ratios of one process: each step to the mean of the bare trainers of its round."""
    bare = np.array(seconds[BARE])
    if AGAIN in seconds and arm not in (BARE, AGAIN):
        bare = (bare + np.array(seconds[AGAIN])) / 2
    ratios: list[float] = (np.array(seconds[arm]) / bare).tolist()
    return ratios


def _time(processes: Sequence[list[float]]) -> Row:
    """Median over all pairs, its quartiles, and the median of each process."""
    pooled = [x for pairs in processes for x in pairs]
    low, mid, high = np.quantile(pooled, (0.25, 0.5, 0.75)).tolist()
    each = [float(np.median(pairs)) for pairs in processes]
    return {"median": mid, "quartiles": [low, high], "processes": each, "pairs": len(pooled)}


def log_line(parts: Sequence[Row]) -> Row | None:
    """What a line of the log takes."""
    lines = [p["line"] for p in parts if p["what"] == "time" and "line" in p]
    if not lines:
        return None
    seconds = [x for line in lines for x in line["seconds"]]
    return {"seconds": float(np.median(seconds)), **{k: lines[0][k] for k in ("bytes", "values")}}


def run_shares(parts: Sequence[Row]) -> list[Row]:
    """What drift, audits and refits take of a run: measured where it ran, counted elsewhere."""
    found = []
    for part in parts:
        about = {k: part[k] for k in ("shape", "checkpointing")}
        if part["what"] == "run":
            cost = {k: float(np.median(v)) for k, v in part["seconds"].items()}
            tokens = SHAPES[part["shape"]].rows * SHAPES[part["shape"]].tokens
            for n in ACCUMULATED:
                shares = of_run(cost, n * cost["step"])
                found.append({**about, "step_tokens": n * tokens, "is": "time", **shares})
        if part["what"] == "run-count":
            cost = {k: v["flops"] for k, v in part["forwards"].items()}
            for step in part["steps"]:
                tokens = step["rows"] * step["tokens"]
                shares = of_run(cost, step["flops"])
                found.append({**about, "step_tokens": tokens, "is": "arithmetic", **shares})
    return found


def scaling(parts: Sequence[Row]) -> list[Row]:
    """Overheads over emotions, blocks, tokens and rows."""
    found = []
    for part in parts:
        for row in part.get("rows", []) if part["what"].startswith("sweep") else []:
            for arm in ("measure", "penalty"):
                at = {"shape": part["shape"], "what": row["what"], "size": row["size"], "arm": arm}
                if "seconds" in row:
                    at["time"] = _time([_pairs(row["seconds"], arm)])
                else:
                    counts = row["counts"]
                    at["flops"] = counts[arm]["flops"] / counts[BARE]["flops"]
                    at["peak"] = counts[arm]["peak"] / counts[BARE]["peak"]
                    if arm == "measure":
                        at["limit"] = limit(at) / counts[BARE]["flops"]
                found.append(at)
    return found


def limit(row: Row) -> int:
    """FLOPs of measuring at a point of a sweep, by hand."""
    shape = SHAPES[row["shape"]]
    size = {"emotions": len(EMOTIONS), "blocks": len(shape.blocks), "tokens": shape.tokens,
            "rows": shape.rows, row["what"]: row["size"]}  # fmt: skip
    tokens = size["rows"] * (size["tokens"] - 1)  # the first of a sequence never counts
    return measuring(shape.sizes["hidden_size"], size["emotions"], size["blocks"], tokens)


def bars(rows: Sequence[Row], runs: Sequence[Row]) -> list[Row]:
    """Every bar that was set, what was found, and whether it is met; None where not measured."""
    found = []
    for row in rows:
        limits = ARMS[row["arm"]].bars.get(row["trainer"])
        if limits is None:
            continue
        about = {k: row[k] for k in ("shape", "trainer", "checkpointing", "arm")}
        small = row["shape"] == "small"
        most = max(SMALL_BAR, limits[0]) if small else limits[0]
        time = row["time"]["median"] if row["time"] else None
        found.append({**about, "of": "time", **_met(most, time)})
        found.append({**about, "of": "flops", **_met(limits[0], row["flops"])})
        if not small:
            peak = row.get("peak_measured") or row["peak"]
            found.append({**about, "of": "memory", **_met(limits[1], peak)})
    for run in runs:
        about = {k: run[k] for k in ("shape", "checkpointing", "step_tokens")}
        about |= {"arm": "drift, audit and refit", "trainer": "sft"}
        found.append({**about, "of": run["is"], **_met(RUN_BAR, 1 + run["together"])})
    return found


def _met(most: float, value: float | None) -> Row:
    return {"most": most, "found": value, "met": None if value is None else value <= most}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Overhead over each size: times as points with quartiles, FLOPs as the limit below them."""
    shapes = [s for s in SWEEPS if any(r["shape"] == s for r in rows)]
    kinds = ("emotions", "blocks", "tokens", "rows")
    figure = Figure(figsize=(13, 3.2 * max(len(shapes), 1)), layout="constrained")
    axes = figure.subplots(max(len(shapes), 1), len(kinds), squeeze=False)
    colours = {"measure": "C0", "penalty": "C1"}
    for line, shape in zip(axes, shapes, strict=False):
        for axis, what in zip(line, kinds, strict=True):
            for arm, colour in colours.items():
                own = [r for r in rows if (r["shape"], r["what"], r["arm"]) == (shape, what, arm)]
                _points(axis, [r for r in own if "time" in r], arm, colour)
                flops = sorted((r["size"], 100 * (r["flops"] - 1)) for r in own if "flops" in r)
                if flops:
                    axis.plot(*zip(*flops, strict=True), colour, ls="--", label=f"{arm}, FLOPs")
                limit = sorted((r["size"], 100 * r["limit"]) for r in own if "limit" in r)
                if limit:
                    axis.plot(*zip(*limit, strict=True), "k:", label=f"{arm}, its products by hand")
            sizes = SWEEPS[shape][what]
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.set_xlabel({"tokens": "tokens of a sequence", "rows": "sequences"}.get(what, what))
            axis.axhline(0, color="0.7", lw=0.8)
        line[0].set_ylabel(f"{shape}: added to a step, %")
    if shapes:
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _points(axis: Any, rows: Sequence[Row], arm: str, colour: str) -> None:
    for row in sorted(rows, key=lambda r: r["size"]):
        low, high = (100 * (q - 1) for q in row["time"]["quartiles"])
        mid = 100 * (row["time"]["median"] - 1)
        axis.errorbar(row["size"], mid, [[mid - low], [high - mid]], color=colour, marker="o", ms=4)
    if rows:
        axis.plot([], [], color=colour, marker="o", label=f"{arm}, time")
