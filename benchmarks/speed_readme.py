"""The short table of costs for the README, between its marks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speed_arms import ARMS, BARE, SHAPES, TRAINERS

from emoreg.files import write_atomic

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
NONE = "–"
Row = dict[str, Any]


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
    """Without checkpointing: times where they are measured, FLOPs and peak bytes elsewhere."""
    rows: dict[tuple[str, str, str], Row] = {
        (r["shape"], r["trainer"], r["arm"]): r for r in data["rows"] if not r["checkpointing"]
    }
    held = {key[:2] for key in rows}
    keys = [(s, t) for s in SHAPES for t in TRAINERS if (s, t) in held]
    timed = {k for k in keys if (first := rows.get((*k, BARE))) and first["time"]}
    heads = [f"{s}, {t.upper()}, {'time' if (s, t) in timed else 'FLOPs, peak'}" for s, t in keys]
    lines = [f"| beside the bare trainer | {' | '.join(heads)} |", "| --- " * (len(keys) + 1) + "|"]
    for arm, about in ARMS.items():
        own = {k: rows.get((*k, arm)) for k in keys}
        if arm != BARE and any(own.values()):
            cells = [_cell(own[k], k in timed) for k in keys]
            lines.append(f"| {arm}: {about.what} | {' | '.join(cells)} |")
    runs = [
        f"{r['shape']}, {r['step_tokens']} tokens a step, {r['is']}: {100 * r['together']:.1f} %"
        for r in data["run"]
        if r["checkpointing"]
    ]
    noted = [
        "", f"Device: {data['device']}. Time is measured: median of paired steps, with quartiles; "
        "FLOPs and peak bytes are counted, exactly, and say nothing of time.",
        "", f"Drift, audit and refits of a run of 1,000 steps: {'; '.join(runs) or NONE}.",
    ]  # fmt: skip
    return "\n".join([*lines, *noted])


def _cell(row: Row | None, timed: bool) -> str:
    if row is None:
        return NONE
    if timed:
        if not row["time"]:
            return NONE
        low, high = row["time"]["quartiles"]
        return f"{row['time']['median']:.2f} ({low:.2f} to {high:.2f})"
    if "peak_measured" in row or row["flops"] is None:
        return NONE
    return f"{row['flops']:.4f}, {row['peak']:.4f}"
