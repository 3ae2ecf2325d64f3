"""Figures of a validation: the emotion map, the blocks, the confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from emoreg.charts import BASE, EMOREG, FAINT, FALL, INK, MUTED, PAPER, RISE, STYLE, panels

VALENCE = LinearSegmentedColormap.from_list("valence", [RISE, BASE, EMOREG])
LINES = {
    "held_out_accuracy": ("emotion of held-out stories", EMOREG, "-"),
    "auroc_desperate_stories": ("desperate in transcripts, story directions", RISE, ":"),
    "auroc_desperate_transcripts": ("desperate in transcripts, their own", RISE, "-"),
    "auroc_calm_stories": ("calm in transcripts, story directions", FALL, ":"),
    "auroc_calm_transcripts": ("calm in transcripts, their own", FALL, "-"),
}


@rc_context(STYLE)
def emotion_map(places: Mapping[str, Mapping[str, float]], wide: bool) -> Figure:
    """Emotions on the two leading components of their directions, coloured by valence."""
    figure, (ax,) = panels(wide, 1, 480 if wide else 420)
    ax.axhline(0, color=FAINT, lw=0.9)
    ax.axvline(0, color=FAINT, lw=0.9)
    for emotion, at in places.items():
        colour = to_hex(VALENCE((at["valence"] - 1) / 6))
        ax.plot(at["x"], at["y"], "o", color=colour, ms=6)
        ax.annotate(
            emotion, (at["x"], at["y"]), (6, 3), textcoords="offset points", size=11, color=INK
        )
    second = int(next(iter(places.values()))["component"]) if places else 2
    ax.set(xlabel="component 1, pleasant to the right", ylabel=f"component {second}, aroused up")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.margins(0.14, 0.08)
    return figure


@rc_context(STYLE)
def block_profile(
    rows: Sequence[Mapping[str, Any]], control: Mapping[str, float], wide: bool
) -> Figure:
    """Accuracy and AUROC at each block, with what the controls give; suggested blocks shaded."""
    figure, (ax,) = panels(wide, 1, 400)
    blocks = [row["block"] for row in rows]
    chosen = [row["block"] for row in rows if row["suggested"]]
    ax.axvspan(min(chosen) - 0.5, max(chosen) + 0.5, color=FAINT, alpha=0.5, lw=0)
    for name, (label, colour, dashes) in LINES.items():
        if all(name in row for row in rows):
            values = [row[name] for row in rows]
            ax.plot(blocks, values, color=colour, ls=dashes, marker="o", ms=4, label=label)
    for place, (name, value) in enumerate(sorted(control.items(), key=lambda x: -x[1])):
        ax.axhline(value, color=MUTED, lw=1, ls=(0, (1, 2)))
        ax.annotate(
            name.replace("_", " ").replace(" p95", ", 95th percentile"),
            (blocks[-1], value),
            (0, -3 if place else 3),  # the higher one above its line, the lower one below
            textcoords="offset points",
            ha="right",
            va="top" if place else "bottom",
            color=MUTED,
            size=11,
        )
    ax.set(ylim=(0, 1.02), xlabel="block", ylabel="accuracy, AUROC")
    ax.locator_params("x", integer=True)
    ax.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2 if wide else 1)
    return figure


@rc_context(STYLE)
def confusion(shares: Mapping[str, Mapping[str, float]], wide: bool) -> Figure:
    """What the held-out stories of each emotion read as; rows sum to one."""
    names = list(shares)
    size = max(360, 26 * len(names))
    figure, (ax,) = panels(wide, 1, size + 90)
    shade = matplotlib.colors.LinearSegmentedColormap.from_list("share", [PAPER, EMOREG])
    for y, truth in enumerate(names):
        for x, other in enumerate(names):
            share = shares[truth][other]
            if share > 0:
                colour = to_hex(shade(share**0.7))
                ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=colour, lw=0)
    ax.set(
        xlim=(-0.5, len(names) - 0.5),
        ylim=(len(names) - 0.5, -0.5),
        aspect="equal",
        xlabel="read as",
        ylabel="story of",
    )
    ax.set_xticks(range(len(names)), names, rotation=90, size=10 if wide else 7)
    ax.set_yticks(range(len(names)), names, size=10 if wide else 7)
    return figure
