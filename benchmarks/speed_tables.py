"""Tables of the costs: everything, and the short ones for the README between its marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speed_arms import AGAIN, ARMS, REFERENCE_STEPS, TRAINERS
from speed_run import STEPS, TIMES

from emoreg.files import write_atomic

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
PLAIN = "–"
Row = dict[str, Any]
COMMANDS = {
    "time": "python benchmarks/speed.py --only time --shapes small --checkpointing 0 "
    "--orders 2 --rounds 4",
    "count": "python benchmarks/speed.py --only count --shapes 1.5b 7b",
    "run": "python benchmarks/speed.py --only run-count --shapes 1.5b",
}
TIMED = (
    AGAIN, "measure", "penalty", "all emotions", "refitted", "anchor", "prevent", "ablate", "cap",
    "kl", "persona vectors", "all hidden states", "reference forwards", "circuit breakers",
)  # fmt: skip
COUNTED = ("measure", "penalty", "all emotions", "anchor", *TIMED[-2:])
COLUMNS = (
    ("1.5b", "sft", False), ("1.5b", "sft", True), ("1.5b", "dpo", False), ("1.5b", "grpo", False),
    ("7b", "sft", False),
)  # fmt: skip


def fill(data: Mapping[str, Any], page: Path) -> None:
    """Put the table into a page.

    Raises:
        SystemExit: The page lacks the marks.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page} has no {BEGIN} … {END}; put them where the table belongs.")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    write_atomic(page, f"{before}{BEGIN}\n\n{short(data)}\n\n{END}{after}")


def short(data: Mapping[str, Any]) -> str:
    """Times of the small shape, counts of the others, shares of a run, and the bars."""
    rows = {(r["shape"], r["trainer"], r["checkpointing"], r["arm"]): r for r in data["rows"]}
    return "\n".join(
        [*_times(rows), "", *_counts(rows), "", *_shares(data["run"]), "", *_told_bars(data)]
    )


def _times(rows: Mapping[Any, Row]) -> list[str]:
    lines = [
        f"Time of a step beside the bare trainer's, small shape on a CPU: median of pairs and "
        f"quartiles (`{COMMANDS['time']}`).", "",
        f"| beside the trainer | {' | '.join(t.upper() for t in TRAINERS)} |",
        "| --- " * (len(TRAINERS) + 1) + "|",
    ]  # fmt: skip
    for arm in TIMED:
        cells = [_time_cell(rows.get(("small", t, False, arm))) for t in TRAINERS]
        lines.append(f"| {_name(arm)} | {' | '.join(cells)} |")
    return lines


def _counts(rows: Mapping[Any, Row]) -> list[str]:
    heads = [f"{s}, {t.upper()}{', checkpointing' if c else ''}" for s, t, c in COLUMNS]
    lines = [
        "Counted exactly, not timed: what a step of 2,048 tokens a sequence has more, in % of the "
        f"bare trainer's FLOPs; peak bytes; bytes saved for backward (`{COMMANDS['count']}`).", "",
        f"| beside the trainer | {' | '.join(heads)} |", "| --- " * (len(COLUMNS) + 1) + "|",
    ]  # fmt: skip
    for arm in COUNTED:
        cells = [_count_cell(rows.get((*c, arm))) for c in COLUMNS]
        lines.append(f"| {_name(arm)} | {' | '.join(cells)} |")
    return lines


def _name(arm: str) -> str:
    return arm if ARMS[arm].peer or arm == AGAIN else f"{arm}: {ARMS[arm].what}"


def _time_cell(row: Row | None) -> str:
    if row is None or not row["time"]:
        return PLAIN
    low, high = row["time"]["quartiles"]
    return f"{row['time']['median']:.2f} ({low:.2f} to {high:.2f})"


def _count_cell(row: Row | None) -> str:
    if row is None or row["flops"] is None:
        return "not counted"
    return "; ".join(_more(row[k]) for k in ("flops", "peak", "saved"))


def _more(ratio: float) -> str:
    more = 100 * (ratio - 1)
    return f"{more:+.2f}" if abs(more) < 10 else f"{more:+.0f}"


def _shares(runs: Sequence[Row]) -> list[str]:
    told = []
    for run in runs:
        if run["is"] == "arithmetic":
            kept = ", checkpointing" if run["checkpointing"] else ""
            each = ", ".join(
                f"{kind} {100 * sum(run[n] for n in TIMES if n.startswith(kind)):.2f}"
                for kind in ("drift", "audit", "refit")
            )
            at = f"{run['shape']}, {run['step_tokens']:,} tokens a step{kept}"
            told.append(f"{at}: {each}, together {100 * run['together']:.2f}")
    return [
        f"Drift ten times, one audit and ten refits, in % of the FLOPs of {STEPS:,} steps: "
        f"{'; '.join(told) or 'not counted'} (`{COMMANDS['run']}`; an upper bound, for answers "
        "have their full length and the embedded tokenizer makes more tokens than large ones do)."
    ]


def _told_bars(data: Mapping[str, Any]) -> list[str]:
    """Bars met and missed; in FLOPs where these alone are more than a bar allows in time."""
    words: dict[bool | None, dict[str, list[str]]] = {True: {}, False: {}, None: {}}
    for bar in data["bars"]:
        if bar["of"] == "flops" and bar["met"] is not False:
            continue  # a step takes time too
        at = f"{bar['shape']} {bar['trainer'].upper()}"
        at += f" {bar['step_tokens']:,} tokens" if "step_tokens" in bar else ""
        at += " checkpointing" * bar["checkpointing"]
        at += "" if bar["found"] is None else f" {bar['found']:.3f}"
        words[bar["met"]].setdefault(f"{bar['arm']}, {bar['of']} ≤ {bar['most']}", []).append(at)
    lines = []
    for met, name in ((True, "Met"), (False, "Missed"), (None, "Not measured")):
        told = "; ".join(f"{what} ({', '.join(where)})" for what, where in words[met].items())
        why = " No GPU was at hand: time and memory on a GPU are not measured." * (met is None)
        lines.append(f"{name}: {told or 'none'}.{why}")
    return [lines[0], "", " ".join(lines[1:])]


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
