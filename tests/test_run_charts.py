"""Figures of a run show its numbers, whatever the run has; colours can be told apart and read."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import runs
from emoreg import run_lines, shades
from emoreg.chart_parts import spaced
from emoreg.charts import INK, PAPER, inline_svg
from emoreg.errors import ReportError
from emoreg.journal import Run
from emoreg.labels import Area, Mark, apart, gap, meet, place
from emoreg.run_charts import block_emotions, block_steps, drift_forest, emotion_steps, wheel
from emoreg.run_view import View
from emoreg.wheel import CORNER, NAMED

FIGURES = (emotion_steps, block_steps, block_emotions, drift_forest, wheel)


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runs.write_run(tmp_path_factory.mktemp("run"), "with-control", runs.HELD, 1.0)


def labels(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_figure_is_drawn_for_any_logger_and_refused_without_a_drift(draw, run, tmp_path):
    path = tmp_path / "f.png"
    draw(run).savefig(path)
    assert path.stat().st_size > 4000
    empty = Run(tmp_path, header=dict(run.header), logs=list(run.logs))
    with pytest.raises(ReportError, match="with-control: no measurement of drift"):
        draw(empty)


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("wide", [True, False])
def test_what_is_missing_leaves_a_gap_and_not_an_error(draw, wide, tmp_path):
    odd = runs.write_run(tmp_path, means={"calm": 0.4, "没有": -0.2}, measurements=2)
    odd.baseline["emotions"] = {"calm": {"valence": None, "arousal": 3}}
    odd.drifts[0]["places"] = {}
    colon = odd.drifts[1]["places"]["colon"]
    colon["emotions"]["没有"] = None
    colon["blocks"] = {"3": {"calm": None}}
    assert inline_svg(draw(odd, wide), "x", "a label").startswith("<svg")


def test_the_forest_is_sorted_and_its_marks_are_the_claims(run):
    figure = drift_forest(run)
    rows = run.drifts[-1]["places"]["colon"]["emotions"]
    order = sorted(rows, key=lambda e: rows[e]["drift"])
    assert [name.removesuffix(" *") for name in labels(figure)] == order
    assert [name for name in labels(figure) if name.endswith("*")] == ["desperate *", "calm *"]
    marks = [line for line in figure.axes[0].lines if line.get_marker() in "^vo"]
    for emotion, mark in zip(order, marks, strict=True):
        assert mark.get_xdata()[0] == rows[emotion]["drift"]
        moved = rows[emotion]["q"] <= 0.05
        wanted = ("^" if rows[emotion]["drift"] > 0 else "v") if moved else "o"
        assert mark.get_marker() == wanted
    assert {mark.get_marker() for mark in marks} == {"^", "v", "o"}  # control


def test_the_forest_grows_with_the_emotions_and_names_each(tmp_path):
    few, many = (
        runs.write_run(tmp_path / str(n), means=runs.many(n), measurements=2) for n in (8, 171)
    )
    small, large = drift_forest(few), drift_forest(many)
    assert len(labels(small)) == 8
    assert len(set(labels(large))) == 171
    for figure, number in ((small, 8), (large, 171)):
        box = figure.axes[0].get_position().height * figure.get_size_inches()[1] * 72
        assert box / number > 18  # pixels for a row
    assert len(labels(drift_forest(many, most=40))) == 40


def test_a_heat_map_holds_the_numbers_and_shades_them_by_size(run):
    figure = block_emotions(run)
    found = run.drifts[-1]["places"]["colon"]["blocks"]
    cells = [t.get_text() for t in figure.axes[0].texts]
    names = [name.removesuffix(" *") for name in labels(figure)]
    wanted = [found[b][e] for e in names for b in ("2", "3", "4")]
    said = ["0" if abs(x) < 0.05 else f"{x:+.1f}".replace("-", "−") for x in wanted]
    assert cells == said
    limit = shades.rounded(max(map(abs, wanted)))
    inked = {shades.colour(x, limit) for x in wanted}
    drawn = {
        "#" + "".join(f"{round(255 * c):02x}" for c in patch.get_facecolor()[:3])
        for patch in figure.axes[0].patches
    }
    assert drawn == inked
    assert len(drawn) > 6  # control


def test_many_steps_are_thinned_and_the_ends_stay(tmp_path):
    run = runs.write_run(tmp_path, means={"calm": 1.0, "sad": 0.1}, measurements=31)
    for wide, most in ((True, 16), (False, 6)):
        steps = [int(t.get_text()) for t in emotion_steps(run, wide).axes[0].get_xticklabels()]
        assert len(steps) == most
        assert (steps[0], steps[-1]) == (0, 60)
    assert spaced([1, 2, 3], 5) == [1, 2, 3]


def test_the_wheel_places_emotions_by_their_ratings_and_sizes_them_by_drift(run):
    ax = wheel(run).axes[0]
    rated = run.baseline["emotions"]
    drift = {e: r["drift"] for e, r in run.drifts[-1]["places"]["colon"]["emotions"].items()}
    order = sorted(drift, key=lambda e: -abs(drift[e]))
    sizes = [c.get_sizes()[0] for c in ax.collections]
    assert sizes == sorted(sizes, reverse=True)
    at = {e: (rated[e]["valence"], rated[e]["arousal"]) for e in drift}
    shared = [e for e in drift if list(at.values()).count(at[e]) > 1]
    assert shared == ["afraid", "angry"]  # control: two marks must make room for each other
    for emotion, mark in zip(order, ax.collections, strict=True):
        near = 0.15 if emotion in shared else 1e-6
        assert tuple(mark.get_offsets()[0]) == pytest.approx(at[emotion], abs=near)
    assert {t.get_text() for t in ax.texts} == set(drift)


def drawn(figure: Figure) -> tuple[list[tuple[str, Any]], list[Mark], list[Any]]:
    """What a wheel shows: labels with their boxes, marks, and the lines between, in pixels."""
    figure.canvas.draw()
    ax = figure.axes[0]
    labels = [(t.get_text(), t.get_window_extent()) for t in ax.texts]
    marks = [
        Mark(*ax.transData.transform(c.get_offsets()[0]), math.sqrt(c.get_sizes()[0]) / 2)
        for c in ax.collections
    ]
    lines = [ax.transData.transform(line.get_xydata()) for line in ax.lines[2:]]
    return labels, marks, lines


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("number", [12, 40, 171])
def test_every_mark_of_the_wheel_has_one_label_that_can_be_no_other_s(number, wide, tmp_path):
    means = runs.TWELVE if number == 12 else runs.many(number)
    figure = wheel(runs.write_run(tmp_path, means=means, measurements=2), wide)
    labels, marks, lines = drawn(figure)
    order = sorted(means, key=lambda e: -abs(means[e]))[:NAMED]
    key = dict(t.get_text().split("  ") for t in figure.texts)
    assert sorted(key.get(text, text) for text, _ in labels) == sorted(order)
    assert len(marks) == len(order)
    assert not [1 for a, b in combinations(marks, 2) if math.dist(a[:2], b[:2]) < a[2] + b[2]]
    boxes = [Area(*box.extents) for _, box in labels]
    assert not [1 for a, b in combinations(boxes, 2) if meet(a, b)]
    assert min(gap(mark, box) for mark in marks for box in boxes) > 0
    for (text, _), box in zip(labels, boxes, strict=True):
        gaps = [gap(mark, box) for mark in marks]
        own = order.index(key.get(text, text))
        if gaps[own] > min(gaps) or gaps[own] > 8:  # then a line leads to it from its mark
            starts = [start for start, end in lines if gap(Mark(*end, 0.0), box) < 5]
            edges = [
                [abs(math.dist(m[:2], start) - CORNER * m.radius) for m in marks]
                for start in starts
            ]
            assert own in [found.index(min(found)) for found in edges]


def test_a_label_without_room_has_no_spot_and_the_more_important_choose_first():
    alone = place([Mark(50, 50, 5)], [(30, 12)], Area(0, 0, 100, 100))[0]
    assert alone is not None
    assert alone.line is None
    assert place([Mark(50, 50, 5)], [(30, 12)], Area(40, 40, 60, 60)) == [None]
    crowd = [Mark(50, 50, 5), Mark(50, 62, 5), Mark(50, 38, 5)]
    spots = place(crowd, [(30, 12)] * 3, Area(0, 0, 100, 100))
    assert spots[0] is not None
    assert spots[0].line is not None  # beside it, it could be one of the others'
    first, second, third = place(crowd, [(38, 12)] * 3, Area(8, 25, 110, 75))
    assert first is not None
    assert second is not None
    assert third is not None
    assert place(crowd, [(44, 12)] * 3, Area(8, 25, 100, 75)).count(None) > 0


def test_marks_at_one_place_are_set_apart_and_those_alone_stay():
    alone, crowd = Mark(300, 300, 9), [Mark(100, 100, 4.0 + i) for i in range(6)]
    found = apart([alone, *crowd])
    assert found[0] == alone
    assert min(math.dist(a[:2], b[:2]) - a[2] - b[2] for a, b in combinations(found, 2)) > 0
    assert max(math.dist(m[:2], (100, 100)) for m in found[1:]) < 30
    assert apart([]) == []


def test_curves_have_bands_and_alerts_and_a_panel_for_each_run(run, tmp_path):
    free = runs.write_run(tmp_path, "no-control")
    views = [View.of(run), View.of(free)]
    figure = run_lines.drift_curves(views, ["calm", "desperate"], True)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["with-control", "no-control"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    ax = figure.axes[0]
    assert len(ax.collections) == 2  # bands
    assert [t.get_text() for t in ax.texts] == ["alert"]
    calm = next(line for line in ax.lines if line.get_marker() == "o")
    rows = [d["places"]["colon"]["emotions"]["calm"]["drift"] for d in run.drifts]
    assert list(calm.get_ydata()) == rows


def test_two_values_are_points_and_more_are_a_curve(run, tmp_path):
    odd = Run(tmp_path, header=dict(run.header), logs=list(run.logs))
    odd.logs += [(0, {"eval_loss": 2.0}), (60, {"eval_loss": 0.5})]
    views = [View.of(odd)]
    curves = run_lines.training(views, ["calm"])
    axes = run_lines.training_curves(views, curves, True).axes
    looks = {ax.get_title(loc="left"): ax.lines[0] for ax in axes}
    assert (looks["evaluation loss"].get_linestyle(), looks["evaluation loss"].get_marker()) == (
        ("None", "o")
    )
    assert looks["task loss"].get_linestyle() == "-"  # control


def test_panels_of_answers_share_the_scale_of_the_colon(run):
    emotions = ["calm", "desperate"]
    figure = run_lines.forests([View.of(run)], emotions, True)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["at the colon", "on fixed responses", "in own responses"]
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    for at, ax in zip(("colon", "response", "own"), figure.axes, strict=True):
        drifts = [run.drifts[-1]["places"][at]["emotions"][e]["drift"] for e in emotions]
        marks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in "^vo"]
        assert marks == drifts
    assert labels(figure) == ["calm *", "desperate *"]


def test_the_penalty_is_not_counted_as_task_loss(run):
    (steps, values), raw = View.of(run).series("loss", "loss"), View.of(run).series("learning_rate")
    logged = {s: row["loss"] - row["emoreg/loss"] for s, row in run.logs}
    assert dict(zip(steps, values, strict=True)) == logged
    assert set(raw[1]) == {5e-4}  # control: nothing is taken off elsewhere
    named = Run(run.folder, logs=[(1, {"loss": 2.0, "emoreg/a/loss": 0.5, "emoreg/b/loss": 0.25})])
    named.controls = {"a": {}, "b": {}}
    assert View.of(named).series("loss", "loss") == ([1], [1.25])


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_can_be_read_on_every_shade_and_lines_be_seen(dark):
    ink, paper = (shades.DARK_INK, shades.DARK_PAPER) if dark else (INK, PAPER)
    for kind in shades.SHADES:
        steps = [shades.shade(kind, i, dark) for i in range(1, shades.LEVELS + 1)]
        assert min(contrast(ink, s) for s in steps) >= 4.5
        falling = [contrast(paper, s) for s in steps]
        assert falling == sorted(falling)  # deeper is further from the paper
    assert min(contrast(pair[dark], paper) for pair in shades.LINES) >= 4.5
    assert contrast(ink, paper) > 12  # control


def blue_blind(colour: str) -> tuple[float, float]:
    """What deuteranopia leaves: lightness, and yellow against blue."""
    r, g, b = to_rgb(colour)
    return 0.3 * r + 0.6 * g + 0.1 * b, b - (0.35 * r + 0.65 * g)


def test_rise_and_fall_differ_for_eyes_that_do_not_tell_red_from_green():
    for at in range(2, shades.LEVELS + 1):
        up, down = (blue_blind(shades.shade(kind, at))[1] for kind in ("up", "down"))
        assert down - up > 0.04 * at


def test_the_style_sheet_has_the_colours_that_charts_are_drawn_in():
    css = (Path(shades.__file__).parent / "templates" / "style.css").read_text("utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    defined: list[dict[str, Any]] = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in (light, dark)
    ]
    assert (defined[0]["ink"], defined[0]["card"]) == (INK, PAPER)
    assert (defined[1]["ink"], defined[1]["card"]) == (shades.DARK_INK, shades.DARK_PAPER)
    over = re.findall(r":root \{(.*?)\}", shades.css(), flags=re.DOTALL)
    for theme, own in zip(defined, over, strict=True):
        theme |= dict(re.findall(r"--(rise): (#\w{6})", own))  # the report's own
    assert (defined[0]["rise"], defined[1]["rise"]) == shades.SHADES["up"]
    assert (defined[0]["fall"], defined[1]["fall"]) == shades.SHADES["down"]
    for theme in defined:
        for name in ("ink", "muted", "rise", "fall", "emoreg"):
            assert min(contrast(theme[name], theme[on]) for on in ("page", "card")) >= 4.5
    for hexadecimal, variable in shades.THEME.items():
        name = variable[6:-1]
        assert name in defined[0] or f"--{name}: {hexadecimal};" in shades.css()
