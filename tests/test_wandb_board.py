"""What wandb is told of a journal's events, read back from the files of an offline run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save_file
from trainers import make_vectors
from wandb_files import Stored, board_of, measure, opened

import runs
from emoreg.journal import Run
from emoreg.series import BASE
from emoreg.vectors import EmotionVectors

pytest.importorskip("wandb")

HOSTILE = '<img src=x onerror="alert(1)"> & <b>bold'
MEANS = {**runs.TWELVE, HOSTILE: 0.4}
TOKENS = ["Help", " <script>alert(1)</script>", "\n", " &amp;", " now"]
CHARTS = {"emoreg/emotion_steps", "emoreg/block_steps", "emoreg/wheel"}
DRIFT = {"emoreg/drift_table", "emoreg/drift_plot", *CHARTS}
TEXTS = {"emoreg/texts", "emoreg/texts_table"}

STORED = {"base/colon": np.ones((2, 3), np.float32), "base/texts": np.ones(4, np.int64)}


def saved_vectors(folder: Path) -> EmotionVectors:
    return EmotionVectors.load(make_vectors().save(folder))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Stored]:
    """A run and what wandb has of it."""
    folder = tmp_path_factory.mktemp("board")
    with opened(folder) as (run, stored):
        journal, board = board_of(run, folder)
        runs.begin(journal, "mine", 60)
        board.use(saved_vectors(folder / "vectors"))
        board.use(saved_vectors(folder / "vectors"))
        save_file(STORED, folder / BASE)
        runs.control(journal, list(MEANS), 0.1)
        runs.control(journal, ["calm"], 0.2, name="calmer")
        runs.baseline(journal, list(MEANS))
        measure(journal, MEANS, (0, 30, 60))
        row = runs.text_row("desperate", "highest", 1.0, TOKENS) | {"prompt": HOSTILE}
        journal.add("texts", 30, rows=[row, runs.text_row("calm", "lowest", -1.0)])
        journal.add("alert", 40, name="emoreg/reading/desperate", value=2.5, threshold=2.0,
                    above=True, action="stop", text=row, message="It rose.")  # fmt: skip
        journal.add("end", 60, seconds=1.0, loss=0.5)
        (folder / "report.html").write_text("the report")
        board.finish(folder / "report.html")
    return journal.run, stored


def test_everything_that_is_told_arrives_at_its_step_and_nothing_else_does(
    told: tuple[Run, Stored],
) -> None:
    found = [
        (row["train/global_step"], {k.removesuffix("/path") for k in row if k.endswith("/path")})
        for row in told[1].history
    ]
    assert found == [(0, DRIFT), (30, DRIFT), (60, DRIFT), (30, TEXTS)]


def test_the_table_grows_with_every_measurement(told: tuple[Run, Stored]) -> None:
    run, stored = told
    tables = [json.loads(stored.file(r, "emoreg/drift_table")) for r in stored.rows("emoreg/wheel")]
    assert [len(t["data"]) for t in tables] == [2 * len(MEANS) * n for n in (1, 2, 3)]
    last = tables[-1]
    assert last["columns"] == ["step", "place", "emotion", "drift", "low", "high", "q"]
    found = {(step, place, emotion): rest for step, place, emotion, *rest in last["data"]}
    assert [row[0] for row in last["data"]] == sorted((r[0] for r in last["data"]), reverse=True)
    for event in run.drifts:
        for place, at in event["places"].items():
            for emotion, row in at["emotions"].items():
                wanted = [row[k] for k in ("drift", "low", "high", "q")]
                assert found[event["step"], place, emotion] == pytest.approx(wanted)


def chart(stored: Stored, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = json.loads(stored.file(stored.rows(key)[-1], key))
    (trace,) = found["data"]
    return trace, found["layout"]


def test_the_map_of_emotions_over_steps_has_every_drift_in_its_cell(
    told: tuple[Run, Stored],
) -> None:
    trace, _ = chart(told[1], "emoreg/emotion_steps")
    assert trace["type"] == "heatmap"
    assert trace["x"] == ["0", "30", "60"]
    names = [label.split(",")[0] for label in trace["y"]]
    assert {"desperate, penalised", "calm, rewarded"} <= set(trace["y"])  # the control says so
    plain = names.index("ashamed")
    wanted = [e["places"]["colon"]["emotions"]["ashamed"]["drift"] for e in told[0].drifts]
    assert trace["z"][plain] == pytest.approx(wanted)
    assert trace["zmin"] == -trace["zmax"]
    assert names[0] == "ashamed"  # the largest mover is on top
    assert re.fullmatch(r"−2\.16 σ \[−\d\.\d\d,\s−\d\.\d\d\]", trace["customdata"][plain][-1])


def test_the_map_of_blocks_over_steps_has_mean_sizes(told: tuple[Run, Stored]) -> None:
    trace, _ = chart(told[1], "emoreg/block_steps")
    assert trace["y"] == ["block 4", "block 3", "block 2"]
    blocks = told[0].drifts[-1]["places"]["colon"]["blocks"]
    wanted = [sum(map(abs, blocks[b].values())) / len(MEANS) for b in "432"]
    assert [row[-1] for row in trace["z"]] == pytest.approx(wanted)


def test_the_wheel_has_every_rated_emotion_in_its_place_with_its_drift(
    told: tuple[Run, Stored],
) -> None:
    run, stored = told
    trace, layout = chart(stored, "emoreg/wheel")
    names = [re.match(r"<b>(\w+)</b>", words)[1] for words in trace["hovertext"]]
    places = run.baseline["emotions"]
    assert set(names) == set(runs.TWELVE)  # the hostile one is not rated
    assert trace["x"] == [places[e]["valence"] for e in names]
    assert trace["y"] == [places[e]["arousal"] for e in names]
    drifts = run.drifts[-1]["places"]["colon"]["emotions"]
    assert trace["marker"]["color"] == pytest.approx([drifts[e]["drift"] for e in names])
    sizes = dict(zip(names, trace["marker"]["size"], strict=True))
    assert sizes["ashamed"] > sizes["sad"] > sizes["bored"]
    symbols = dict(zip(names, trace["marker"]["symbol"], strict=True))
    assert (symbols["afraid"], symbols["ashamed"]) == ("triangle-up", "triangle-down")
    assert symbols["hopeful"] == "circle"
    assert "valence" in layout["xaxis"]["title"]["text"]
    assert layout["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_no_text_of_the_data_is_markup_in_a_chart(told: tuple[Run, Stored]) -> None:
    for key in CHARTS:
        text = json.dumps(chart(told[1], key))
        assert "<img" not in text
    assert "&lt;img" in json.dumps(chart(told[1], "emoreg/emotion_steps")[0]["y"])  # control


def test_the_still_picture_is_one(told: tuple[Run, Stored]) -> None:
    row = told[1].rows("emoreg/drift_plot")[-1]
    picture = Image.open(BytesIO(told[1].file(row, "emoreg/drift_plot")))
    assert picture.format == "PNG"
    assert picture.size == (row["emoreg/drift_plot/width"], row["emoreg/drift_plot/height"])
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert row["emoreg/drift_plot/caption"] == "drift from base, step 60"


class Page(HTMLParser):
    """The tags of a page, and its tokens with their titles and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tokens: list[tuple[str, dict[str, str | None]]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "span":
            self._open = dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.tokens.append((data, self._open))


def test_texts_have_every_token_shaded_by_its_reading_and_nothing_active(
    told: tuple[Run, Stored],
) -> None:
    (row,) = told[1].rows("emoreg/texts")
    text = told[1].file(row, "emoreg/texts").decode()
    page = Page(text)
    assert page.tags <= {"meta", "body", "p", "h3", "span"}
    assert not re.search(r"https?:|url\(|@import", text)
    (first, _second) = told[0].texts[0]["rows"]
    tokens = page.tokens[: len(TOKENS)]
    assert "".join(said for said, _ in tokens) == "".join(TOKENS).replace("\n", "⏎\n")
    for (_, given), reading in zip(tokens, first["readings"], strict=True):
        shown = float(given["title"].removesuffix(" σ").replace("−", "-"))
        assert shown == pytest.approx(reading, abs=0.006)
    assert len({given.get("style") for _, given in tokens}) > 2
    assert "light-dark(" in text
    assert HOSTILE not in text
    assert "&lt;img" in text


def test_texts_are_a_table_too(told: tuple[Run, Stored]) -> None:
    (row,) = told[1].rows("emoreg/texts_table")
    found = json.loads(told[1].file(row, "emoreg/texts_table"))
    assert found["columns"] == ["step", "emotion", "end", "reading", "side", "prompt", "completion"]
    (first, second) = found["data"]
    assert (first[0], first[1], first[2], first[4]) == (30, "desperate", "highest", None)
    assert first[5:] == [HOSTILE, "".join(TOKENS)]  # a table shows text as text
    assert second[1:3] == ["calm", "lowest"]


def test_the_config_has_every_knob_the_card_and_the_bank(told: tuple[Run, Stored]) -> None:
    run, stored = told
    found = stored.config["emoreg"]
    assert found["control"]["config"] == run.controls[""]["config"]
    assert found["calmer"]["watched"]["penalize"] == {"desperate": 0.2}
    assert found["control"]["vectors"]["bank"] == runs.VECTORS["bank"]
    assert found["control"]["vectors"]["gates"] == runs.GATES
    drift = {"on_policy": True, "drift_steps": 10, "prompts": run.baseline["prompts"]}
    assert drift.items() <= found["drift"].items()
    assert found["versions"] == run.header["versions"]


def test_the_vectors_are_an_input_and_what_the_run_made_are_outputs(
    told: tuple[Run, Stored],
) -> None:
    stored = told[1]
    own = [a for a in stored.kind("artifact") if a.type != "run_table"]
    assert [(a.type, a.use_after_commit) for a in own] == [
        ("emotion-vectors", True), ("base-readings", False), ("emoreg-report", False),
    ]  # fmt: skip
    files = stored.contents("emotion-vectors")
    assert set(files) == {"vectors.safetensors", "card.json", "README.md"}
    card = json.loads(files["card.json"])
    assert json.loads(own[0].metadata)["model"] == card["model"]
    (base,) = stored.contents("base-readings").values()
    assert set(load(base)) == {"base/colon"}  # and not what the base answered
    report = stored.contents("emoreg-report")
    assert report["report.html"] == b"the report"
    assert b'"event": "end"' in report["emoreg.jsonl"]


def test_the_same_vectors_are_the_same_artifact_in_every_run(
    tmp_path: Path, told: tuple[Run, Stored]
) -> None:
    with opened(tmp_path) as (run, stored):
        _, board = board_of(run, tmp_path)
        board.use(saved_vectors(tmp_path / "vectors"))
    (first, second) = (s.artifact("emotion-vectors") for s in (told[1], stored))
    assert (first.name, first.digest) == (second.name, second.digest)


def test_an_alert_is_one_with_the_text_that_set_it_off(told: tuple[Run, Stored]) -> None:
    (alert,) = told[1].kind("alert")
    assert alert.title == "emoreg/reading/desperate above 2"
    assert alert.level == "ERROR"  # it stops the run
    assert alert.text.startswith("It rose.\n\nThe text that set it off: <img")
    assert "Help <script>" in alert.text


def test_a_healthy_run_warns_of_nothing(told: tuple[Run, Stored]) -> None:
    assert told[0].notes == []
