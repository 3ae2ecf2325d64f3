"""Base readings come from the cache when the base is the same, and from the base when it is not."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import launch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from trainers import (
    PROMPT_FILE,
    make_base,
    make_model,
    make_prompted,
    make_tokenizer,
    make_trainer,
    make_vectors,
)
from transformers import LlamaForSequenceClassification

from emoreg import DriftCallback, kept
from emoreg.baseline import folder, read_base
from emoreg.journal import Run
from emoreg.prompts import load_prompts
from emoreg.snapshot import Gauge, Snapshot


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EMOREG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def gauge(**changes: Any) -> Gauge:
    settings: dict[str, Any] = {
        "tokenizer": make_tokenizer(), "prompts": load_prompts(PROMPT_FILE),
        "probe": make_vectors().probe(), "response_tokens": 5, **changes,
    }  # fmt: skip
    return Gauge(**settings)


def same(one: Snapshot, other: Snapshot) -> bool:
    return kept.digest(one) == kept.digest(other)


# --- the cache --------------------------------------------------------------------------------


def test_the_second_time_the_base_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_base(make_model(), gauge())
    assert not first.cached
    assert len(list(cache.glob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Gauge, "base", lambda *_: pytest.fail("read again"))
        second = read_base(make_model(seed=0, r=8), gauge())  # another adapter, the same base
    assert second.cached
    assert same(first.snapshot, second.snapshot)
    assert same(first.snapshot, read_base(make_base(), gauge()).snapshot)
    assert first.snapshot.texts == second.snapshot.texts
    assert [len(t) for t in second.snapshot.texts] == [len(t) for t in first.snapshot.texts]


def other_template() -> Any:
    tokenizer = copy.copy(make_tokenizer())
    tokenizer.chat_template = tokenizer.chat_template.replace("<|user|>", "<|user|> ") + " "
    return tokenizer


def one_weight(model: Any) -> Any:
    weight = model.get_base_model().model.layers[2].self_attn.o_proj.weight.data
    weight[7, 3] += 1e-6
    return model


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Gauge]]] = {
    "one weight": (lambda: one_weight(make_model()), gauge),
    "dtype": (lambda: make_model().to(torch.bfloat16), gauge),
    "attention": (lambda: eager(make_model()), gauge),
    "template": (make_model, lambda: gauge(tokenizer=other_template())),
    "facets": (make_model, lambda: gauge(probe=make_vectors().probe(["stories"]))),
    "blocks": (make_model, lambda: gauge(probe=make_vectors().probe(None, [0]))),
    "prompts": (make_model, lambda: gauge(prompts=load_prompts(PROMPT_FILE)[:3])),
    "response tokens": (make_model, lambda: gauge(response_tokens=4)),
    "a head": (lambda: LlamaForSequenceClassification(make_base().config), gauge),
}


def eager(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_another_base_or_another_question_is_read_by_itself(change: str, cache: Path) -> None:
    read_base(make_model(), gauge())
    model, asked = (make() for make in CHANGES[change])
    found = read_base(model, asked)
    assert not found.cached
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert read_base(model, asked).cached  # control: it has a place of its own
    assert read_base(make_model(), gauge()).cached


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))


def another(path: Path) -> None:
    """The file of another base under this one's name."""
    path.unlink()
    read_base(make_model(), gauge(response_tokens=3))
    next(path.parent.glob("*.safetensors")).rename(path)


def another_format(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(kept.FORMAT.encode(), b"emoreg-readings-0"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut_off, "damaged"), (one_bit, "damaged"), (lambda p: p.write_bytes(b""), "damaged"),
        (another, "made with other response_tokens (3, now 5)"), (another_format, "its format is"),
    ],
    ids=["cut off", "one bit", "empty", "stale", "format"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_said_once_and_written_again(
    spoil: Callable[[Path], None], said: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = read_base(make_model(), gauge()).snapshot
    spoil(next(cache.glob("*.safetensors")))
    caplog.clear()
    again = read_base(make_model(), gauge())
    assert not again.cached
    assert same(again.snapshot, first)
    [warning] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said in warning
    assert read_base(make_model(), gauge()).cached


def test_a_cache_that_cannot_be_written_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMOREG_CACHE", str(tmp_path / "file" / "cache"))
    found = read_base(make_model(), gauge())
    assert not found.cached
    [warning] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "cannot be cached" in warning
    assert "EMOREG_CACHE" in warning


def test_without_a_cache_and_for_learned_prompts_nothing_is_kept(cache: Path) -> None:
    assert not read_base(make_model(), gauge(), cache=False).cached
    assert not read_base(make_prompted(), gauge()).cached  # its virtual tokens are its own
    assert not cache.exists()


def test_the_folder_is_beside_the_hubs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMOREG_CACHE")
    assert folder().parts[-2:] == ("emoreg", "base-readings")
    assert (
        folder().parents[1] == Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    )


def test_a_file_says_what_it_is_of_and_names_no_path_of_the_user(cache: Path) -> None:
    read_base(make_model(), gauge())
    [path] = cache.glob("*.safetensors")
    with safe_open(path, "np") as held:
        about = json.loads(held.metadata()["about"])
        assert held.get_tensor("base/places.colon").dtype == np.float32
    assert about["model"]["width"] == 32
    assert about["response_tokens"] == 5
    assert path.stat().st_size < 10_000


# --- in a run ---------------------------------------------------------------------------------


def test_a_second_run_has_its_base_from_the_cache_and_the_same_drift(tmp_path: Path) -> None:
    def run(folder: Path, seed: int = 0, cache: bool = True) -> Run:
        model = get_peft_model(make_base(seed), LoraConfig(r=4, init_lora_weights=False))
        trainer = make_trainer(folder, model, learning_rate=0.0)
        callback = DriftCallback(trainer, make_vectors(), prompts=PROMPT_FILE, cache=cache)
        trainer.add_callback(callback)
        trainer.train()
        return Run.load(folder)

    torch.manual_seed(3)
    first = run(tmp_path / "a")
    torch.manual_seed(3)
    second = run(tmp_path / "b")
    other = run(tmp_path / "c", seed=1)  # a merged or fine-tuned model is a base like any other
    off = run(tmp_path / "d", cache=False)
    assert [r.baseline["cached"] for r in (first, second, other, off)] == [False, True] + 2 * [
        False
    ]
    assert (
        first.drifts[-1]["places"]["colon"]["emotions"]["calm"]["base"]
        == (second.drifts[-1]["places"]["colon"]["emotions"]["calm"]["base"])
    )


@pytest.mark.slow
def test_two_processes_agree_on_what_the_cache_holds(cache: Path, tmp_path: Path) -> None:
    def run(folder: Path) -> tuple[dict[str, float], str]:
        folder.mkdir()
        said = launch("worker.py", str(folder), "ddp:SFT:drift", processes=2, minutes=3)
        path = folder / "ddp:SFT:drift.json"
        assert path.exists(), said
        logs = json.loads(path.read_text())["logs"]
        return {k: v for k, v in logs.items() if k.startswith("emoreg/drift_own/")}, said

    first, said = run(tmp_path / "first")
    [path] = cache.glob("*.safetensors")
    written = path.stat().st_mtime_ns
    assert run(tmp_path / "second")[0] == first
    assert path.stat().st_mtime_ns == written
    cut_off(path)
    third, said = run(tmp_path / "third")
    assert third == first
    assert said.count("The base is read again") == 1  # the first process alone reads files
    assert max(map(abs, first.values())) > 0.01  # control
