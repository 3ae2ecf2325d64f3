"""The report says what the intervals allow, of any run, in one file that fetches nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from html_page import Page

import runs
from emoreg import reporting
from emoreg.cli import main
from emoreg.errors import ReportError
from emoreg.journal import Journal, Run
from emoreg.reporting import markdown, write_runs
from emoreg.run_view import View
from emoreg.sentences import verdict


@pytest.fixture(scope="module", name="pair")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    free = runs.write_run(folder / "free", "no-control")
    return [free, runs.write_run(folder / "held", "with-control", runs.HELD, 1.0)]


def words(found: list[Run], folder: Path) -> str:
    """What a reader of the page reads, charts aside: they take most of the time."""
    with patch.object(reporting, "_figures", return_value={}):
        text = Page(write_runs(found, folder / "r.html").read_text("utf-8")).text
    return text.replace("\u00a0", " ")


def measured(folder: Path, rows: dict[str, Any], controlled: bool = True) -> Run:
    """A run with one measurement of these emotions, after training."""
    journal, emotions = Journal(folder), list(rows)
    runs.begin(journal, "mine", 60)
    if controlled:
        runs.control(journal, emotions, 0.0)
    runs.baseline(journal, emotions)
    places = {"colon": {"emotions": rows}}
    journal.add("drift", 60, final=True, prompts=128, places=places, stats={})
    journal.add("end", 60, seconds=1.0, loss=None)
    return journal.run


def row(drift: float | None, low: float | None, high: float | None, q: float | None) -> Any:
    return {"base": 0.1, "now": 0.2, "drift": drift, "low": low, "high": high, "p": q, "q": q}


UP, DOWN, FLAT = row(1.0, 0.8, 1.2, 0.001), row(-0.7, -0.9, -0.5, 0.01), row(0.1, -0.1, 0.3, 0.6)
GONE = row(None, None, None, None)


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        ({"calm": UP, "sad": DOWN, "bored": FLAT}, "Drifted: 2 of 3 emotions moved"),
        ({"calm": UP, "sad": GONE}, "Drifted: 1 of 1 emotions moved"),
        ({"calm": FLAT, "sad": FLAT}, "No drift shown: none of 2 emotions moved"),
        ({"calm": row(1.0, 0.8, 1.2, 0.06)}, "No drift shown: none of 1 emotions moved"),
        ({"calm": row(0.1, -0.01, 0.21, 0.01)}, "No drift shown: none of 1 emotions moved"),
        ({"calm": GONE}, "Not measured: no measurement of drift holds a number with an interval"),
        ({"calm": row(1.0, 0.8, 1.2, None)}, "Not measured: no measurement of drift holds"),
        ({}, "Not measured: no measurement of drift holds a number with an interval"),
    ],
)
def test_a_move_is_claimed_only_with_its_interval_off_zero_and_a_small_q(rows, head, tmp_path):
    found = measured(tmp_path, rows)
    assert verdict(View.of(found)).head.startswith(head)
    assert head in words([found], tmp_path)


def test_the_lists_of_movers_are_those_that_the_numbers_give(tmp_path):
    rng, rows = Random(0), {}
    for i in range(40):
        mean, half, q = rng.gauss(0, 1), abs(rng.gauss(0, 0.8)), rng.choice([0.01, 0.05, 0.2])
        rows[f"e{i:02}"] = row(mean, mean - half, mean + half, q)
    facts = dict(verdict(View.of(measured(tmp_path, rows))).facts)
    wanted = {"Rose at the colon": 1, "Fell at the colon": -1, "No drift shown": 0}
    for heading, side in wanted.items():
        names = [
            e for e, r in rows.items()
            if ((r["low"] > 0) - (r["high"] < 0)) * (r["q"] <= 0.05) == side
        ]  # fmt: skip
        names.sort(key=lambda e: -abs(rows[e]["drift"]))
        shown = ", ".join(names[:12])
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        assert facts[heading] == f"{len(names)}: {shown}{more}"
        assert len(names) > 3  # control: each side is there


def test_a_run_that_has_only_its_start_is_not_measured_yet(tmp_path):
    journal = Journal(tmp_path)
    runs.begin(journal, "young", 60)
    zero = row(0.0, 0.0, 0.0, 1.0)
    journal.add("drift", 0, prompts=4, places={"colon": {"emotions": {"calm": zero}}}, stats={})
    text = words([journal.run], tmp_path)
    assert "Not measured yet: only the start was read" in text
    assert "Unfinished: still running, or cut off after step 0." in text


def test_the_control_is_told_from_mere_measuring(pair, tmp_path):
    free, held = (words([run], tmp_path) for run in pair)
    assert "Off: every weight was 0, so emoreg only measured." in free
    assert "which part of it did that (data, learning rate, seed) is not shown" in free
    assert "On: the loss penalised desperate (weight 1) and rewarded calm (weight 0.5)" in held
    assert "Watched (named with a weight): desperate −1.13 σ [−1." in held
    assert "read on the same directions that the loss pushes on" in held
    assert "same directions that the loss pushes on" not in free
    bare = measured(tmp_path / "bare", {"calm": UP}, controlled=False)
    assert "no regularizer of emoreg was attached" in words([bare], tmp_path)


def test_directions_that_the_loss_does_not_see_are_not_called_its_own(tmp_path):
    journal = Journal(tmp_path)
    runs.begin(journal, "mine", 60)
    runs.control(journal, ["calm"], 1.0, vectors=runs.vectors("b"))
    runs.baseline(journal, ["calm"])
    journal.add("drift", 60, prompts=9, places={"colon": {"emotions": {"calm": UP}}}, stats={})
    text = words([journal.run], tmp_path)
    assert "read on other directions than those that the loss pushes on" in text
    assert "this report has none" not in text


def test_several_regularizers_are_each_named_and_keep_alone_is_a_control(tmp_path):
    journal = Journal(tmp_path)
    runs.begin(journal, "mine", 60)
    runs.control(journal, ["calm"], 1.0, name="first")
    keep = {"watched": {"penalize": {"calm": 0.0}}, "config": {"keep": 0.2}}
    runs.control(journal, ["calm"], 0.0, name="second", **keep)
    text = words([journal.run], tmp_path)
    assert "(weight 0.5) in control first" in text
    assert "kept the other emotions near the base (weight 0.2) in control second" in text


@pytest.mark.parametrize("which", [0, 1])
def test_no_page_says_that_a_control_held_or_was_evaded(which, pair, tmp_path):
    text = words([pair[which]], tmp_path) + markdown(pair)
    assert not re.search(r"\b(held|evaded|evades|holds up)\b", text.replace("held out", ""))


def test_a_run_that_was_cut_off_or_resumed_or_warned_says_so(pair, tmp_path):
    cut = runs.write_run(tmp_path / "cut", whole=False)
    assert "Unfinished: still running, or cut off after step 60." in words([cut], tmp_path)
    assert "Ended at step 60." in words([pair[0]], tmp_path)
    journal = Journal(tmp_path / "cut")
    journal.begin(30, name="again", args={"max_steps": 60})
    journal.add("note", 35, text="wandb went away")
    journal.add("end", 50, seconds=1, loss=None)
    text = words([journal.run], tmp_path)
    assert "Ended at step 50, before the 60 that were planned. Resumed at step 30." in text
    assert "step 35: wandb went away" in text


def test_who_drifted_more_is_said_only_where_intervals_are_apart(tmp_path):
    one = {"calm": UP, "sad": DOWN, "bored": FLAT, "angry": GONE}
    two = {"calm": row(-2.0, -2.2, -1.8, 0.0), "sad": row(0.8, 0.6, 1.0, 0.0), "bored": UP}
    found = [measured(tmp_path / n, rows) for n, rows in (("a", one), ("b", two))]
    text = words(found, tmp_path)
    assert "of 3 emotions in both, mine (a) lies further from base in 0; mine (b) lies" in text
    assert "further from base in 2 (calm, bored); 1 is not told apart" in text
    assert (
        "A difference, mine (b) minus mine (a), is shown for 3 of 3; the largest: calm −3.00 σ "
        "[−3.40, −2.60], sad +1.50 σ [+1.10, +1.90], bored +0.90 σ [+0.50, +1.30]." in text
    )
    assert "On average mine (a) and mine (b) moved by 0.60 and 1.27 σ at the colon." in text
    turned = words(found[::-1], tmp_path)
    assert "mine (b) lies further from base in 2 (calm, bored); mine (a) lies further" in turned


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"vectors": runs.vectors("b")}, r"other vectors \(aaaaaaaa and bbbbbbbb\)"),
        ({"vectors": {}}, "vectors that are not both on record"),
        ({"blocks": [1]}, "other blocks"),
        ({"prompts": {"hash": "other"}}, "other prompts"),
    ],
)
def test_runs_that_were_measured_otherwise_are_not_compared(changed, why, tmp_path):
    found = [measured(tmp_path / n, {"calm": UP}) for n in ("a", "b")]
    assert "Not comparable" not in words(found, tmp_path)
    found[1].baseline.update(changed)
    text = words(found, tmp_path)
    assert re.search(f"Not comparable: .*{why}", text)
    assert "not comparable" in text.split("Table 1.")[1].split("When")[0]
    assert "lies further from base" not in text


def test_runs_of_one_name_get_names_that_differ(tmp_path):
    found = [measured(tmp_path / n / "out", {"calm": UP}) for n in ("a", "b")]
    text = words(found, tmp_path)
    assert "mine (out) #1 and mine (out) #2, side by side" in text


def test_numbers_about_the_whole_profile_get_words_by_their_intervals(pair, tmp_path):
    text = words(pair[:1], tmp_path)
    for said in (
        "−0.21 σ [−0.27, −0.15]On the whole, towards unpleasant emotions, by the ratings alone: "
        "these vectors failed the gate for valence.",
        "+0.01 σ [−0.05, +0.07]No move towards agitated or still emotions is shown.",
        "+0.18 [−0.22, +0.58]No likeness is shown.",
        "0.71 [0.66, 0.76]The base’s profile is partly kept to largely kept.",
        "0.92 [0.89, 0.95]Both kinds of prompt moved alike: a strong to very strong correlation.",
        "34.0 %Mostly elsewhere, but more along emotions than a random move would be.",
    ):
        assert said in text


def test_the_runs_themselves_are_left_alone(pair, tmp_path):
    before = json.dumps(vars(pair[0]), default=str)
    words(pair, tmp_path)
    assert json.dumps(vars(pair[0]), default=str) == before


def test_no_run_is_no_report(tmp_path):
    for make in (lambda: write_runs([], tmp_path / "r.html"), lambda: markdown([])):
        with pytest.raises(ReportError, match="at least one run"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_the_report_needs_neither_pyplot_nor_torch():
    loaded = (
        "import sys, emoreg.reporting; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


def test_the_command_writes_the_page_or_prints_markdown(pair, tmp_path, capsys):
    folders = [str(run.folder) for run in pair]
    main(["report", folders[0]])
    assert "Drifted: 10 of 12" in (pair[0].folder / "report.html").read_text("utf-8")
    main(["report", *folders, "--out", str(tmp_path / "two.html")])
    assert "side by side" in (tmp_path / "two.html").read_text("utf-8")
    capsys.readouterr()
    main(["report", *folders, "--format", "md"])
    printed = capsys.readouterr().out
    assert printed == markdown(pair)
    main(["report", *folders, "--format", "md", "--out", str(tmp_path / "card.md")])
    assert (tmp_path / "card.md").read_text("utf-8") == printed
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "emoreg.jsonl cannot be read" in capsys.readouterr().err
