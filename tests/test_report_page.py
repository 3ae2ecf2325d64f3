"""The page is one whole file: fetches nothing, can be walked by ear and key, escapes everything."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from html_page import Page
from markdown_it import MarkdownIt

import runs
from emoreg.journal import Run
from emoreg.reporting import markdown, write_runs


@pytest.fixture(scope="module", name="pair")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    free = runs.write_run(folder / "free", "no-control")
    return [free, runs.write_run(folder / "held", "with-control", runs.HELD, 1.0)]


@pytest.fixture(scope="module", name="html")
def _html(pair: list[Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_runs(pair, tmp_path_factory.mktemp("page") / "r.html").read_text("utf-8")


ODD = {
    "only logs": lambda r: r.drifts.clear() or r.texts.clear() or r.baseline.clear(),
    "no regularizer": lambda r: r.controls.clear(),
    "nothing but a start": lambda r: [
        x.clear() for x in (r.drifts, r.texts, r.baseline, r.controls, r.logs, r.alerts, r.end)
    ],
    "no statistics": lambda r: [d.update(stats=None) for d in r.drifts],
    "nulls": lambda r: [
        d["places"]["colon"].update(
            emotions=dict.fromkeys(d["places"]["colon"]["emotions"]), blocks=None, kinds={}
        )
        for d in r.drifts
    ],
    "colon only, no blocks": lambda r: [
        d.update(places={"colon": {"emotions": d["places"]["colon"]["emotions"]}}) for d in r.drifts
    ],
    "no ratings": lambda r: r.baseline.update(emotions={}),
    "vectors without gates": lambda r: r.baseline.update(vectors={"name": "x", "gates": None}),
    "empty texts": lambda r: [t.update(rows=[{"emotion": None, "tokens": []}]) for t in r.texts],
    "one measurement": lambda r: r.drifts.__delitem__(slice(0, -1)),
}


@pytest.mark.parametrize("case", ODD)
def test_a_run_that_lacks_something_still_gets_a_whole_page(case, tmp_path):
    few = {"desperate": 0.5, "calm": -0.3}
    run = runs.write_run(tmp_path / "odd", means=few, measurements=3)
    ODD[case](run)
    page = Page(write_runs([run], tmp_path / "r.html").read_text("utf-8"))
    assert not re.search(r"\b(nan|None|inf)\b(?!:)", page.text)
    assert page.tags.count("h1") == 1
    assert markdown([run]).startswith("## Emotion drift")


def test_one_emotion_is_enough(tmp_path):
    run = runs.write_run(tmp_path / "one", means={"calm": 0.4}, measurements=2)
    assert "Drifted: 1 of 1 emotions moved" in write_runs([run], tmp_path / "r.html").read_text()


def test_the_largest_report_stays_small_and_says_what_it_leaves_out(tmp_path):
    three = [
        runs.write_run(tmp_path / name, name, runs.many(), weight, 11)
        for name, weight in (("a", 0.0), ("b", 1.0), ("c", 1.0))
    ]
    path = write_runs(three, tmp_path / "r.html")
    assert path.stat().st_size < 3e6
    page = Page(path.read_text("utf-8"))
    assert "Only the 40 emotions that moved most; table 1 has all 171." in page.text
    rows = path.read_text("utf-8").split("<tbody>")[1].split("</tbody>")[0].count("<tr")
    assert rows == 171


def test_notes_stand_only_where_they_apply(pair, html, tmp_path):
    notes = ("points is drawn as means of neighbours", "emotions that moved most", "by the ratings")
    assert [note in html for note in notes] == [False, False, True]
    long = Run(tmp_path, header=pair[0].header, logs=[(i, {"loss": 1.0}) for i in range(301)])
    assert "A curve of more than 300 points" in write_runs([long], tmp_path / "r.html").read_text()


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own(html):
    page, ids = Page(html), Page(html).values("id")
    assert not re.search(r"https?://|@import|xlink|\bsrc=", html)
    assert page.tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "metadata", "base"} & set(page.tags)
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html
    assert {value[0] for value in page.values("href")} == {"#"}
    used = re.findall(r'(?:href="#|url\(#|aria-labelledby="|data-table=")([^")]+)', html)
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)
    assert len(used) > 20  # control: there is something to resolve


def test_the_page_can_be_walked_by_ear_and_by_key(html):
    page = Page(html)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert {"nav", "main", "footer"} <= set(page.tags)
    assert page.tags.count("table") == page.tags.count("caption") > 3
    assert page.tags.count("th") == len(page.values("scope"))
    assert page.tags.count("svg") == len(
        [1 for _, n, v in page.attributes if (n, v) == ("role", "img")]
    )
    labels = [v for tag, n, v in page.attributes if (tag, n) == ("svg", "aria-label")]
    assert len(labels) == page.tags.count("svg")
    assert all(len(str(label)) > 20 for label in labels)
    assert html.index('class="skip"') < html.index("<nav")
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    assert set(re.findall(r"var\((--[\w-]+)\)", drawn)) <= set(re.findall(r"(--[\w-]+):", html))


def test_the_same_runs_give_the_same_bytes_in_place_of_the_old_file(pair, html, tmp_path):
    path = tmp_path / "deep" / "r.html"
    path.parent.mkdir()
    path.write_text("old")
    assert write_runs(pair, path).read_text("utf-8") == html
    assert list(path.parent.iterdir()) == [path]


HOSTILE = (
    "<script>pwned = 1</script>",
    '</script><img src=x onerror="pwned = 1">',
    "\"'><svg onload=pwned=1>",
    "javascript:pwned=1",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b[0m \x00 \x07 \x7f \x85",
    "\u202egnp.exe\u2066 שלום",
    "a|b`c`*d*_e_[f](https://example.org)~g~#h",
    "$x_1$ \\frac{a}{b}",
    "line\nbreak\r\nand\ttab \u2028",
    "long " + "x" * 10_000,
)


def hostile_run(folder: Path, name: str) -> Run:
    """Hostile strings wherever a string may stand."""
    means = {**dict.fromkeys(HOSTILE, 0.4), "calm": -0.3}
    run = runs.write_run(folder, "plain", means, 1.0, 3)
    text = runs.text_row(HOSTILE[0], HOSTILE[1], 1.0, list(HOSTILE))
    text |= {"prompt": " ".join(HOSTILE), "side": HOSTILE[3]}
    run.header |= {"name": name, "trainer": HOSTILE[2], "args": {HOSTILE[0]: HOSTILE[7]}}
    run.controls = {HOSTILE[5]: run.controls[""] | {"config": {HOSTILE[1]: [HOSTILE[6]]}}}
    gate = {"name": HOSTILE[0], "note": HOSTILE[7], "control": {HOSTILE[2]: 0.1}, "passed": False}
    vectors = {"name": HOSTILE[1], "verdict": HOSTILE[0], "reason": HOSTILE[7], "gates": [gate]}
    run.baseline["vectors"] = run.baseline["vectors"] | vectors
    run.texts = [{"step": 60, "rows": [text]}]
    run.alerts = [{"step": 9, "name": HOSTILE[0], "message": " ".join(HOSTILE), "text": text}]
    run.notes = [{"step": 9, "text": HOSTILE[1] + "half a character \ud800"}]
    return run


@pytest.fixture(scope="module", name="attacked")
def _attacked(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("hostile")
    return [hostile_run(folder / str(i), name) for i, name in enumerate(HOSTILE[:3])]


def test_hostile_strings_are_shown_and_never_obeyed(attacked, html, tmp_path):
    text = write_runs(attacked, tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert set(page.tags) <= set(Page(html).tags) | {"h4"}
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {str(value)[0] for value in page.values("href")} == {"#"}
    assert not page.values("src")
    for shown in (*HOSTILE[:5], "␛[31mred␛[0m ␀ ␇ ␡ ⟨U+0085⟩", "⟨U+202E⟩gnp.exe⟨U+2066⟩ שלום"):
        assert page.text.count(shown) > 1
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066\u2067\ud800-\udfff]", text
    )
    assert "x" * 500 not in page.text


def test_hostile_strings_stay_inside_the_cells_of_a_markdown_table(attacked):
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(attacked))
    kinds = [t.type for t in tokens]
    inline = [child for t in tokens for child in t.children or ()]
    assert "html_block" not in kinds
    assert not {"html_inline", "link_open", "image", "code_inline", "s_open"} & {
        child.type for child in inline
    }
    lines = markdown(attacked).splitlines()
    tables = [list(rows) for is_row, rows in groupby(lines, lambda x: x.startswith("|")) if is_row]
    for table in tables:  # a parser drops cells beyond the head's, so they are counted by hand
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1
    assert len(tables) == kinds.count("table_open") > 5
    shown = "".join(child.content for child in inline)
    for text in ("<script>pwned = 1</script>", "a|b`c`*d*_e_[f](", "{{ 7 * 7 }} {% raw %}"):
        assert text in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", markdown(attacked))


def test_markdown_holds_the_same_words_and_numbers_as_the_page(pair, html):
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(pair))
    told = " ".join(c.content for t in tokens for c in t.children or () if c.content)
    text = Page(html).text
    for said in (
        "Drifted: 10 of 12 emotions moved",
        "of 12 emotions in both, no-control lies further from base in 2 (ashamed, excited)",
        "▲ +4.10 [+4.03, +4.17]",
        "The set fit was found usable with reservations: 2 of 4 gates failed.",
        "This is one training run (seed 0)",
        "neither asked nor answered here",
        "gradient_accumulation_steps",
        "against other unpleasant stories",
    ):
        assert said in told.replace("\u00a0", " ")
        assert said in text
    assert "<svg" not in markdown(pair)
