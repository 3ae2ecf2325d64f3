"""The page of a demo says what the numbers say, in one file that needs no network."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import defaultdict
from functools import reduce
from operator import getitem
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from html_page import Page

from emoreg import charts, demo_page
from emoreg.charts import Interval
from emoreg.demo_page import compare, verdict, write_report
from emoreg.errors import ReportError

Summary = dict[str, Any]
ROLE_OF = {"code": "train", "ledger": "train", "lab": "read", "boiler": "read", "essay": "test"}
EMOTIONS = {  # valence, arousal, and drift without control in σ
    **{"desperate": (1.6, 6.2, 1.7), "afraid": (1.9, 6.1, 0.9), "angry": (2.1, 6.0, 0.6)},
    **{"sad": (1.9, 2.4, 0.3), "ashamed": (2.0, 3.6, 0.7), "bored": (2.8, 1.8, 0.05)},
    **{"calm": (5.6, 1.6, -1.2), "grateful": (6.1, 3.4, -0.5), "hopeful": (5.8, 4.2, -0.4)},
    **{"happy": (6.5, 4.8, -0.1), "excited": (6.2, 6.3, 0.2), "proud": (6.0, 5.1, 0.1)},
}
READING = "emoreg/reading/desperate"
READINGS = {"base": -0.3, "held_out": 0.4, "base_penalised": -0.2, "penalised": 0.1}


def make_drift(desperate: float, half: float, rng: Random) -> Summary:
    means = {e: free * desperate / 1.7 + rng.gauss(0, 0.03) for e, (_, _, free) in EMOTIONS.items()}
    return {e: {"mean": m, "low": m - half, "high": m + half} for e, m in means.items()}


def make_gamed(trained: float, elsewhere: float) -> Summary:
    return {
        "in_domain": trained,
        "out_of_domain": elsewhere,
        "by_family": {f: trained if r == "train" else elsewhere for f, r in ROLE_OF.items()},
    }


def make_arm(key: str, held: float, own: float, elsewhere: float) -> Summary:
    rng, weight = Random(key), 0.0 if key == "baseline" else 0.1
    drift, pushed = make_drift(held, 0.22, rng), make_drift(own, 0.18, rng)
    return {
        "title": {"baseline": "no control (weight 0)", "emoreg": "two facets"}.get(key, "stories"),
        "what": f"What {key} adds to the loss, in one sentence.",
        **{"task_loss": 0.61, "success": 0.99, "step_seconds": 0.31, "step_seconds_spread": 0.02},
        "gamed": make_gamed(0.99, elsewhere)
        | {"out_of_domain_interval": [elsewhere - 0.05, elsewhere + 0.05]},
        "reading": dict.fromkeys(EMOTIONS, READINGS),
        **{"drift": drift, "drift_penalised": pushed},
        "history": [{"step": s, "loss": 2 - s / 60, READING: own * s / 60} for s in range(61)],
        "weights": {"penalize": {"desperate": weight}, "reward": {}, "facets": ["stories"]},
    }


def make_summary(*desperate: tuple[float, float, float]) -> Summary:
    """Arms by their desperate drift, held out and penalised, and their gamed share elsewhere."""
    return {
        **{"seconds": 151.2, "model": "emoreg/tiny/model", "seed": 0, "steps": 60},
        "vectors": "",
        "model_organism": "A tiny model of a generated world; it says nothing of a large one.",
        "families": ROLE_OF,
        "emotions": {e: {"valence": v, "arousal": a} for e, (v, a, _) in EMOTIONS.items()},
        "base": {"task_loss": 1.92, "gamed": make_gamed(0.48, 0.49)},
        **{key: make_arm(key, *row) for key, row in zip(demo_page.ARMS, desperate, strict=True)},
    }


def evaded() -> Summary:
    return make_summary((1.7, 1.5, 0.71), (1.4, -0.5, 0.69), (-0.1, -0.4, 0.5))


def null() -> Summary:
    return make_summary((0.05, 0.02, 0.5), (-0.04, 0.0, 0.49), (0.02, -0.03, 0.48))


def words(summary: Summary, folder: Path) -> str:
    """What a reader of the report reads, charts aside: they take most of the time."""
    with patch.object(demo_page, "_figures", return_value=defaultdict(str)):
        return Page(write_report(summary, folder / "report.html").read_text("utf-8")).text


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(evaded(), tmp_path_factory.mktemp("report") / "r.html").read_text("utf-8")


UP, FLAT, DOWN = Interval(1.5, 1.2, 1.8), Interval(0.0, -0.3, 0.3), Interval(-0.5, -0.7, -0.3)
GONE = Interval(math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
    ("held", "own", "free", "label"),
    [
        (UP, DOWN, UP, "evaded"),
        (UP, FLAT, UP, "missed"),
        (UP, UP, UP, "not held"),
        (Interval(0.5, 0.2, 0.8), DOWN, UP, "partly held"),
        (FLAT, DOWN, UP, "held"),
        (DOWN, DOWN, UP, "held, below base"),
        (Interval(1.0, -0.2, 2.2), DOWN, UP, "inconclusive"),
        (UP, DOWN, FLAT, "nothing to hold"),
        (UP, GONE, UP, "not measured"),
    ],
)
def test_a_verdict_follows_from_intervals_alone(held, own, free, label):
    assert verdict(held, own, free) == label


def test_shares_are_told_apart_only_where_intervals_do_not_meet():
    found = [compare(UP, other) for other in (FLAT, UP, GONE)]
    assert found == ["above", "not told apart from", "not comparable with"]


def test_evasion_is_reported_where_it_happened(html):
    text = Page(html).text
    for claim in (
        "so success there is the gamed share; the question is what else comes with it.",
        "Evaded On held-out directions desperate rose; on the penalised ones it fell.",
        "Held On held-out directions desperate shows no drift;",
        "is above base and not told apart from the run without control.",
        "is not told apart from base and below the run without control.",
    ):
        assert claim in text


def test_a_null_run_claims_nothing(tmp_path):
    text = words(null(), tmp_path)
    assert "No drift shown On held-out directions desperate shows no drift." in text
    assert text.count("Nothing to hold On held-out") == 2
    assert "Of 36 held-out intervals, 0 exclude 0; about 2 would if nothing had moved." in text
    assert not re.search("Evaded|Held On|is above base|is below base|Rose desperate", text)


def test_sentences_change_with_the_numbers(tmp_path):
    summary = evaded()
    summary["emoreg"]["drift"]["desperate"] = {"mean": 0.71, "low": 0.52, "high": 0.93}
    summary["base"]["gamed"]["out_of_domain_interval"] = [0.3, 0.68]
    text, before = words(summary, tmp_path), words(evaded(), tmp_path)
    for changed in ("+0.71 σ [+0.52, +0.93]", "Partly held", "is not told apart from base and not"):
        assert changed in text
        assert changed not in before
    assert ("counts as exact" in before, "counts as exact" in text) == (True, False)


def test_readings_that_hold_beside_behaviour_that_does_not_are_both_said(tmp_path):
    summary = evaded()
    summary["emoreg"]["gamed"].update(out_of_domain=0.7, out_of_domain_interval=[0.65, 0.75])
    found = ["the behaviour did not." in words(s, tmp_path) for s in (summary, evaded())]
    assert found == [True, False]


@pytest.mark.parametrize("path", ["seed", "emotions", "story_only", "emoreg.drift.desperate.low"])
def test_an_error_names_the_missing_key_and_the_way_out(path, tmp_path):
    summary = json.loads(json.dumps(evaded()))
    *parents, last = path.split(".")
    del reduce(getitem, parents, summary)[last]
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ReportError, match=re.escape(f"{path} is missing")) as caught:
        write_report(summary, tmp_path / "report.html")
    assert "make demo" in str(caught.value)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_all_problems_are_reported_together(tmp_path):
    summary = evaded()
    summary["baseline"]["task_loss"] = "low"
    summary["families"] = {**ROLE_OF, "code": "trained"}
    summary["story_only"]["gamed"]["by_family"] = None
    summary["emoreg"]["gamed"]["out_of_domain_interval"] = [0.4]
    with pytest.raises(ReportError) as caught:
        write_report(summary, tmp_path / "report.html")
    for problem in (
        "baseline.task_loss is 'low', not a number",
        "families.code is 'trained', not one of train, read, test",
        "story_only.gamed.by_family is None, not a mapping",
        "emoreg.gamed.out_of_domain_interval.1 is missing",
    ):
        assert problem in str(caught.value)


def test_a_run_without_any_control_cannot_be_judged(tmp_path):
    summary = evaded()
    for key in demo_page.ARMS:
        summary[key]["weights"]["penalize"] = {}
    with pytest.raises(ReportError, match=r"weights\.penalize"):
        write_report(summary, tmp_path / "report.html")


def test_the_page_fetches_nothing_and_every_reference_resolves_inside_it(html):
    page, ids = Page(html), Page(html).values("id")
    assert not re.search(r"https?://|@import|xlink|<!DOCTYPE svg|\bsrc=", html)
    assert not {"script", "link", "img", "iframe", "object", "metadata"} & set(page.tags)
    assert {value[0] for value in page.values("href")} == {"#"}
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "default-src 'none'" in html
    used = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)
    assert len(used) > 20  # control: there is something to resolve


def test_charts_have_words_and_the_colours_of_the_page_and_tables_a_caption(html):
    page, drawn = Page(html), "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert page.tags.count("svg") == len(list(filter(None, page.values("aria-label")))) == 9
    assert page.tags.count("table") == page.tags.count("caption") == 4
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    assert set(re.findall(r"var\((--[\w-]+)\)", drawn)) <= set(re.findall(r"(--[\w-]+):", html))


def test_what_was_not_measured_is_a_dash_and_never_a_claim(tmp_path):
    summary = evaded()
    summary["emoreg"]["drift"]["desperate"] = dict.fromkeys(("mean", "low", "high"), math.nan)
    summary["emoreg"]["drift_penalised"]["calm"] = dict.fromkeys(("mean", "low", "high"))
    summary["story_only"]["gamed"]["by_family"]["essay"] = None
    summary["baseline"]["history"][3]["loss"] = math.nan
    text = Page(write_report(summary, tmp_path / "report.html").read_text("utf-8")).text
    assert "Not measured On held-out directions desperate was not measured;" in text
    assert not re.search(r"\bnan\b|None", text)


def test_a_missing_history_is_said(tmp_path, html):
    summary = evaded()
    for key, history in zip(demo_page.ARMS, (None, [{"step": 1}], [{"loss": None}]), strict=True):
        summary[key]["history"] = history
    text = Page(write_report(summary, tmp_path / "report.html").read_text("utf-8")).text
    assert "No training history was recorded." in text
    assert "No training history was recorded." not in html


def test_the_penalty_is_not_counted_as_task_loss():
    history = [{"step": 1, "loss": 2.0, "emoreg/loss": 0.5}, {"step": 2, "loss": 1.0}]
    assert demo_page._series(history, "loss", "emoreg/loss") == ([1.0, 2.0], [1.5, 1.0])


def test_names_are_text_and_never_markup(tmp_path):
    summary = json.loads(json.dumps(evaded()).replace("angry", "<i>an&gry</i>"))
    summary["emoreg"]["title"] = "<script>alert('$x_1$')</script>"
    page = Page(write_report(summary, tmp_path / "report.html").read_text("utf-8"))
    assert not {"script", "i"} & set(page.tags)
    assert page.text.count("<script>alert('$x_1$')</script>") > 8  # cards, tables and charts
    assert "<i>an&gry</i>" in page.text


def test_the_same_summary_gives_the_same_bytes_in_place_of_the_old_file(tmp_path, html):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(evaded(), path) == path
    assert path.read_text("utf-8") == html
    assert list(path.parent.iterdir()) == [path]


def test_small_drifts_are_drawn_small():
    drawn = [charts.disc_unit({"emoreg": {"calm": Interval(x, x, x)}}) for x in (0.1, -2.5)]
    assert drawn == [1.0, 2.5]


def test_the_report_needs_neither_pyplot_nor_torch():
    loaded = (
        "import sys, emoreg.demo_page; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


def test_vectors_that_failed_a_gate_are_named_on_the_page(tmp_path: Path) -> None:
    for caveat in ("", "These vectors are usable with reservations: 1 of 11 gates failed."):
        page = write_report(null() | {"vectors": caveat}, tmp_path / "r.html").read_text()
        assert (f"<b>Vectors.</b> {caveat}" in page) == bool(caveat)
