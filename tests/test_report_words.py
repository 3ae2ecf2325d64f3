"""What a report says follows from its numbers: answers, spans, gates, prompts, differences."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

import runs
from emoreg import drift
from emoreg import measurement as measurement_module
from emoreg.answers import so_what, turned_mark
from emoreg.charts import Interval
from emoreg.comparison import difference
from emoreg.guide import TERMS, how_measured, terms
from emoreg.journal import Journal, Run
from emoreg.measurement import Measurement
from emoreg.report_table import settings
from emoreg.run_view import View
from emoreg.sentences import certainty, control_text, vectors_text, verdict
from emoreg.shades import rounded
from emoreg.token_text import BOUNDARY, PROMPT, examples, scale
from emoreg.whole_profile import axes_caveat, chance_range, lines
from emoreg.wording import strength


def test_the_least_move_is_that_of_the_measurement():
    assert (measurement_module.LEAST, measurement_module.Q) == (drift.LEAST, drift.Q)
    sizes = {"small": 0.049, "enough": 0.051}
    found = Measurement.of({"step": 1, "places": {"colon": {"emotions": {
        e: {"drift": x, "low": x - 0.01, "high": x + 0.01, "q": 0.001} for e, x in sizes.items()
    }}}})  # fmt: skip
    assert [row.emotion for row in found.movers()] == ["enough"]


def rows(**drifts: float) -> dict[str, Any]:
    """Emotions with an interval of ± 0.1; those nearer to 0 show no move."""
    return {
        e: {"drift": x, "low": x - 0.1, "high": x + 0.1, "q": 0.0 if abs(x) > 0.1 else 0.9}
        for e, x in drifts.items()
    }


def measurement(**places: dict[str, Any]) -> Measurement:
    found = {place: {"emotions": emotions} for place, emotions in places.items()}
    return Measurement.of({"step": 60, "prompts": 48, "places": found, "stats": {}})


COLON = rows(calm=1.0, sad=-2.0, bored=0.0)


@pytest.mark.parametrize(
    ("response", "own", "said"),
    [
        (None, None, "before the answer moved; the answers were not read, so whether they moved"),
        (rows(calm=0.0, sad=0.05), None, "; in the answers themselves no move is shown."),
        (rows(calm=0.3, sad=-0.4), None, "; the answers themselves moved less."),
        (rows(calm=3.0, sad=-4.0), None, "; the answers themselves moved further."),
        (rows(calm=1.1, sad=-2.1), None, "; the answers themselves moved as well."),
        (rows(calm=-0.3, sad=-0.4), None, "moved less, and the other way for calm."),
        (
            rows(calm=-0.3, sad=-0.4),
            rows(calm=-0.3, sad=0.2),
            "moved less, and the other way for calm and in own responses only for sad.",
        ),
        (rows(calm=-0.3), rows(calm=0.3), "the other way in fixed responses only for calm."),
        (rows(calm=-0.3), rows(calm=0.0), "the other way in fixed responses only for calm."),
    ],
)
def test_what_can_be_said_of_the_answers_follows_their_intervals(response, own, said):
    places = {"colon": COLON, "response": response, "own": own}
    found = measurement(**{k: v for k, v in places.items() if v})
    assert said in so_what(found)
    assert so_what(found).startswith("The state just before the answer moved; ")


def test_moves_in_the_answers_alone_are_told():
    still = rows(calm=0.0, sad=0.05)
    assert so_what(measurement(colon=still, response=still)).endswith("and none in the answers.")
    found = so_what(measurement(colon=still, response=rows(calm=0.4, sad=0.0)))
    assert found.endswith("no move is shown, but 1 of 2 emotions moved on fixed responses.")


def test_a_list_of_movers_marks_what_turns_around_in_the_answers():
    found = measurement(colon=COLON, response=rows(calm=-0.3, sad=0.4), own=rows(calm=-0.3, sad=0))
    assert turned_mark(found, "calm") == " (▼ in the answers)"
    assert turned_mark(found, "sad") == " (▲ in fixed responses)"
    assert turned_mark(found, "bored") == ""
    same = measurement(colon=COLON, response=rows(calm=0.3, sad=-0.4))
    assert turned_mark(same, "calm") == turned_mark(same, "sad") == ""  # control


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runs.write_run(tmp_path_factory.mktemp("run"), "no-control", measurements=3)


def test_the_first_screen_says_why_the_colon_how_far_and_of_which_model(run):
    found = verdict(View.of(run))
    facts = dict(found.facts)
    assert found.head == "Drifted: 10 of 12 emotions moved at the colon"
    assert "On average 0.97\u00a0σ" in found.most
    assert "for this model that is not shown" in facts["Why the colon"]
    assert (
        "Fixed responses (the base’s answers, read by both): 10 of 12 moved, 0.58\u00a0σ"
        in (facts["In the answers"])
    )
    assert facts["Model"].startswith("emoreg-tiny, llama, 6 blocks, width 192: tiny, by the usual")
    assert "SFTTrainer on 480 rows of builds." in facts["The run"]
    run = Run(run.folder, header=run.header | {"model": {"type": "qwen2", "blocks": 24,
              "width": 896}}, baseline=run.baseline, drifts=run.drifts)  # fmt: skip
    assert dict(verdict(View.of(run)).facts)["Model"] == "qwen2, 24 blocks, width 896."


def test_which_emotions_were_tested_where_drift_looks(run):
    view = View.of(run)
    said = "desperate has a gate of its own in an assistant’s context; the other 11 rest on"
    assert said in vectors_text(view)
    gates = [{"name": f"auroc_{e}_response", "passed": e == "calm"} for e in ("calm", "sad")]
    gates.append({"name": "auroc_bored_colon", "passed": None})
    view.run.baseline["vectors"] = {"gates": gates}
    said = "sad and calm have gates of their own in an assistant’s context (not passed: sad); the"
    assert said in vectors_text(view)
    view.run.baseline["vectors"] = {"gates": [{"name": "polarity", "passed": True}]}
    assert "No emotion has a gate of its own" in vectors_text(view)


@pytest.mark.parametrize(
    ("passed", "said"),
    [(True, ""), (False, "failed the gate for"), (None, "were not tested for")],
)
def test_axes_that_the_vectors_were_not_shown_to_have_are_called_ratings(passed, said, run):
    view = View.of(run)
    names = ("valence_correlation", "arousal_correlation")
    view.run.baseline["vectors"] = {"gates": [{"name": n, "passed": passed} for n in names]}
    (valence,) = [line.said for line in lines(view) if line.name == "valence"]
    assert "towards unpleasant emotions" in valence
    assert ("by the ratings alone: these vectors" in valence) == (passed is not True)
    assert said in valence
    assert axes_caveat(view).startswith(f"These vectors {said} valence and arousal" if said else "")
    assert bool(axes_caveat(view)) == bool(said)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ({"value": 0.02}, "Elsewhere: less along emotions"),
        ({"value": 0.11}, "Not told apart from a random move"),
        ({"value": 0.3}, "Mostly elsewhere, but more along emotions"),
        ({"value": 0.8}, "Mostly along emotions"),
        ({"value": 0.3, "low": 0.1, "high": 0.5}, "Not told apart from a random move"),
    ],
)
def test_whether_emotions_or_the_whole_stream_moved_is_said_by_the_shares_of_chance(
    share, said, run
):
    run = deepcopy(run)
    run.drifts[-1]["stats"]["span"] = share | {"chance": 22 / 192}
    (line,) = [line for line in lines(View.of(run)) if line.name == "of that, along emotions"]
    assert line.said.startswith(said)
    assert "A random direction has 11.5 % there (95 % of them 5.9 to 18.5 %)" in (
        line.asks.replace(" % to", " to")
    )


def test_the_share_of_a_random_direction_is_that_of_random_directions():
    found, width, count = chance_range(22 / 192, 192), 192, 22
    assert (found.low, found.high) == pytest.approx(
        beta.interval(0.95, count / 2, (width - 22) / 2)
    )
    drawn = np.random.default_rng(0).normal(size=(4000, width)) ** 2
    shares = drawn[:, :count].sum(1) / drawn.sum(1)
    assert np.mean((shares > found.low) & (shares < found.high)) == pytest.approx(0.95, abs=0.02)
    assert math.isnan(chance_range(0.1, math.nan).low)


def test_correlations_are_called_by_their_size():
    assert strength(Interval(0.95, 0.91, 0.98)) == ("very strong",)
    assert strength(Interval(0.73, 0.71, 0.74)) == ("strong",)
    assert strength(Interval(0.47, 0.45, 0.48)) == ("moderate",)
    assert strength(Interval(-0.5, -0.75, -0.1)) == ("weak", "strong")


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.7])
def test_the_bracket_of_a_difference_covers_it_however_the_runs_go_together(correlation):
    rng, hits = np.random.default_rng(0), 0
    spreads, truth = np.array([0.3, 0.5]), np.array([1.0, 2.5])
    across = correlation * spreads.prod()
    drawn = rng.multivariate_normal(truth, [[0.09, across], [across, 0.25]], 2000)
    for means in drawn:
        ends = zip(means, means - 1.96 * spreads, means + 1.96 * spreads, strict=True)
        found = difference(*(Interval(*map(float, end)) for end in ends))
        assert found.mean == pytest.approx(means[1] - means[0])
        hits += found.low <= 1.5 <= found.high
    assert hits / 2000 >= 0.94
    assert correlation > -1 or hits / 2000 < 0.97  # no wider than it must be at the worst


def test_prompts_are_counted_by_the_kinds_that_there_are(run):
    view = View.of(run)
    assert "the same 128 prompts (64 neutral and 64 challenging)" in certainty(view)
    data = dict(dict(settings(view))["data"])
    assert data["neutral prompts"] == "64, such as “What is a lease?”"
    assert (data["rows trained on"], data["columns"]) == ("480", "prompt, completion")
    old = {"file": "mine.jsonl", "number": 48, "neutral": 0, "challenging": 0}
    view.run.baseline["prompts"] = old
    assert "the same 128 prompts;" in certainty(view)
    assert "0" not in dict(dict(settings(view))["data"]).values()
    view.run.baseline["prompts"] = old | {"kinds": {"train": 16, "read": 32, "gone": 0}}
    assert "(16 train and 32 read)" in certainty(view)


def test_settings_tell_what_their_names_do_not(run):
    groups = dict(settings(View.of(run)))
    assert dict(groups["run"])["task loss, mean over the run"] == "0.35"
    assert not [name for values in groups.values() for name, _ in values if name == "step"]
    assert "keep (weight that holds all other emotions near the base)" in " ".join(
        name for name, _ in groups["control"]
    )
    assert "blocks 2–4 and directions from stories, transcripts" in how_measured(
        [View.of(run)]
    ).replace("stories and", "stories,")


def test_a_checkpoint_s_training_is_not_guessed(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(0, name="final", trainer="", args={})
    assert control_text(View.of(journal.run)).startswith("Not on record")
    journal.begin(0, name="mine", trainer="SFTTrainer", args={})
    assert control_text(View.of(journal.run)).startswith("Off: no regularizer")  # control


def test_only_words_that_the_page_uses_are_explained(run):
    one, two = terms([View.of(run)]), terms([View.of(run), View.of(run)])
    assert "Difference and further from base" not in one
    assert "Difference and further from base" in two
    assert {"Penalised and rewarded", "Task loss"} & set(one) == set()
    bare = Run(run.folder, header=run.header)
    assert set(terms([View.of(bare)])) < set(one) < set(TERMS)


def text(reading: float, end: str, words: str, emotion: str = "calm") -> dict[str, Any]:
    tokens = words.split()
    return {"emotion": emotion, "end": end, "reading": reading, "prompt": "p", "tokens": tokens,
            "readings": [reading] * len(tokens)}  # fmt: skip


def test_no_completion_is_shown_twice_and_each_end_has_one(tmp_path):
    both = [text(0.9, "highest", "a b"), text(0.8, "highest", "c d"), text(-0.9, "lowest", "a b"),
            text(-0.8, "lowest", "e f"), text(0.5, "highest", "a b", "sad")]  # fmt: skip
    run = Run(tmp_path, texts=[{"step": 5, "rows": both}, {"step": 9, "rows": both}])
    now, before = examples(View(run, "x"), 6, 2.0)
    shown = ["".join(piece.text for piece in found.pieces) for found in (*now, *before)]
    assert shown == ["ab", "ef", "cd"]
    assert ["highest" in found.title for found in now] == [True, False]


def test_a_cut_prompt_begins_with_a_whole_word(tmp_path):
    whole, cut = "word " * 59 + "word", "… " + "word " * 60
    for prompt, start in (
        (whole, "word"),
        (cut, "… word"),
        ("rd " + "word " * 100, "… word"),
        ("x" * 999, "… xxx"),
    ):
        run = Run(tmp_path, texts=[{"step": 1, "rows": [text(1, "highest", "a") | {
            "prompt": prompt}]}])  # fmt: skip
        shown = examples(View(run, "x"), 1, 2.0)[0][0].prompt
        assert shown.startswith(start)
        assert len(prompt[-PROMPT:]) - len(shown.removeprefix("… ")) <= BOUNDARY
        assert shown.count("…") == start.count("…")


def test_scales_of_colours_end_at_few_values_that_runs_on_one_page_share(tmp_path: Path):
    assert [rounded(x) for x in (0, 1, 1.1, 2.4, 4, 9, 11, 99)] == [1, 1, 2, 3, 5, 10, 20, 100]
    low, high = (
        View(Run(tmp_path, texts=[{"step": 1, "rows": [text(x, "highest", "a")]}]), "x")
        for x in (0.4, 2.6)
    )
    assert (scale(low), scale(high), scale(low, high)) == (2, 3, 3)
