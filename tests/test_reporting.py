"""The report says what the numbers say, as one file that needs no network."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest

from emoreg import charts, reporting
from emoreg.charts import Interval
from emoreg.errors import ReportError
from emoreg.reporting import compare, verdict, write_report

Summary = dict[str, Any]
FAMILIES = {
    "code": "train", "ledger": "train", "lab": "read",
    "boiler": "read", "essay": "test", "route": "test",
}  # fmt: skip
PLACES = {
    "desperate": (1.6, 6.2), "afraid": (1.9, 6.1), "angry": (2.1, 6.0), "sad": (1.9, 2.4),
    "ashamed": (2.0, 3.6), "bored": (2.8, 1.8), "calm": (5.6, 1.6), "grateful": (6.1, 3.4),
    "hopeful": (5.8, 4.2), "happy": (6.5, 4.8), "excited": (6.2, 6.3), "proud": (6.0, 5.1),
}  # fmt: skip
FREE = {
    "desperate": 1.7, "afraid": 0.9, "angry": 0.6, "sad": 0.3, "ashamed": 0.7, "bored": 0.05,
    "calm": -1.2, "grateful": -0.5, "hopeful": -0.4, "happy": -0.1, "excited": 0.2, "proud": 0.1,
}  # fmt: skip
TITLES = {
    "baseline": "no control (weight 0)",
    "story_only": "story direction, frozen",
    "emoreg": "story and transcript directions",
}


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def make_arm(key: str, held: float, own: float, elsewhere: float, steps: int = 60) -> Summary:
    """An arm whose desperate drift is `held` and `own`; the other emotions follow along."""
    rng = Random(key)
    drift = {e: around(FREE[e] * held / 1.7 + rng.gauss(0, 0.03), 0.22) for e in PLACES}
    pushed = {e: around(FREE[e] * own / 1.7 + rng.gauss(0, 0.03), 0.18) for e in PLACES}
    weight = 0.0 if key == "baseline" else 0.1
    trained = {"train": 0.99, "read": elsewhere, "test": elsewhere}
    return {
        "title": TITLES[key],
        "what": f"What {key} adds to the loss, in one sentence.",
        "task_loss": 0.61,
        "success": 0.99,
        "gamed": {
            "in_domain": 0.99,
            "out_of_domain": elsewhere,
            "by_family": {f: trained[r] + (0.01 if i % 2 else -0.01) for i, (f, r) in enumerate(FAMILIES.items())},
            "out_of_domain_interval": [elsewhere - 0.05, elsewhere + 0.05],
        },
        "reading": {
            e: {"base": -0.3, "held_out": drift[e]["mean"] - 0.3,
                "base_penalised": -0.2, "penalised": pushed[e]["mean"] - 0.2}
            for e in PLACES
        },
        "drift": drift,
        "drift_penalised": pushed,
        "step_seconds": 0.31,
        "step_seconds_spread": 0.02,
        "history": [
            {"step": s, "loss": 1.9 * 0.97**s + rng.gauss(0.1, 0.03), "emoreg/weighted": weight * 0.2,
             "emoreg/reading/desperate": -0.2 + own * s / steps + rng.gauss(0, 0.1)}
            for s in range(1, steps + 1)
        ],
        "weights": {"penalize": {"desperate": weight}, "reward": {"calm": weight / 2},
                    "facets": ["stories"] if key == "story_only" else ["stories", "transcripts"]},
    }  # fmt: skip


def make_summary(**arms: tuple[float, float, float]) -> Summary:
    by_family = {f: 0.49 + (0.03 if i % 2 else -0.03) for i, f in enumerate(FAMILIES)}
    return {
        "seconds": 151.2,
        "model": "emoreg/tiny/model",
        "seed": 0,
        "steps": 60,
        "model_organism": "The model is a tiny one of a generated world; "
        "what it shows says nothing of a large model.",
        "families": FAMILIES,
        "emotions": {e: {"valence": v, "arousal": a} for e, (v, a) in PLACES.items()},
        "base": {
            "task_loss": 1.92,
            "gamed": {"in_domain": 0.49, "out_of_domain": 0.49, "by_family": by_family},
        },
        **{key: make_arm(key, *numbers) for key, numbers in arms.items()},
    }


def evaded() -> Summary:
    """Without control desperation spreads, the story direction is evaded, two facets hold."""
    return make_summary(
        baseline=(1.7, 1.5, 0.71), story_only=(1.4, -0.5, 0.69), emoreg=(-0.1, -0.4, 0.5)
    )


def null() -> Summary:
    """Nothing moved anywhere."""
    return make_summary(
        baseline=(0.05, 0.02, 0.5), story_only=(-0.04, 0.0, 0.49), emoreg=(0.02, -0.03, 0.48)
    )


class Page(HTMLParser):
    """Tags balanced, ids, references and text of a page."""

    VOID = frozenset({"meta", "br", "hr", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert len(attrs) == len(dict(attrs)), f"an attribute of <{tag}> is given twice"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())


def words(summary: Summary, folder: Path) -> str:
    """What a reader of the report reads."""
    return Page(write_report(summary, folder / "report.html").read_text(encoding="utf-8")).text


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report(evaded(), tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text(encoding="utf-8")


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
        (FLAT, FLAT, DOWN, "nothing to hold"),
        (GONE, DOWN, UP, "not measured"),
        (UP, GONE, UP, "not measured"),
    ],
)
def test_a_verdict_follows_from_intervals_alone(held, own, free, label):
    assert verdict(held, own, free) == label


def test_shares_are_told_apart_only_where_intervals_do_not_meet():
    assert compare(UP, FLAT) == "above"
    assert compare(FLAT, UP) == "below"
    assert compare(FLAT, FLAT) == "not told apart from"
    assert compare(FLAT, GONE) == "not comparable with"


def test_evasion_is_reported_where_it_happened(html):
    text = Page(html).text
    assert "Evaded On held-out directions desperate rose; on the penalised ones it fell." in text
    assert "Held On held-out directions desperate shows no drift;" in text
    assert "is above base and not told apart from the run without control." in text
    assert "is not told apart from base and below the run without control." in text
    assert "Nothing to hold" not in text


def test_a_null_run_claims_nothing(tmp_path):
    text = words(null(), tmp_path)
    assert "No drift shown On held-out directions desperate shows no drift." in text
    assert text.count("Nothing to hold On held-out") == 2
    assert "Of 36 held-out intervals, 0 exclude 0; about 2 would if nothing had moved." in text
    for claim in ("Evaded", "Held On", "is above base", "is below base", "Rose desperate"):
        assert claim not in text


def test_every_number_of_the_cards_comes_from_the_summary(tmp_path):
    summary = evaded()
    summary["emoreg"]["drift"]["desperate"] = {"mean": 0.71, "low": 0.52, "high": 0.93}
    summary["emoreg"]["success"] = 0.8123
    text = words(summary, tmp_path)
    assert "+0.71 σ [+0.52, +0.93]" in text
    assert "Partly held" in text
    assert "0.81" in text


def test_readings_that_hold_beside_behaviour_that_does_not_are_both_said(tmp_path):
    summary = evaded()
    summary["emoreg"]["gamed"].update(out_of_domain=0.7, out_of_domain_interval=[0.65, 0.75])
    assert "The readings held; the behaviour did not." in words(summary, tmp_path)
    assert "The readings held; the behaviour did not." not in words(evaded(), tmp_path)


def test_an_interval_of_base_is_used_where_it_is_given(tmp_path):
    summary = evaded()
    assert "counts as exact" in words(summary, tmp_path)
    summary["base"]["gamed"]["out_of_domain_interval"] = [0.3, 0.68]
    text = words(summary, tmp_path)
    assert "is not told apart from base and not told apart from the run" in text
    assert "counts as exact" not in text


@pytest.mark.parametrize(
    "path",
    ["seed", "emotions", "base.gamed.by_family.route", "story_only", "baseline.weights.penalize",
     "emoreg.drift.desperate.low", "emoreg.gamed.out_of_domain_interval", "emoreg.reading.calm.base"],
)  # fmt: skip
def test_an_error_names_the_missing_key_and_the_way_out(path, tmp_path):
    summary = evaded()
    *parents, last = path.split(".")
    del reduce(getitem, parents, summary)[last]
    with pytest.raises(ReportError, match=re.escape(f"{path} is missing")) as caught:
        write_report(summary, tmp_path / "report.html")
    assert "make demo" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_all_problems_are_reported_together(tmp_path):
    summary = evaded()
    del summary["emoreg"]["title"]
    summary["baseline"]["task_loss"] = "low"
    summary["families"]["code"] = "trained"
    summary["story_only"]["gamed"]["by_family"] = None
    with pytest.raises(ReportError) as caught:
        write_report(summary, tmp_path / "report.html")
    for problem in (
        "emoreg.title is missing",
        "baseline.task_loss is 'low', not a number",
        "families.code is 'trained', not one of train, read, test",
        "story_only.gamed.by_family is None, not a mapping",
    ):
        assert problem in str(caught.value)


def test_a_run_without_any_control_cannot_be_judged(tmp_path):
    summary = evaded()
    for key in reporting.ARMS:
        summary[key]["weights"]["penalize"] = {}
    with pytest.raises(ReportError, match=r"weights\.penalize"):
        write_report(summary, tmp_path / "report.html")


def test_the_page_fetches_nothing_and_runs_nothing(html):
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert not {"script", "link", "img", "iframe", "object", "metadata"} & set(page.tags)
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not [name for _, name, _ in page.attributes if name in ("src", "srcset", "xlink:href")]
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_resolves(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    used = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert set(used) <= set(page.ids)
    assert len(used) > 20  # control: there is something to resolve


def test_charts_have_a_text_alternative_and_tables_a_caption(html):
    page = Page(html)
    labels = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert page.tags.count("svg") == len(labels) == 9
    assert all(labels)
    assert page.tags.count("table") == page.tags.count("caption") == 4


def test_charts_take_their_colours_from_the_page(html):
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    assert set(re.findall(r"var\((--[\w-]+)\)", drawn)) <= set(re.findall(r"(--[\w-]+):", html))


@pytest.mark.parametrize("value", [math.nan, None])
def test_what_was_not_measured_is_a_dash_and_never_a_claim(value, tmp_path):
    summary = evaded()
    summary["emoreg"]["drift"]["desperate"] = dict.fromkeys(("mean", "low", "high"), value)
    summary["story_only"]["gamed"]["by_family"]["essay"] = value
    summary["baseline"]["history"][3]["loss"] = value
    text = words(summary, tmp_path)
    assert "Not measured On held-out directions desperate was not measured;" in text
    assert "nan" not in text.lower()
    assert "None" not in text


@pytest.mark.parametrize("history", [None, [], [{"step": 1}], [{"step": 1, "loss": math.nan}]])
def test_a_missing_history_is_said(history, tmp_path):
    summary = evaded()
    for key in reporting.ARMS:
        summary[key]["history"] = history
    assert "No training history was recorded." in words(summary, tmp_path)
    del summary["emoreg"]["history"]
    summary["baseline"]["history"] = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    assert "No training history was recorded." not in words(summary, tmp_path)


def test_names_are_text_and_never_markup(tmp_path):
    summary = json.loads(json.dumps(evaded()).replace("angry", "<i>an&gry</i>"))
    summary["emoreg"]["title"] = "<script>alert('$x_1$')</script>"
    path = write_report(summary, tmp_path / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert "<script>alert('$x_1$')</script>" in page.text
    assert "<i>an&gry</i>" in page.text


def test_the_same_summary_gives_the_same_bytes_in_place_of_the_old_file(tmp_path, html):
    path = tmp_path / "deep" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    assert write_report(evaded(), path) == path
    assert path.read_text(encoding="utf-8") == html
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ReportError):
        write_report({}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_small_drifts_are_drawn_small():
    small = {"emoreg": {"calm": Interval(0.1, 0.0, 0.2)}}
    assert charts.disc_unit(small) == 1.0
    assert charts.disc_unit({"emoreg": {"calm": Interval(-2.5, -3, -2)}}) == 2.5


def test_the_report_needs_neither_pyplot_nor_torch():
    code = (
        "import sys, emoreg.reporting as r; r.charts.training_curves({}, {}, True) if 0 else None;"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
