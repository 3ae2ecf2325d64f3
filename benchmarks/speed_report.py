"""Tables and JSON of the costs, from the parts that have run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from speed_arms import AGAIN, ARMS, BARE, REFERENCE_STEPS, SHAPES, TRAINERS
from speed_plot import draw
from speed_readme import fill
from speed_run import STEPS, TIMES, of_run

from emoreg.files import write_atomic

RESULTS = Path("benchmarks/results")
ACCUMULATED = (1, 8)  # micro-batches of a step that a run's shares are told for
SMALL_BAR, RUN_BAR = 1.03, 1.05
PLAIN = "–"
Row = dict[str, Any]


def report(folder: Path, name: str, page: Path | None = None) -> None:
    """Write ``results/speed-<device>.json`` and ``results/speed.svg``; print the tables.

    Args:
        folder: Where the parts lie.
        name: Of the device.
        page: That is given the short table between its marks.
    """
    parts = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    if not parts:
        raise SystemExit(f"Nothing has run yet in {folder}; call this without --report first.")
    rows, runs, sweeps = ratios(parts), run_shares(parts), scaling(parts)
    data = {
        "device": name,
        "dates": sorted({p["date"] for p in parts}),
        "versions": parts[-1]["versions"],
        "unit": "ratios to the bare trainer of the same setting; time is measured, flops, peak and "
        "saved are counted unless `peak_measured`; null is not measured",
        "rows": rows,
        "log_line": log_line(parts),
        "run": runs,
        "scaling": sweeps,
        "bars": bars(rows, runs),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS / f"speed-{name}.json", json.dumps(data, indent=1) + "\n")
    draw(sweeps, RESULTS / "speed.svg")
    print(table(data))
    if page is not None:
        fill(data, page)


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
    runs = [p for p in parts if p["what"] == "run"]
    for part in runs:
        cost = {k: float(np.median(v)) for k, v in part["seconds"].items()}
        for n in ACCUMULATED:
            about = _step_of(part["shape"], n)
            found.append({**about, "is": "time", **of_run(cost, n * cost["step"])})
    for part in parts:
        if part["what"] != "count" or part["trainer"] != "sft" or not runs:
            continue
        each = runs[0]["forward_flops"][part["shape"]]
        cost = {k: each * t for k, t in runs[0]["tokens"].items()}
        for n in ACCUMULATED:
            about = {**_step_of(part["shape"], n), "checkpointing": part["checkpointing"]}
            flops = n * part["counts"][BARE]["flops"]
            found.append({**about, "is": "arithmetic", **of_run(cost, flops)})
    return found


def _step_of(shape: str, micro_batches: int) -> Row:
    tokens = SHAPES[shape].rows * SHAPES[shape].tokens * micro_batches
    return {"shape": shape, "step_tokens": tokens, "steps": STEPS, "checkpointing": True}


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
                found.append(at)
    return found


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


def table(data: Row) -> str:
    """Everything as Markdown."""
    lines = [
        f"Device {data['device']}; " + ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    ]
    for key in dict.fromkeys((r["shape"], r["trainer"], r["checkpointing"]) for r in data["rows"]):
        shape, trainer, again = key
        lines += [
            "",
            f"### {shape}, {trainer.upper()}, {'with' if again else 'without'} checkpointing",
            "",
        ]
        lines += [
            "| arm | time (measured) | quartiles | processes | FLOPs (counted) | peak bytes | "
            "saved bytes (counted) |",
            "| --- " * 7 + "|",
        ]
        rows = [r for r in data["rows"] if (r["shape"], r["trainer"], r["checkpointing"]) == key]
        lines += map(_line, rows)
    return "\n".join([*lines, "", *_runs(data), "", *_bars(data)])


def _line(row: Row) -> str:
    time = row["time"]
    cells = [row["arm"], *["not measured", PLAIN, PLAIN]]
    if time:
        low, high = time["quartiles"]
        each = f"{min(time['processes']):.3f} to {max(time['processes']):.3f}"
        cells = [row["arm"], f"{time['median']:.3f}", f"{low:.3f} to {high:.3f}", each]
    peak = f"{row['peak']:.4f} counted" if row["peak"] else PLAIN
    if "peak_measured" in row:
        peak = f"{row['peak_measured']:.4f} measured"
    cells += [_told(row["flops"], 4), peak, _told(row["saved"], 4)]
    return f"| {' | '.join(cells)} |"


def _told(value: float | None, digits: int) -> str:
    return PLAIN if value is None else f"{value:.{digits}f}"


def _runs(data: Row) -> list[str]:
    lines = [
        f"Shares of a run of {STEPS} steps, %:", "",
        f"| shape, tokens of a step | checkpointing | is | {' | '.join(TIMES)} | together |",
        "| --- " * (4 + len(TIMES)) + "|",
    ]  # fmt: skip
    for run in data["run"]:
        shares = [f"{100 * run[k]:.2f}" for k in (*TIMES, "together")]
        about = f"{run['shape']}, {run['step_tokens']} | {run['checkpointing']} | {run['is']}"
        lines.append(f"| {about} | {' | '.join(shares)} |")
    line = data["log_line"]
    if line:
        about = f"{line['values']} values, {line['bytes']} bytes of trainer_state.json"
        lines += ["", f"A line of the log: {1000 * line['seconds']:.1f} ms, {about}."]
    return [*lines, *_amortised(data["rows"])]


def _amortised(rows: Sequence[Row]) -> list[str]:
    """The base's readings where they are not taken on every step."""
    lines = []
    for row in rows:
        if row["arm"] == "reference" and row["trainer"] == "sft":
            by = {k: row[k] for k in ("shape", "checkpointing")}
            measure = next(r for r in rows if r["arm"] == "measure" and by.items() <= r.items()
                           and r["trainer"] == "sft")  # fmt: skip
            of = "time" if row["time"] else "flops"
            every, none = (
                r["time"]["median"] if row["time"] else r["flops"] for r in (row, measure)
            )
            share = none + (every - none) / REFERENCE_STEPS
            lines.append(
                f"Measuring with the base on every {REFERENCE_STEPS}th step, {row['shape']}, "
                f"checkpointing {row['checkpointing']}: {share:.4f} ({of})."
            )
    return ["", *lines]


def _bars(data: Row) -> list[str]:
    words = {True: "met", False: "MISSED", None: "not measured"}
    lines = ["| bar | of | at most | found | |", "| --- | --- | --- | --- | --- |"]
    for bar in data["bars"]:
        kept = "with" if bar["checkpointing"] else "without"
        about = f"{bar['arm']}, {bar['shape']}, {bar['trainer'].upper()}, {kept} checkpointing"
        if "step_tokens" in bar:
            about += f", {bar['step_tokens']} tokens a step"
        value = _told(bar["found"], 4)
        lines.append(f"| {about} | {bar['of']} | {bar['most']} | {value} | {words[bar['met']]} |")
    return lines
