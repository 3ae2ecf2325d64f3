"""What a step costs more of as more is read, beside what the arithmetic alone would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from speed_arms import SWEEPS

mpl.use("agg")
from matplotlib.figure import Figure

Row = dict[str, Any]


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
                limit = sorted((r["size"], 100 * (r["flops"] - 1)) for r in own if "flops" in r)
                if limit:
                    axis.plot(
                        *zip(*limit, strict=True), color=colour, ls="--", label=f"{arm}, FLOPs"
                    )
            axis.set_xscale("log", base=2)
            axis.set_xlabel({"tokens": "tokens of a sequence", "rows": "sequences"}.get(what, what))
            axis.axhline(0, color="0.7", lw=0.8)
        line[0].set_ylabel(f"{shape}: added to a step, %")
    if shapes:
        axes[0][0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _points(axis: Any, rows: Sequence[Row], arm: str, colour: str) -> None:
    for row in sorted(rows, key=lambda r: r["size"]):
        low, high = (100 * (q - 1) for q in row["time"]["quartiles"])
        mid = 100 * (row["time"]["median"] - 1)
        axis.errorbar(row["size"], mid, [[mid - low], [high - mid]], color=colour, marker="o", ms=4)
    if rows:
        axis.plot([], [], color=colour, marker="o", label=f"{arm}, time")
