"""Drift is what was planted, from the base, and measuring it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import read_by_hand
from trainers import (
    EMOTIONS,
    PROMPT_FILE,
    Do,
    logged,
    make_base,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    make_vectors,
)
from transformers import LlamaForSequenceClassification, Trainer

from emoreg import snapshot
from emoreg.callbacks import DriftCallback
from emoreg.config import EmoRegConfig
from emoreg.errors import BankError, CaptureError, ConfigError
from emoreg.journal import Run
from emoreg.prompts import Prompt, load_prompts
from emoreg.snapshot import Gauge, by_emotion, colon_readings
from emoreg.tap import Tap


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMOREG_CACHE", str(tmp_path / "cache"))


def watched(trainer: Trainer, **settings: Any) -> DriftCallback:
    """A drift callback that is added to its trainer."""
    found = DriftCallback(trainer, make_vectors(), **{"prompts": PROMPT_FILE, **settings})
    trainer.add_callback(found)
    return found


def plant(model: torch.nn.Module, emotion: str, size: float) -> Tap:
    """Adds `size` times an emotion's direction to the output of block 1, until closed."""
    stories = make_vectors().facets[0]
    shift = size * stories.directions[EMOTIONS.index(emotion), 1]
    return Tap(model, [1], edit=lambda _block, hidden: hidden + shift)


def in_sigma(size: float, emotion: str) -> float:
    return size / float(make_vectors().facets[0].sigma[EMOTIONS.index(emotion), 1])


def gauge(tokens: int = 6, blocks: list[int] | None = None) -> Gauge:
    probe = make_vectors().probe(None, blocks)
    return Gauge(make_tokenizer(), load_prompts(PROMPT_FILE), probe, tokens)


# --- readings -------------------------------------------------------------------------------


def by_hand(model: Any, ids: list[int], at: list[int], block: int) -> np.ndarray:
    """Mean reading of each emotion over some positions, and over its facets."""
    hand, facets = read_by_hand(model, ids, at), make_vectors().facets
    return np.array(
        [
            np.mean([hand[f.name, e, block].mean().item() for f in facets if e in f.emotions])
            for e in EMOTIONS
        ]
    )


@pytest.mark.parametrize("budget", [1, 60, 8192])
def test_colon_and_response_are_read_as_by_hand_in_any_batch(
    budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "BATCH_TOKENS", budget)
    model, tokenizer, own = make_model(), make_tokenizer(), gauge(blocks=[0, 2])
    with model.disable_adapter():
        base = own.base(model)
    now = own.now(model, base, own=True)
    assert set(base.places) == {"colon", "response"}
    assert set(now.places) == {"colon", "response", "own"}
    assert now.places["own"].shape == (4, 2, len(EMOTIONS))
    for n, prompt in enumerate(own.prompts):
        text = f"<|user|>{prompt.messages[0]['content']}<end><|assistant|>"
        ids = tokenizer(text)["input_ids"]
        said = base.texts[n]
        assert 1 <= len(said) <= 6
        over = list(range(len(ids), len(ids) + len(said)))
        for at, block in enumerate((0, 2)):
            for place, positions in (("colon", [len(ids) - 1]), ("response", over)):
                hand = by_hand(model, [*ids, *said], positions, block)
                np.testing.assert_allclose(now.places[place][n, at], hand, atol=1e-5)
                with model.disable_adapter():
                    hand = by_hand(model, [*ids, *said], positions, block)
                np.testing.assert_allclose(base.places[place][n, at], hand, atol=1e-5)
    assert np.abs(now.places["own"] - now.places["response"]).max() > 0.1  # control


def test_the_activation_at_the_colon_is_kept_as_its_mean_and_mean_length() -> None:
    model, own = make_base(), gauge(0)
    found, tokenizer, acts = own.base(model), make_tokenizer(), []
    for prompt in own.prompts:
        text = f"<|user|>{prompt.messages[0]['content']}<end><|assistant|>"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            acts.append(model(ids, output_hidden_states=True).hidden_states[2][0, -1])
    np.testing.assert_allclose(found.mean[0], torch.stack(acts).mean(0), atol=1e-5)
    lengths = torch.stack(acts).norm(dim=-1)
    assert found.length[0] == pytest.approx(float(lengths.mean()), rel=1e-5)


def test_readings_by_row_are_those_by_emotion_before_the_mean_over_facets() -> None:
    model, probe, prompts = make_model(), make_vectors().probe(), load_prompts(PROMPT_FILE)
    rows = colon_readings(model, make_tokenizer(), prompts, probe)
    emotions, means = by_emotion(rows, probe)
    for emotion in EMOTIONS:
        at = [i for i, row in enumerate(probe.rows) if row[1] == emotion]
        wanted = rows[:, at].sum(1) / len(at)
        np.testing.assert_allclose(means[:, emotions.index(emotion)], wanted, rtol=1e-5)
    np.testing.assert_allclose(means, gauge(0).base(model).places["colon"][:, 0], atol=1e-6)


def test_without_a_head_or_without_tokens_only_the_colon_is_read() -> None:
    base = make_base()
    reward = LlamaForSequenceClassification(base.config)
    reward.model.load_state_dict(base.model.state_dict())
    for model, tokens in ((reward, 6), (base, 0)):
        own = gauge(tokens)
        found = own.base(model)
        assert set(found.places) == set(own.now(model, found, own=True).places) == {"colon"}
        np.testing.assert_allclose(
            found.places["colon"], gauge(6).base(base).places["colon"], atol=1e-5
        )


def test_prompts_that_leave_no_room_for_a_response_are_refused() -> None:
    prompts = [Prompt("neutral", ({"role": "user", "content": "tea " * n},)) for n in (2, 900)]
    own = Gauge(make_tokenizer(), prompts, make_vectors().probe(), 200)
    with pytest.raises(BankError, match=r"prompt 2 has \d+ tokens; with 200 .* context of 1024"):
        own.base(make_base())


def test_broken_weights_are_said_to_be_broken() -> None:
    model = make_base()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(CaptureError, match=r"Block 1 gives NaN .* prompt"):
        gauge(0).base(model)


# --- the callback ---------------------------------------------------------------------------


def test_drift_is_zero_at_step_zero_and_what_was_planted_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    trainer = make_trainer(
        folder, make_model(awake=False), learning_rate=0.0, max_steps=2,
        per_device_train_batch_size=4,
    )  # fmt: skip
    callback, taps = watched(trainer, drift_steps=0), []
    trainer.add_callback(
        Do("on_epoch_begin", lambda model, **_: taps.append(plant(model, "afraid", 0.7).open()))
    )
    trainer.train()
    taps[0].close()
    for kind in ("drift", "drift_low", "drift_high", "drift_response"):
        first, last = logged(trainer, f"emoreg/{kind}/afraid")
        assert first == 0
        assert last == pytest.approx(in_sigma(0.7, "afraid"), rel=1e-4)
    assert len(logged(trainer, "emoreg/drift_own/afraid")) == 1  # at the end only
    assert logged(trainer, "emoreg/drift_structure")[0] == pytest.approx(1)
    assert [step for step, _ in callback.history] == [0, 2]
    assert callback.history[1][1].rose[0] == "afraid"
    across = make_vectors().facets[0].directions[:, 1] @ make_vectors().facets[0].directions[0, 1]
    assert across[1:].abs().max() < 0.9  # control: the other emotions are other directions
    found = Run.load(folder)
    assert [(event["step"], event["final"]) for event in found.drifts] == [(0, False), (2, True)]
    rows = found.drifts[1]["places"]["colon"]["emotions"]
    assert rows["afraid"]["drift"] == logged(trainer, "emoreg/drift/afraid")[1]
    assert rows["afraid"]["start"]["drift"] == pytest.approx(rows["afraid"]["drift"])
    assert found.drifts[0]["places"]["colon"]["emotions"]["afraid"]["change"] is None
    assert found.baseline["prompts"]["kinds"]["challenging"] == 2
    assert (found.baseline["base"], found.baseline["on_policy"]) == ("adapters off", "end")


@pytest.mark.parametrize(
    ("steps", "every", "wanted"),
    [
        (20, None, list(range(0, 21, 2))), (4, None, [0, 1, 2, 3, 4]), 
        (19, None, [*range(0, 19, 2), 19]), (4, 0, [0, 4]), (5, 2, [0, 2, 4, 5]),
    ],
)  # fmt: skip
def test_it_measures_ten_times_in_a_run_unless_told_otherwise(
    steps: int, every: int | None, wanted: list[int], tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path, max_steps=steps, per_device_train_batch_size=1, rows=make_rows(2)
    )
    callback = watched(trainer, drift_steps=every, response_tokens=0)
    trainer.train()
    assert [step for step, _ in callback.history] == wanted


@pytest.mark.parametrize(("when", "wanted"), [("never", 0), ("end", 1), ("always", 3)])
def test_a_model_is_read_on_its_own_responses_as_often_as_asked(
    when: str, wanted: int, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, per_device_train_batch_size=4)
    config = EmoRegConfig.of(
        drift_prompts=str(PROMPT_FILE), drift_steps=1, drift_on_policy=when, blocks=[0],
        drift_response_tokens=5,
    )  # fmt: skip
    trainer.add_callback(DriftCallback.of(trainer, make_vectors(), config))
    trainer.train()
    assert len(logged(trainer, "emoreg/drift_own/calm")) == wanted
    assert len(logged(trainer, "emoreg/drift_response/calm")) == 3
    assert Run.load(tmp_path).baseline["response_tokens"] == 5
    assert list(Run.load(tmp_path).drifts[-1]["places"]["colon"]["blocks"]) == ["0"]


def test_the_trainers_own_log_is_the_same_with_and_without(tmp_path: Path) -> None:
    def lines(*settings: dict[str, Any]) -> list[dict[str, float]]:
        trainer = make_trainer(
            tmp_path, max_steps=4, per_device_train_batch_size=2, logging_steps=2
        )
        for s in settings:
            watched(trainer, **s)
        trainer.train()
        timed = ("runtime", "per_second")
        return [
            {k: v for k, v in row.items() if not k.endswith(timed)}
            for row in trainer.state.log_history
            if not any(k.startswith("emoreg/") for k in row)
        ]

    plain = lines()
    assert [row["step"] for row in plain if "mean_token_accuracy" in row] == [2, 4]
    assert lines({"drift_steps": 1, "on_policy": "always"}) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drift_steps": -1}, "drift_steps must be a whole number >= 0, got -1"),
        ({"response_tokens": -1}, "response_tokens must be >= 0, got -1"),
        ({"on_policy": "sometimes"}, "on_policy is one of end, always, never; got 'sometimes'"),
    ],
)
def test_knobs_out_of_range_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        watched(make_trainer(tmp_path), **settings)


def test_bf16_models_under_autocast_are_read_alike_at_base_and_now(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_model(awake=False).to(torch.bfloat16), bf16=True, learning_rate=0.0
    )
    callback = watched(trainer)
    trainer.train()
    assert logged(trainer, "emoreg/drift_mean_abs") == [0, 0]
    assert np.abs(callback.history[-1][1].base).max() > 0.1  # control: something was read
