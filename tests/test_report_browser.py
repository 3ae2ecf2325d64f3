"""The page in a real browser: drawn, sorted, filtered, walked by key, at any width and theme."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from test_report_page import hostile_run

import runs
from emoreg.reporting import write_runs

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (390, 820, 1440)
PAGES = ("one", "two", "many", "hostile")
CHARTS = 6


def chromium() -> str | None:
    """The browser that EMOREG_CHROMIUM names, or one on the path."""
    return os.environ.get("EMOREG_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module", name="browser")
def _browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium here: set EMOREG_CHROMIUM, or install one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", name="pages")
def _pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    free = runs.write_run(folder / "a", "no-control")
    held = runs.write_run(folder / "b", "with-control", runs.HELD, 1.0)
    many = runs.write_run(folder / "m", "many", runs.many(), 1.0, 11)
    attack = hostile_run(folder / "h", "<script>pwned = 1</script>")
    sets = {"one": [free], "two": [held, free], "many": [many], "hostile": [attack, free]}
    return {name: write_runs(found, folder / f"{name}.html") for name, found in sets.items()}


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1440, **options: Any) -> Iterator[Page]:
    """The page, with whatever it says or asks for collected; both must stay empty."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert said == []
    assert asked == [path.as_uri()]
    context.close()


DRAWN = """() => [...document.querySelectorAll('figure')].map(figure => {
  const svg = [...figure.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0);
  const box = svg[0].getBoundingClientRect();
  const outside = [...svg[0].querySelectorAll('text')].filter(t => {
    const b = t.getBoundingClientRect();
    return b.left < box.left - 6 || b.right > box.right + 6 || b.bottom > box.bottom + 6;
  });
  return {charts: svg.length, width: box.width, height: box.height,
          shapes: svg[0].querySelectorAll('path, use').length,
          outside: outside.map(t => t.textContent)};
})"""


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_page(name, browser, pages):
    with opened(browser, pages[name]) as page:
        for width, theme in product(WIDTHS, ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            charts = page.evaluate(DRAWN)
            assert len(charts) == CHARTS
            for chart in charts:
                assert chart["charts"] == 1
                assert min(chart["width"], chart["height"]) > 80
                assert chart["shapes"] > 5
                assert chart["outside"] == []
        assert page.evaluate("typeof pwned") == "undefined"


WHEEL = """() => {
  const svg = [...document.querySelectorAll('figure')].at(-1).querySelectorAll('svg');
  const shown = [...svg].find(s => s.getBoundingClientRect().width > 0);
  const box = e => { const b = e.getBoundingClientRect();
    return [b.left, b.top, b.right, b.bottom]; };
  const marks = [...shown.querySelectorAll('use')].map(box);
  const key = [...shown.querySelectorAll('text')].map(t => [t.textContent, ...box(t)]);
  return [marks, key];
}"""


@pytest.mark.parametrize(("name", "number"), [("one", 12), ("many", 40)])
def test_no_name_on_the_wheel_lies_on_another_or_on_a_mark(name, number, browser, pages):
    with opened(browser, pages[name]) as page:
        emotions = page.locator("#emotions tbody th bdi").all_inner_texts()[:number]
        for width in (390, 1200):
            page.set_viewport_size({"width": width, "height": 900})
            marks, texts = page.evaluate(WHEEL)
            assert len(marks) == number
            boxes = [box for _, *box in texts]
            assert not [1 for a, b in combinations(boxes, 2) if overlap(a, b) > 1]
            assert not [1 for a, b in product(marks, boxes) if overlap(a, b) > 1]
            named = [said.split()[-1] for said, *_ in texts]
            assert all(named.count(emotion.split()[-1]) >= 1 for emotion in emotions)


def overlap(a: list[float], b: list[float]) -> float:
    """The shorter side of what two boxes share, in pixels; at most 0 for none."""
    return min(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))


def test_on_a_phone_the_answers_and_the_outcomes_of_gates_are_in_sight(browser, pages):
    with opened(browser, pages["one"], 390) as page:
        cue = page.locator(".cue").first
        assert cue.is_visible()
        ends = [page.locator(f"#emotions thead th >> nth={i}").bounding_box() for i in (1, 2)]
        assert all(box["x"] + box["width"] <= 390 - 17 for box in ends)
        assert column(page, 3)[0][0] in "▲▼○"
        page.locator(".scroll").first.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
        page.wait_for_function("document.querySelector('.cue').hidden")
        outcome = page.locator("table.gates td").first.bounding_box()
        assert outcome["x"] + outcome["width"] <= 390 - 17
        rows = page.locator("table.gates tbody tr").evaluate_all("r => r.map(e => e.offsetHeight)")
        assert max(rows) < 70
        legend = page.locator(".legend .strip")
        assert legend.bounding_box()["height"] < 30
    with opened(browser, pages["one"], 1440) as page:
        assert page.locator(".cue:visible").count() == 0  # control: there all columns are in sight


def column(page: Page, at: int) -> list[str]:
    """The texts of a column of the drift table, as they are shown."""
    return page.locator(f"#emotions tbody tr:visible > :nth-child({at})").all_inner_texts()


def number(text: str) -> float:
    return float(text.split("[")[0].strip(" ▲▼○\u00a0").replace("−", "-"))


def test_the_table_is_sorted_by_mouse_and_by_key(browser, pages):
    with opened(browser, pages["two"]) as page:
        head = page.locator("#emotions thead th").nth(1)
        before = [number(x) for x in column(page, 2)]
        assert head.get_attribute("aria-sort") == "none"
        head.get_by_role("button").click()
        found = [number(x) for x in column(page, 2)]
        assert found == sorted(before, reverse=True) != before
        assert head.get_attribute("aria-sort") == "descending"
        head.get_by_role("button").press("Enter")
        assert [number(x) for x in column(page, 2)] == sorted(before)
        assert head.get_attribute("aria-sort") == "ascending"
        page.locator("#emotions thead th").first.get_by_role("button").press("Space")
        names = [name.split("\n")[0] for name in column(page, 1)]
        assert names == sorted(names)
        assert head.get_attribute("aria-sort") == "none"
        for at in range(page.locator("#emotions thead th").count()):
            page.locator("#emotions thead th").nth(at).get_by_role("button").click()
            assert sorted(name.split("\n")[0] for name in column(page, 1)) == names


def test_the_table_is_filtered_by_text_and_to_what_moved(browser, pages):
    with opened(browser, pages["many"], 390) as page:
        count = page.locator("form.filter output")
        assert count.inner_text() == "171 of 171 emotions"
        page.get_by_label("moved only").focus()
        page.keyboard.press("Space")
        moved = column(page, 2)
        assert 0 < len(moved) < 171
        assert {text[0] for text in moved} == {"▲", "▼"}
        page.get_by_label("Emotion", exact=True).fill("AFRA")
        assert [x.split("\n")[0] for x in column(page, 1)] == ["afraid"]
        assert count.inner_text() == "1 of 171 emotions"
        page.get_by_label("Emotion", exact=True).fill("no such emotion")
        assert column(page, 1) == []


def test_keys_reach_the_verdict_the_table_and_the_value_of_each_token(browser, pages):
    with opened(browser, pages["one"]) as page:
        page.keyboard.press("Tab")
        skip = page.locator("a.skip")
        assert skip.bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "verdict"
        text = page.locator(".text").first
        text.locator(".tokens").focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        tokens = text.locator(".tokens span")
        said = text.locator("output")
        assert said.inner_text() == f"“ have” {tokens.nth(1).get_attribute('title')}"
        tokens.nth(4).click()
        assert tokens.nth(4).get_attribute("title") in said.inner_text()
        page.locator("#settings ~ details summary").press("Enter")
        assert "gradient_accumulation_steps" in page.locator("#settings ~ details").inner_text()


CONTRAST = """() => {
  const lum = c => { const [r, g, b] = c.map(x => { x /= 255;
    return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = [];
  let seen = 0;
  for (let n; n = walker.nextNode();) {
    const e = n.parentElement, box = e.getBoundingClientRect();
    if (!n.data.trim() || !box.width || e.closest('script, svg path')) continue;
    const style = getComputedStyle(e);
    const ink = parts(e.closest('svg') ? style.fill : style.color), on = ground(e);
    const [a, b] = [lum(ink.slice(0, 3)), lum(on.slice(0, 3))].sort((x, y) => x - y);
    seen += 1;
    if ((b + 0.05) / (a + 0.05) < 4.5) low.push(n.data.trim().slice(0, 40) + style.color + on);
  }
  return [seen, low];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["two", "hostile"])
def test_every_text_stands_out_from_its_ground(name, theme, browser, pages):
    with opened(browser, pages[name], color_scheme=theme) as page:
        seen, low = page.evaluate(CONTRAST)
        assert seen > 600
        assert low == []
        page.evaluate("document.documentElement.style.setProperty('--muted', '#8f9499')")
        assert page.evaluate(CONTRAST)[1] or theme == "dark"  # control: it is measured


def test_without_scripts_the_page_is_whole_and_offers_no_dead_buttons(browser, pages):
    with opened(browser, pages["many"], 390, java_script_enabled=False) as page:
        assert page.locator("#emotions tbody tr:visible").count() == 171
        assert page.locator("form.filter").is_hidden()
        assert page.locator("button").count() == 0
        assert page.locator("figure svg:visible").count() == CHARTS
        page.locator("#settings ~ details summary").click()
        assert page.get_by_text("gradient_accumulation_steps").is_visible()


def test_on_paper_all_is_open_light_and_inside_the_margins(browser, pages):
    with opened(browser, pages["two"], 720, color_scheme="dark") as page:
        assert "learning_rate" not in page.locator("main").inner_text()
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert "learning_rate" in page.locator("main").inner_text()
        assert page.locator("nav").is_hidden()
        assert page.locator("form.filter").is_hidden()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 720
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
        assert page.pdf(format="A4").startswith(b"%PDF")
