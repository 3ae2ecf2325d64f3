"""A planted set passes its gates, a set of noise does not, and each gate can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from models import WIDTH, causal_lm, hooks, tokenizer
from torch.nn.functional import normalize

from emoreg.bank import Dosage, Text
from emoreg.catalogue import CATALOGUE
from emoreg.errors import BankError, VectorMismatchError
from emoreg.extract import Choices, extract
from emoreg.validate import ESSENTIAL, Validation, judge, validate
from emoreg.vectors import EmotionVectors

EMOTIONS = ("afraid", "angry", "bored", "calm", "desperate", "excited", "joyful", "sad")
SIGNS = dict(zip(EMOTIONS, "ABCDEFGH", strict=True))
STATES = {"desperate": "E", "calm": "D", "frustrated": "K", "neutral": "L"}
PLAIN = "abcdefghij ."
CHOICES = Choices(skip_tokens=4)


@cache
def world() -> tuple[Any, Any]:
    """A model in which a letter carries each emotion, placed by valence and arousal."""
    tok = tokenizer()
    model = causal_lm(vocab_size=len(tok), max_position_embeddings=512)
    frame = torch.linalg.qr(torch.randn(WIDTH, 13, generator=torch.Generator().manual_seed(4))).Q.T
    with torch.no_grad():
        rows = model.get_input_embeddings().weight.mul_(5)
        for i, (emotion, letter) in enumerate(SIGNS.items()):
            pleasant = (CATALOGUE.valence(emotion) - 4) / 3
            awake = (CATALOGUE.arousal(emotion) - 4) / 3
            place = 1.5 * pleasant * frame[8] + 1.0 * awake * frame[9] + 0.6 * frame[i]
            rows[tok.convert_tokens_to_ids(letter)] = place
        for i, letter in enumerate("KL"):
            rows[tok.convert_tokens_to_ids(letter)] = frame[10 + i]
    return model, tok


def write(rng: Random, sign: str = "", share: float = 0.3) -> str:
    length = rng.randint(60, 90)
    letters = list(sign * int(share * length))
    letters += rng.choices(PLAIN, k=length - len(letters))
    rng.shuffle(letters)
    return "".join(letters)


@cache
def bank(seed: int = 0) -> tuple[Text, ...]:
    rng, made = Random(seed), []
    for n in range(30):
        split = "held-out" if n % 3 == 2 else "fit"
        for emotion, sign in SIGNS.items():
            made.append(Text("story", emotion, split, f"t{n}", write(rng, sign)))
        asked = write(rng)
        for state, sign in STATES.items():
            if state == "frustrated":
                continue
            turns = [("user", asked), ("assistant", write(rng, sign))] * 2
            talk = tuple({"role": r, "content": c} for r, c in turns)
            made.append(Text("transcript", state, split, f"c{n}", messages=talk))
        made.append(Text("neutral", text=write(rng)))
        made.append(Text("deflection", "sad", split, f"t{n}", write(rng, "H", 0.1)))
        for label, sign in (("crisis", "AE"), ("near-miss", "")):
            talk = ({"role": "user", "content": write(rng, sign, 0.2)},)
            made.append(Text("urgency", label, "held-out", f"u{n}", messages=talk))
    return tuple(made)


def sweeps() -> list[Dosage]:
    """Not words but letters: the number 1 is plain, 9 is told by the model's own embedding."""
    return [
        Dosage(f"d{i}", rises, "{x} " + "abc" * i, (1, 2, 3, 7, 8, 9))
        for i, rises in enumerate(("fear", "relief", "fear", "relief"), 3)
    ]


@cache
def fitted() -> EmotionVectors:
    return extract(*world(), bank(), None, CHOICES)


@cache
def found() -> Validation:
    return validate(*world(), fitted(), bank(), sweeps())


def gates(validation: Validation) -> dict[str, Any]:
    return {g.name: g for g in validation.gates}


def test_a_planted_set_passes_every_essential_gate_above_its_controls() -> None:
    measured = gates(found())
    for name in ESSENTIAL:
        if name.endswith("_colon"):
            continue  # with random weights the token before a turn knows little of the turns before
        assert measured[name].passed is True, measured[name]
        assert measured[name].control is not None
        assert measured[name].value > max(measured[name].control.values())
    assert measured["valence_correlation"].passed is True
    assert measured["urgency"].value is not None
    assert measured["specificity_desperate"].passed is True


def test_a_set_of_noise_is_not_usable_and_the_reason_names_the_gates() -> None:
    draw = torch.Generator().manual_seed(1)
    noise = replace(
        fitted(),
        facets=tuple(
            replace(
                f, directions=normalize(torch.randn(f.directions.shape, generator=draw), dim=-1)
            )
            for f in fitted().facets
        ),
    )
    result = validate(*world(), noise, bank(), sweeps())
    measured = gates(result)
    assert result.verdict == "not usable"
    assert measured["held_out_accuracy"].passed is False
    assert "held_out_accuracy" in result.reason
    assert "bag of words" in result.reason or "shuffled labels" in result.reason


def test_shuffled_labels_give_a_set_that_is_not_usable() -> None:
    rng = Random(3)
    labels = [t.label for t in bank() if t.kind == "story"]
    rng.shuffle(labels)
    wrong = [replace(t, label=labels.pop()) if t.kind == "story" else t for t in bank()]
    vectors = extract(*world(), wrong, None, CHOICES)
    assert validate(*world(), vectors, bank()).verdict == "not usable"


def test_blocks_are_chosen_without_a_look_at_the_held_out_split() -> None:
    scrambled = [
        replace(t, text=write(Random(i))) if t.kind == "story" and t.split == "held-out" else t
        for i, t in enumerate(bank())
    ]
    result = validate(*world(), fitted(), scrambled)
    assert result.vectors.suggested_blocks == found().vectors.suggested_blocks
    assert [r["fit_accuracy"] for r in result.blocks] == [r["fit_accuracy"] for r in found().blocks]
    assert gates(result)["held_out_accuracy"].passed is False  # control: it was scrambled
    chosen = validate(*world(), fitted(), bank(), blocks=[1])
    assert chosen.vectors.suggested_blocks == (1,)


def test_the_verdict_follows_the_gates() -> None:
    passed = [replace(g, passed=True) for g in found().gates]
    assert judge(passed)[0] == "usable"
    for i, gate in enumerate(passed):
        for value in (False, None):
            verdict, reason = judge([*passed[:i], replace(gate, passed=value), *passed[i + 1 :]])
            essential = gate.name in ESSENTIAL and value is False
            assert verdict == ("not usable" if essential else _soft(gate.name, value)), gate.name
            assert gate.name in reason


def _soft(name: str, value: bool | None) -> str:
    reserved = value is False or name in ESSENTIAL
    return "usable with reservations" if reserved else "usable"


def test_what_a_bank_lacks_is_not_measured_and_told() -> None:
    bare = [t for t in bank() if t.kind in ("story", "neutral")]
    result = validate(*world(), fitted(), bare)
    measured = gates(result)
    for name in ("auroc_desperate_response", "dosage_signs", "urgency"):
        assert measured[name].passed is None
        assert name in result.reason
    assert result.verdict == "usable with reservations"  # the transcripts are essential


def test_the_model_is_left_as_it_was_and_the_same_call_gives_the_same() -> None:
    model, tok = world()
    model.train()
    before, state = hooks(model), torch.random.get_rng_state()
    try:
        again = validate(model, tok, fitted(), bank(), sweeps())
        assert model.training
    finally:
        model.eval()
    assert hooks(model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.dumps(again.row()) == json.dumps(found().row())


def test_the_json_and_the_card_hold_everything() -> None:
    row = json.loads(json.dumps(found().row()))
    assert {"verdict", "gates", "reason", "blocks", "confusion", "logit_lens"} <= set(row)
    for gate in row["gates"]:
        assert {"name", "value", "control", "bar", "passed"} <= set(gate)
    card = found().vectors.card
    assert card["validation"]["verdict"] == row["verdict"]
    assert card["suggested_blocks"] == row["suggested_blocks"]
    for shares in row["confusion"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    own, others = (row["readings"]["desperate"][k] for k in ("own", "others"))
    assert own > others + 1
    assert set(row["urgency"]["desperate"]) == {"crisis", "near-miss"}


def test_a_bank_without_held_out_stories_is_refused() -> None:
    lacking = [t for t in bank() if not (t.label in ("sad", "bored") and t.split == "held-out")]
    with pytest.raises(BankError, match="No held-out stories for bored, sad"):
        validate(*world(), fitted(), lacking)
    others = [replace(t, label="proud") for t in bank() if t.kind == "story"]
    with pytest.raises(BankError, match="stories for none of the set's emotions"):
        validate(*world(), fitted(), others)


def test_a_set_of_another_model_is_refused() -> None:
    model = causal_lm(vocab_size=512, max_position_embeddings=512, num_hidden_layers=2)
    with pytest.raises(VectorMismatchError, match="blocks: vectors 3, model 2"):
        validate(model, world()[1], fitted(), bank())


def test_the_page_says_what_the_json_says(tmp_path: Path) -> None:
    from emoreg.validation_page import write_page

    page = write_page(found().row(), tmp_path / "v.html").read_text()
    assert found().verdict.capitalize() in page
    for gate in found().gates:
        assert gate.name.replace("_", " ") in page
        if gate.value is not None:
            assert f"{gate.value:.2f}".replace("-", "−") in page
    for emotion in EMOTIONS:
        assert page.count(emotion) >= 3
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert page.count("<svg") == 6
