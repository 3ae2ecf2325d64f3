"""Drift is what was planted, from the base, and measuring it changes nothing."""

from __future__ import annotations

import json
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
    make_tokenizer,
    make_trainer,
    make_vectors,
)
from transformers import Trainer

from emoreg.callbacks import DriftCallback
from emoreg.drift import by_emotion, colon_readings, drift, load_prompts
from emoreg.errors import BankError, ConfigError
from emoreg.tap import Tap


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


# --- readings -------------------------------------------------------------------------------


def test_the_colon_is_read_alike_in_any_batch_and_order_and_by_hand() -> None:
    model, tokenizer, probe = make_model(), make_tokenizer(), make_vectors().probe()
    prompts = load_prompts(PROMPT_FILE)
    together = colon_readings(model, tokenizer, prompts, probe)
    for size in (1, 3):
        found = colon_readings(model, tokenizer, prompts, probe, batch_size=size)
        np.testing.assert_allclose(found, together, atol=1e-5)
    turned = colon_readings(model, tokenizer, prompts[::-1], probe, batch_size=3)
    np.testing.assert_allclose(turned[::-1], together, atol=1e-5)
    emotions, means = by_emotion(together, probe)
    for emotion in EMOTIONS:  # the mean of its facets
        rows = [i for i, row in enumerate(probe.rows) if row[1] == emotion]
        wanted = together[:, rows].sum(1) / len(rows)
        np.testing.assert_allclose(means[:, emotions.index(emotion)], wanted)
    for prompt, found in zip(prompts, together, strict=True):
        text = f"<|user|>{prompt.messages[0]['content']}<end><|assistant|>"
        ids = tokenizer(text)["input_ids"]
        hand = read_by_hand(model, ids, [len(ids) - 1])
        wanted = [hand[facet, emotion, 1].item() for facet, emotion in probe.rows]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_own_prompts_are_of_both_kinds() -> None:
    kinds = [p.kind for p in load_prompts()]
    assert len(kinds) == 128
    assert set(kinds) == {"neutral", "challenging"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt":', "line 2"),
        ('{"prompt": "a"}\n{"kind": "neutral"}', "line 2.*prompt"),
        ('["a"]\n', "line 1"),
        ('{"prompt": "a"}\n', "has 1 prompts; wanted at least two"),
        ("", "has 0 prompts"),
    ],
)
def test_a_prompt_file_that_cannot_serve_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BankError, match=f"(?s)prompts.jsonl.*{message}"):
        load_prompts(path)


# --- the interval ---------------------------------------------------------------------------


def test_a_planted_shift_is_measured_in_sigma() -> None:
    model, tokenizer, probe = make_model(), make_tokenizer(), make_vectors().probe()
    prompts = load_prompts(PROMPT_FILE)
    emotions, base = by_emotion(colon_readings(model, tokenizer, prompts, probe), probe)
    with plant(model, "afraid", 0.7):
        now = by_emotion(colon_readings(model, tokenizer, prompts, probe), probe)[1]
    found = drift(base, now, emotions)
    name, mean, low, high = next(row for row in found.sorted() if row[0] == "afraid")
    assert mean == pytest.approx(in_sigma(0.7, "afraid"), rel=1e-5)
    assert low - 1e-5 <= mean <= high + 1e-5
    calm = (emotions.index("calm"), make_vectors().facets[0])
    across = calm[1].directions[calm[0], 1] @ calm[1].directions[emotions.index(name), 1]
    assert abs(across) < 0.9  # control: the other emotion is another direction
    assert abs(found.mean[emotions.index("calm")]) < mean


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty_and_is_deterministic() -> (
    None
):
    rng, truth = np.random.default_rng(0), 0.4
    base = rng.normal(size=(64, 300))  # every column is one experiment of 64 prompts
    now = base + truth + rng.normal(size=base.shape)
    found, again = (drift(base, now, [str(i) for i in range(300)]) for _ in range(2))
    assert 0.89 < np.mean((found.low <= truth) & (truth <= found.high)) < 0.985
    assert np.mean((found.low <= 0) & (found.high >= 0)) < 0.2  # control: it excludes the false
    assert (found.low == again.low).all()
    assert (found.high == again.high).all()


# --- the callback ---------------------------------------------------------------------------


def test_drift_is_zero_at_step_zero_and_what_was_planted_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    trainer = make_trainer(
        folder, make_model(awake=False), learning_rate=0.0, max_steps=2,
        per_device_train_batch_size=4,
    )  # fmt: skip
    callback, taps = watched(trainer), []
    trainer.add_callback(
        Do("on_epoch_begin", lambda model, **_: taps.append(plant(model, "afraid", 0.7).open()))
    )
    trainer.train()
    taps[0].close()
    for kind in ("drift", "drift_low", "drift_high"):
        first, last = logged(trainer, f"emoreg/{kind}/afraid")
        assert first == 0
        assert last == pytest.approx(in_sigma(0.7, "afraid"), rel=1e-4)
    assert logged(trainer, "emoreg/drift_structure")[0] == pytest.approx(1)
    assert [step for step, _ in callback.history] == [0, 2]
    rows = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in rows] == [0, 2]
    emotion, mean, low, high = rows[1]["drift"][0]  # the first riser
    assert (emotion, mean) == ("afraid", logged(trainer, "emoreg/drift/afraid")[1])
    assert low <= mean + 1e-9
    assert mean <= high + 1e-9


def test_the_base_of_adapters_is_the_model_without_them_also_on_resuming(tmp_path: Path) -> None:
    def run(steps: int, resume: str | None = None) -> list[float]:
        trainer = make_trainer(
            tmp_path, max_steps=steps, save_strategy="steps", save_steps=1, save_only_model=False
        )
        watched(trainer, drift_steps=1)
        trainer.train(resume_from_checkpoint=resume)
        return logged(trainer, "emoreg/drift/calm")

    whole = run(2)
    assert abs(whole[0]) > 1e-3  # adapters that are awake differ from the base at once
    resumed = run(2, str(tmp_path / "checkpoint-1"))
    assert resumed[-2:] == pytest.approx(whole[-2:], rel=1e-3)


def test_full_fine_tuning_drifts_from_its_own_start_and_cannot_resume(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_base(), max_steps=2, save_strategy="steps", save_steps=1, learning_rate=1e-3
    )
    watched(trainer)
    trainer.train()
    first, last = logged(trainer, "emoreg/drift_mean_abs")
    assert first == 0
    assert last > 1e-3
    resumed = make_trainer(tmp_path, make_base(), max_steps=2)
    watched(resumed)
    with pytest.raises(ConfigError, match="resumes at step 1 without adapters"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


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
    assert lines({"drift_steps": 1}) == plain


def test_drift_steps_below_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="drift_steps must be >= 0, got -1"):
        watched(make_trainer(tmp_path), drift_steps=-1)
