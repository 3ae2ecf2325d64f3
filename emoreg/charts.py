"""Figures of a run: matplotlib objects for any logger, and the same as SVG text for a page.

In every function `titles` maps the arms to draw, in order, to the names that readers see, and
`wide` puts panels side by side instead of stacking them. Colours are drawn in the light theme;
`inline_svg` replaces each by a CSS variable. Nothing here uses pyplot or a global figure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from types import MappingProxyType
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


class Interval(NamedTuple):
    """A mean with its 95 % interval; NaN where nothing was measured."""

    mean: float
    low: float
    high: float

    @property
    def side(self) -> str:
        """Where the interval lies: ``up`` or ``down`` of 0, ``flat`` if it has 0, ``unknown``."""
        if not all(map(math.isfinite, self)):
            return "unknown"
        return "up" if self.low > 0 else "down" if self.high < 0 else "flat"


class Mark(NamedTuple):
    """How one arm looks in every chart."""

    colour: str
    fill: str
    shape: str
    dashes: str


Titles = Mapping[str, str]
Drifts = Mapping[str, Mapping[str, Interval]]  # arm -> emotion -> drift in σ
Places = Mapping[str, tuple[float, float]]  # emotion -> valence, arousal
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # arm -> steps, values

INK, MUTED, FAINT, PAPER = "#1d2125", "#636b72", "#d8dcdf", "#ffffff"
RISE, FALL = "#b5402c", "#2b6cb0"
BASE, BASELINE, STORY_ONLY, EMOREG = "#868e95", "#454c52", "#b37712", "#0f766e"
MARKS = {
    "base": Mark(BASE, PAPER, "o", ":"),
    "baseline": Mark(BASELINE, BASELINE, "s", "-"),
    "story_only": Mark(STORY_ONLY, STORY_ONLY, "D", "--"),
    "emoreg": Mark(EMOREG, EMOREG, "o", "-"),
}
THEME = {
    **{INK: "var(--ink)", MUTED: "var(--muted)", FAINT: "var(--faint)", PAPER: "var(--card)"},
    **{RISE: "var(--rise)", FALL: "var(--fall)"},
    **{mark.colour: f"var(--{arm.replace('_', '-')})" for arm, mark in MARKS.items()},
}
TEST_MEAN = "mean of these"  # the row below the test families
ROLES = {
    "train": "trained on",
    "read": "read for directions only",
    "test": "neither trained on nor read",
}
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), FAINT),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("font.size", "axes.titlesize"), 12.5),
    "axes.facecolor": "none",
    "axes.titlelocation": "left",
    "figure.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],
    "legend.fontsize": 12.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "emoreg",
    "text.color": INK,
    "text.parse_math": False,
}


def inline_svg(
    figure: Figure, name: str, label: str, theme: Mapping[str, str] = MappingProxyType(THEME)
) -> str:
    """The figure as SVG for a page that defines the variables of `theme`.

    Args:
        figure: A figure of this module.
        name: Unique on the page; every id inside gets it as a prefix.
        label: What a reader who cannot see the chart should hear.
        theme: What each colour becomes on the page.
    """
    buffer = StringIO()
    with rc_context(STYLE), catch_warnings():
        # The page's own fonts draw the text; matplotlib's only measures it.
        filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", facecolor="none", edgecolor="none")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.S)
    head, body = re.split(r"(?<=>)", svg[svg.index("<svg") :], maxsplit=1)
    used = set(re.findall(r"#(\w+)[\")]", body))
    body = re.sub(r"<[^>]+>", lambda tag: _tidy(tag[0], name, used, theme), body)
    box = "".join(re.findall(r'viewBox="[^"]*"', head))
    opening = f'<svg {box} role="img" aria-label="{escape(label)}">'
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _tidy(tag: str, name: str, used: set[str], theme: Mapping[str, str]) -> str:
    """One tag of matplotlib's: ids unique or gone, colours themed, fonts and digits cut."""
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' * (m[1] in used), tag)
    tag = re.sub(r'xlink:href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda m: theme.get(m[0], m[0]), tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"|font-family:[^;"]*;? ?', "", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)


def panels(wide: bool, count: int, height: int, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure measured in pixels of its SVG; `height` is that of one row."""
    rows, columns, width = (1, count, 960) if wide else (count, 1, 380)
    figure = Figure(figsize=(width / 72, rows * height / 72), dpi=72, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **share).flat)


def _key(figure: Figure, titles: Titles, columns: int, lines: bool = False) -> None:
    """One legend above all panels."""
    handles = [
        Line2D([], [], color=m.colour, mfc=m.fill, marker=m.shape, ls="none", label=titles[arm])
        if not lines
        else Line2D([], [], color=m.colour, ls=m.dashes, label=titles[arm])
        for arm, m in MARKS.items()
        if arm in titles
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.5)


@rc_context(STYLE)
def control_map(
    own: Mapping[str, Interval], held: Mapping[str, Interval], titles: Titles
) -> Figure:
    """One emotion per arm: drift where the penalty looks (`own`), and where it does not."""
    figure, (ax,) = panels(False, 1, 440)
    reach = [x for arm in titles for x in (*own[arm], *held[arm]) if math.isfinite(x)]
    low, high = 1.15 * min([-0.8, *reach]), 1.3 * max([0.8, *reach])
    ax.fill_between([low, 0], 0, high, color=RISE, alpha=0.08, lw=0)
    ax.axhline(0, color=MUTED, lw=0.9)
    ax.axvline(0, color=MUTED, lw=0.9)
    ax.annotate("evaded", (low, high), (8, -8), textcoords="offset points", va="top", color=MUTED)
    ax.annotate(
        "rose on both", (0, high), (8, -8), textcoords="offset points", va="top", color=MUTED
    )
    ax.annotate(
        "held", (high, 0), (-6, -4), textcoords="offset points", ha="right", va="top", color=MUTED
    )
    for arm in titles:
        mark, (x, x0, x1), (y, y0, y1) = MARKS[arm], own[arm], held[arm]
        ax.plot([x0, x1], [y, y], color=mark.colour)
        ax.plot([x, x], [y0, y1], color=mark.colour)
        ax.plot(x, y, mark.shape, color=mark.colour, ms=8)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.locator_params(nbins=5)
    ax.set(xlabel="drift on penalised directions, σ", ylabel="drift on held-out directions, σ")
    _key(figure, titles, 1)
    return figure


@rc_context(STYLE)
def gamed_shares(roles: Mapping[str, str], shares: Drifts, titles: Titles, wide: bool) -> Figure:
    """Gamed share per family, grouped by the family's role; intervals where they are known."""
    figure, (ax,) = panels(wide, 1, 420 if wide else 470)
    rows = [
        row
        for role, heading in ROLES.items()
        for row in (heading, *(family for family in roles if roles[family] == role))
    ] + [TEST_MEAN]
    for y, family in enumerate(rows):
        if family in ROLES.values():
            ax.text(0, y, family, color=MUTED, va="center", backgroundcolor=PAPER)
            continue
        ax.axhline(y, color=FAINT, lw=0.8, zorder=0)
        for i, arm in enumerate(titles):
            share, low, high = shares[arm].get(family, (math.nan,) * 3)
            mark, track = MARKS[arm], y + 0.14 * (i - (len(titles) - 1) / 2)
            ax.plot([low, high], [track, track], color=mark.colour)
            ax.plot(share, track, mark.shape, color=mark.colour, mfc=mark.fill, ms=7)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.5), xlabel="gamed share")
    ax.set_yticks(
        range(len(rows)), ["" if row in ROLES.values() else row for row in rows], color=INK
    )
    ax.grid(axis="x")
    _key(figure, titles, len(titles) if wide else 1)
    return figure


@rc_context(STYLE)
def forest(drift: Drifts, titles: Titles, target: str = "", wide: bool = False) -> Figure:
    """Every emotion's drift with interval; rows sorted by the first arm, `target`'s is marked."""
    first = drift[next(iter(titles))]
    order = sorted(first, key=lambda e: first[e].mean if first[e].side != "unknown" else -math.inf)
    figure, axes = panels(wide, len(titles), 400, sharex=True)
    for ax, (arm, title) in zip(axes, titles.items(), strict=True):
        colour, _, shape, _ = MARKS.get(arm, MARKS["baseline"])
        if target in first:
            row = order.index(target)
            ax.axhspan(row - 0.5, row + 0.5, color=FAINT, alpha=0.5)
        ax.axvline(0, color=MUTED, lw=0.9)
        for y, emotion in enumerate(order):
            mean, low, high = drift[arm][emotion]
            if drift[arm] is not first:
                ax.plot(first[emotion].mean, y, "|", color=BASE, ms=11)
            hollow = drift[arm][emotion].side == "flat"
            ax.plot([low, high], [y, y], color=colour)
            ax.plot(mean, y, shape, color=colour, ms=6.5, mfc=PAPER if hollow else colour)
        ax.set_title(title, color=colour)
        ax.set_yticks(range(len(order)), order, color=INK)
        ax.set(ylim=(-0.7, len(order) - 0.3), xlabel="drift, σ")
        ax.tick_params("x", labelbottom=True)
        ax.grid(axis="x")
    axes[0].update_datalim([(-1, 0), (1, 0)])
    axes[0].autoscale_view()
    return figure


@rc_context(STYLE)
def emotion_wheel(places: Places, drift: Drifts, titles: Titles, wide: bool) -> Figure:
    """Emotions by the angle of valence and arousal; a disc's area and colour are its drift."""
    angles, unit = _around(places), disc_unit(drift)
    figure, axes = panels(wide, len(titles), 280 if wide else 320)
    turn = [2 * math.pi * i / 120 for i in range(121)]
    for ax, (arm, title) in zip(axes, titles.items(), strict=True):
        ax.plot([math.cos(t) for t in turn], [math.sin(t) for t in turn], color=FAINT, lw=1)
        for emotion, angle in angles.items():
            x, y, change = math.cos(angle), math.sin(angle), drift[arm][emotion]
            side = "center" if abs(x) < 0.3 else "left" if x > 0 else "right"
            ax.text(1.28 * x, 1.28 * y, emotion, ha=side, va="center")
            if change.side == "unknown":
                continue
            area = max(12, 900 * abs(change.mean) / unit)
            if change.side == "flat":
                ax.scatter(x, y, area, fc=PAPER, ec=MUTED, lw=1.2, zorder=3)
            else:
                ax.scatter(x, y, area, color=RISE if change.mean > 0 else FALL, zorder=3)
        for x, y, word in (
            (-0.45, 0, "unpleasant"),
            (0.5, 0, "pleasant"),
            (0, 0.5, "aroused"),
            (0, -0.5, "quiet"),
        ):
            ax.text(x, y, word, ha="center", va="center", color=MUTED, size=11)
        ax.set(xlim=(-1.95, 1.95), ylim=(-1.45, 1.45), aspect="equal")
        ax.axis("off")
        ax.set_title(title, color=MARKS[arm].colour)
    return figure


def disc_unit(drift: Drifts) -> float:
    """The drift of the largest disc, at least 1 σ: small drifts must look small."""
    sizes = [abs(d.mean) for row in drift.values() for d in row.values()]
    return max([1.0, *filter(math.isfinite, sizes)])


def _around(places: Places) -> dict[str, float]:
    """Equal steps in order of angle, turned as a whole to lie nearest the true angles."""
    middle = [sum(axis) / len(places) for axis in zip(*places.values(), strict=True)]
    true = {e: math.atan2(a - middle[1], v - middle[0]) for e, (v, a) in places.items()}
    order = sorted(true, key=lambda e: true[e])
    step = 2 * math.pi / len(order)
    off = [true[e] - i * step for i, e in enumerate(order)]
    turn = math.atan2(sum(map(math.sin, off)), sum(map(math.cos, off)))
    return {e: turn + i * step for i, e in enumerate(order)}


@rc_context(STYLE)
def training_curves(curves: Mapping[str, Curves], titles: Titles, wide: bool) -> Figure:
    """Quantities over training steps, one panel each; NaN leaves a gap."""
    figure, axes = panels(wide, len(curves), 290)
    for ax, (quantity, lines) in zip(axes, curves.items(), strict=True):
        for arm, (steps, values) in lines.items():
            ax.plot(steps, values, color=MARKS[arm].colour, ls=MARKS[arm].dashes)
        ax.set_title(quantity, pad=10)
        ax.set_xlabel("step")
        ax.grid(axis="y")
    _key(figure, titles, len(titles) if wide else 1, lines=True)
    return figure
