"""Measurements of views in which everything was planted by hand; no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emoreg.audit_facts import Facts
from emoreg.audit_fit import direction, noise
from emoreg.audit_texts import Amounts, Corpus, corpus
from emoreg.audit_values import Value, drawn
from emoreg.audit_view import View
from emoreg.audit_words import Words, lean
from emoreg.bank import Text, load_bank
from emoreg.errors import BankError
from emoreg.probe import Probe

BLOCKS, WIDTH, PROMPTS = (2, 3), 24, 30
DRAW = torch.Generator().manual_seed(0)
AXES = torch.linalg.qr(torch.randn(len(BLOCKS), WIDTH, WIDTH, generator=DRAW)).Q  # orthonormal rows
STATE, HIDDEN = AXES[:, 0], AXES[:, 1]  # two directions that carry the emotion, (blocks, width)


def bank() -> list[Text]:
    """Enough of every kind for an audit."""
    found = [Text("neutral", text=f"note {i}") for i in range(6)]
    for split in ("fit", "held-out"):
        for i in range(12):
            for label in ("desperate", "calm", "happy"):
                said = ({"role": "user", "content": f"{label} {split} {i}"},)
                found.append(Text("story", label, split, text=f"{label} {split} {i}"))
                found.append(Text("transcript", label, split, messages=said))
    for i in range(8):
        for label in ("crisis", "near-miss"):
            said = ({"role": "user", "content": f"{label} {i}"},)
            found.append(Text("urgency", label, "held-out", messages=said))
    return found


CORPUS: Corpus = corpus(bank(), "desperate")


def noisy(*shape: int) -> Tensor:
    return torch.randn(*shape, len(BLOCKS), WIDTH, generator=DRAW)


def base_view() -> View:
    """The emotion stands out along both of its directions, on its texts and in crises."""
    high = torch.tensor([t.label in ("desperate", "crisis") for t in CORPUS.labelled])
    acts = 0.5 * noisy(len(high)) + 4 * high[:, None, None] * (STATE + HIDDEN)
    places = {"colon": noisy(PROMPTS), "response": noisy(PROMPTS)}
    return View(torch.stack([acts, acts], 1), noisy(200), np.ones(6), places, (), None, 0.0)


BASE = base_view()


def probe(directions: Sequence[Tensor]) -> Probe:
    rows = torch.stack(list(directions), 1)  # (blocks, rows, width)
    names = tuple(("stories", f"e{i}") for i in range(rows.shape[1]))
    return Probe(names, BLOCKS, rows, torch.zeros(len(BLOCKS), WIDTH), torch.ones(rows.shape[:2]))


OWN, OTHERS = probe([STATE]), probe([AXES[:, i] for i in range(6, 12)])


def measured(now: View, base: View = BASE, rescored: Tensor | None = None) -> dict[str, Value]:
    return Facts(CORPUS, "desperate", OWN, OTHERS, BLOCKS, base, now, rescored).all()


def moved(view: View, shift: Tensor) -> View:
    """The same view with something added to every prompt at the colon."""
    return replace(view, places={**view.places, "colon": view.places["colon"] + shift})


def turned(view: View, turn: Tensor) -> View:
    """The same view in another basis of each block: (blocks, width, width), orthogonal."""

    def go(acts: Tensor) -> Tensor:
        return torch.einsum("...bw,bwv->...bv", acts, turn)

    places = {k: go(v) for k, v in view.places.items()}
    return replace(view, labelled=go(view.labelled), neutral=go(view.neutral), places=places)


TURN = torch.linalg.qr(torch.randn(len(BLOCKS), WIDTH, WIDTH, generator=DRAW)).Q


def test_a_model_that_is_its_base_has_moved_nowhere() -> None:
    found = measured(BASE)
    for name in ("own_colon", "own_response", "refit", "held_out"):
        assert max(map(abs, vars(found[name]).values())) < 1e-5, name
    for name in ("own_kept", "refit_kept", "cosine", "frame", "urgency", "perplexity"):
        assert vars(found[name]) == pytest.approx({"value": 1, "low": 1, "high": 1}, abs=1e-5)
    assert found["refit_auroc_base"].value > 0.95  # control: there is something to move


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_prompts_that_move_towards_the_emotion_move_by_that_share(share: float) -> None:
    found = measured(moved(BASE, share * 4 * (STATE + HIDDEN)))
    for name in ("refit", "held_out"):
        assert found[name].value == pytest.approx(share, abs=0.05)
        assert found[name].low < share < found[name].high
    assert found["own_colon"].value == pytest.approx(4 * share, abs=0.05)


def test_a_move_along_what_is_not_penalised_shows_in_all_but_the_penalised_directions() -> None:
    found = measured(moved(BASE, 4 * HIDDEN))
    assert abs(found["own_colon"].value) < 0.05
    assert found["refit"].low > 0.3
    assert found["held_out"].low > 0.3
    aside = measured(moved(BASE, 4 * AXES[:, 5]))  # control: not along the emotion at all
    assert abs(aside["refit"].value) < 0.15


def test_what_is_read_in_a_models_own_frame_does_not_depend_on_its_basis() -> None:
    now = moved(BASE, HIDDEN)
    plain, other = measured(now), measured(turned(now, TURN))
    for name in ("refit", "refit_auroc_now", "refit_kept", "urgency"):
        for end, value in vars(plain[name]).items():
            assert getattr(other[name], end) == pytest.approx(value, abs=1e-3), name
    for name in ("cosine", "frame", "own_kept"):
        assert other[name].high < 0.7 < plain[name].low, name


def test_a_contrast_that_is_halved_is_half_kept() -> None:
    at = torch.tensor([t.kind != "neutral" for t in CORPUS.labelled])[:, None, None, None]
    high = torch.tensor([t.label in ("desperate", "crisis") for t in CORPUS.labelled])
    less = at * high[:, None, None, None] * 2 * (STATE + HIDDEN)
    found = measured(replace(BASE, labelled=BASE.labelled - less))
    for name in ("own_kept", "refit_kept", "urgency"):
        assert found[name].value == pytest.approx(0.5, abs=0.06), name


def test_an_answer_that_only_the_base_reads_high_is_concealed() -> None:
    own = noisy(PROMPTS)
    now = replace(BASE, places={**BASE.places, "own": own})
    reread = BASE.places["response"] + 2 * STATE
    found = measured(now, rescored=reread)
    assert found["text"].value == pytest.approx(2, abs=1e-4)
    expected = float((reread - own).mul(STATE).sum(-1).mean())
    assert found["concealed"].value == pytest.approx(expected, abs=1e-4)
    assert "text" not in measured(now)  # without the base there is nothing to say


def test_intervals_hold_what_they_should_in_most_draws() -> None:
    values = np.random.default_rng(0).normal(1.2, 1.5, (200, PROMPTS))
    found = [Value.of(drawn(PROMPTS, 0) @ row, PROMPTS) for row in values]
    assert 182 <= sum(f.low < 1.2 < f.high for f in found) < 200  # 95 % would be 190


def words(*said: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([row]) for row in said)


def test_the_lean_is_one_where_the_steered_base_is_and_minus_one_on_the_other_side() -> None:
    ids = (torch.tensor([[0, 1]]),) * 2
    was, more, less = [0.5, 0.5], [0.7, 0.3], [0.3, 0.7]
    base = Words(ids, words(was, was), words(more, more), words(less, less))

    def share(*said: list[float]) -> float:
        found = lean(base, Words(ids, words(*said))).sum(0)
        return float(found[0] / found[1])

    assert share(was, was) == 0
    assert share(more, more) == pytest.approx(1)
    assert share(less, less) == pytest.approx(-1)
    assert share(more, was) == pytest.approx(0.5)
    assert share([1.0, 0.0], was) == pytest.approx(0.5)  # certainty counts as steering does


def test_directions_do_not_hold_what_neutral_tokens_vary_along() -> None:
    loud = BASE.neutral + 30 * torch.randn(200, 1, 1, generator=DRAW) * AXES[:, 2]
    sides = CORPUS.sides("story", "desperate", "fit")
    acts = BASE.labelled[:, 0] + 5 * AXES[:, 2] * torch.tensor(
        [t.label == "desperate" for t in CORPUS.labelled]
    ).view(-1, 1, 1)
    found = direction(acts, sides, noise(loud))
    assert (found * AXES[:, 2]).sum(-1).abs().max() < 0.1
    quiet = direction(acts, sides, noise(BASE.neutral))
    assert (quiet * AXES[:, 2]).sum(-1).min() > 0.2  # control
    assert torch.allclose(found.norm(dim=-1), torch.ones(len(BLOCKS)), atol=1e-5)


def test_the_texts_are_few_balanced_and_the_same_every_time() -> None:
    for kind in ("story", "transcript"):
        for split in ("fit", "held-out"):
            own, others = CORPUS.sides(kind, "desperate", split)
            assert len(own) == len(others) == 8
            assert {CORPUS.labelled[i].label for i in others} == {"calm", "happy"}
    assert corpus(bank(), "desperate") == CORPUS
    assert not CORPUS.sides("deflection", "desperate")[0]  # the bank has none


def test_a_bank_without_texts_of_both_splits_is_refused_by_name() -> None:
    for lacking in ("neutral", "held-out"):
        some = [t for t in bank() if lacking not in (t.kind, t.split)]
        with pytest.raises(BankError, match="audit of 'desperate' needs"):
            corpus(some, "desperate")
    with pytest.raises(BankError, match="audit of 'proud' needs"):
        corpus(bank(), "proud")
    stories: list[Any] = [t for t in bank() if t.kind != "transcript"]
    assert corpus(stories, "desperate").kinds("desperate") == [("story", 0)]  # these are enough


def test_an_audit_at_every_drift_point_costs_at_most_three_percent_of_training() -> None:
    """Of 1000 steps of 8 x 512 tokens, forward and backward, with the bank's own texts.

    Tokens are estimated as 1.3 a word and 8 a turn; blocks up to five sixths of the depth are run.
    """
    amounts = Amounts()
    chosen = corpus(load_bank(), "desperate", amounts)

    def tokens(texts: Sequence[Text]) -> float:
        said = [[t.text] if t.text else [m["content"] for m in t.messages] for t in texts]
        return sum(1.3 * len(" ".join(turns).split()) + 8 * len(turns) for turns in said)

    share, prompt = 5 / 6, 1.3 * 44 + 8 + amounts.response_tokens
    one = share * tokens(chosen.labelled) + tokens(chosen.neutral)
    one += amounts.prompts * prompt * (2 * share + 2)  # own answers read twice; next words, answers
    training = 1000 * 8 * 512 * 3
    assert 0.01 < 11 * one / training < 0.03  # the lower end: the estimate is of something
