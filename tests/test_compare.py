"""`emoreg drift` finds in finished checkpoints what is there to read, and refuses what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trainers import (
    EMOTIONS,
    PROMPT_FILE,
    make_base,
    make_model,
    make_prompted,
    make_tokenizer,
    make_vectors,
)

from emoreg import checkpoints, compare
from emoreg.checkpoints import names
from emoreg.cli import main
from emoreg.errors import ConfigError
from emoreg.journal import Run
from emoreg.prompts import load_prompts
from emoreg.snapshot import by_emotion, colon_readings


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMOREG_CACHE", str(tmp_path / "cache"))


def save_model(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def save_adapter(model: PeftModel, folder: Path, base: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its vectors, and checkpoints of every form; two of them are the same model."""
    folder = tmp_path_factory.mktemp("home")
    save_model(make_base(), folder / "base")
    vectors = make_vectors()
    card = {**vectors.card, "model": {**vectors.card["model"], "name": "base"}}
    replace(vectors, card=card).save(folder / "vectors")
    save_adapter(make_model(), folder / "one" / "final", folder / "base")
    stopped = folder / "two" / "checkpoint-30"
    save_adapter(get_peft_model(make_base(), LoraConfig(r=2)), stopped, folder / "base")
    (stopped / "trainer_state.json").write_text('{"global_step": 30}')
    save_adapter(make_prompted(), folder / "prompted", folder / "base")
    save_model(make_model().merge_and_unload(), folder / "merged")
    make_base(seed=4).save_pretrained(folder / "full" / "checkpoint-7")  # without a tokenizer
    return folder


def drift(home: Path, out: Path, *adapters: str | Path, flags: tuple[str, ...] = ()) -> list[Run]:
    given = [word for a in adapters for word in ("--adapter", str(home / a))]
    main(
        [
            "drift", "--model", str(home / "base"), "--vectors", str(home / "vectors"), *given,
            "--prompts", str(PROMPT_FILE), "--response-tokens", "4", "--out", str(out), *flags,
        ]
    )  # fmt: skip
    return [Run.load(f) for f in sorted(out.iterdir()) if f.is_dir()]


def found(run: Run) -> np.ndarray:
    rows = run.drifts[-1]["places"]["colon"]["emotions"]
    return np.array([rows[e]["drift"] for e in EMOTIONS])


def by_hand(model: Any) -> np.ndarray:
    probe, prompts = make_vectors().probe(), load_prompts(PROMPT_FILE)
    rows = [colon_readings(m, make_tokenizer(), prompts, probe) for m in (model, make_base())]
    now, base = (by_emotion(r, probe)[1].mean(0) for r in rows)
    return now - base


@pytest.mark.filterwarnings("error:Already found a `peft_config`")
def test_every_form_of_a_checkpoint_is_measured_against_the_base(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("one/final", "merged", "two/checkpoint-30", "prompted", "full/checkpoint-7")
    runs = {r.name: r for r in drift(home, tmp_path / "out", *folders)}
    adapter, merged, stopped, prompted, full = (runs[Path(f).name] for f in folders)
    np.testing.assert_allclose(found(adapter), by_hand(make_model()), atol=1e-4)
    np.testing.assert_allclose(found(merged), found(adapter), atol=1e-4)
    np.testing.assert_allclose(found(full), by_hand(make_base(seed=4)), atol=1e-4)
    np.testing.assert_allclose(found(prompted), by_hand(make_prompted()), atol=1e-4)
    assert np.abs(found(stopped)).max() == 0  # its B are zero
    assert np.abs(found(adapter)).max() > 0.1  # control
    assert [r.drifts[0]["step"] for r in (stopped, full, adapter)] == [30, 7, 0]
    assert set(adapter.drifts[0]["places"]) == {"colon", "response", "own"}
    assert adapter.baseline["base"] == prompted.baseline["base"] == "adapters off"
    assert full.baseline["base"] == "step-0 snapshot"
    assert adapter.header["adapter"]["r"] == 4
    assert full.header["adapter"] is None
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in runs)
    said = capsys.readouterr().out
    assert said.index("final: drift") < said.index("merged: drift") < said.index("30: drift")
    assert "no emotion moved more than chance" in said
    assert "profile kept" in said


def test_what_was_not_asked_for_is_not_measured(home: Path, tmp_path: Path) -> None:
    flags = ("--no-on-policy", "--no-cache", "--blocks", "0-1", "--facets", "transcripts")
    [run] = drift(home, tmp_path / "out", "merged", flags=flags)
    assert set(run.drifts[0]["places"]) == {"colon", "response"}
    assert list(run.drifts[0]["places"]["colon"]["emotions"]) == ["calm", "desperate"]
    assert run.baseline["blocks"] == [0, 1]
    assert not (tmp_path / "cache").exists()
    drift(home, tmp_path / "out", "merged", flags=("--response-tokens", "0"))
    assert set(Run.load(tmp_path / "out" / "merged").drifts[0]["places"]) == {"colon"}
    assert (tmp_path / "out" / "merged" / "emoreg.1.jsonl").exists()  # the first is kept


def test_an_adapter_that_changes_what_is_below_it_leaves_the_next_a_whole_base(
    home: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=4, init_lora_weights="pissa", target_modules=["up_proj"])
    model = get_peft_model(make_base(), config)
    model.peft_config["default"].init_lora_weights = "pissa"
    save_adapter(model, home / "pissa", home / "base")
    runs = drift(home, tmp_path / "out", "pissa", "one/final")
    one = next(r for r in runs if r.name == "final")
    np.testing.assert_allclose(found(one), by_hand(make_model()), atol=1e-5)


def test_the_table_names_risers_then_fallers_with_their_intervals(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoreg.drift.Q", 1.0)
    [run] = drift(home, tmp_path / "out", "full/checkpoint-7")
    rows = run.drifts[0]["places"]["colon"]["emotions"]
    said = capsys.readouterr().out
    moved = {e: r for e, r in rows.items() if r["low"] > 0 or r["high"] < 0}
    assert moved  # control
    for emotion, row in moved.items():
        [line] = [x for x in said.splitlines() if f" {emotion} " in x]
        assert ("rose" if row["drift"] > 0 else "fell") in line
        assert f"{row['drift']:+.2f}" in line
        assert f"[{row['low']:+.2f}, {row['high']:+.2f}]" in line
    monkeypatch.setattr(compare, "SHOWN", 0)
    drift(home, tmp_path / "out", "full/checkpoint-7")
    assert "more" in capsys.readouterr().out


def edit(folder: Path, **settings: Any) -> None:
    path = folder / checkpoints.ADAPTER
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def deeper(folder: Path) -> None:
    """An adapter of a model with one block more."""
    path = folder / checkpoints.WEIGHTS
    tensors = load_file(path)
    more = {k.replace("layers.2.", "layers.3."): t.clone() for k, t in tensors.items()}
    save_file({**more, **tensors}, path)


def shallower(folder: Path) -> None:
    path = folder / checkpoints.WEIGHTS
    save_file({k: t for k, t in load_file(path).items() if "layers.2." not in k}, path)


def wider(folder: Path) -> None:
    path = folder / checkpoints.WEIGHTS
    save_file({k: t.repeat(2, 2) for k, t in load_file(path).items()}, path)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "one is no folder"),
    "empty": (lambda f: (f / checkpoints.ADAPTER).unlink(), "holds neither adapter_config.json"),
    "above": (
        lambda f: shutil.copytree(f, f / "checkpoint-5") and (f / checkpoints.ADAPTER).unlink(),
        "these folders in it do: checkpoint-5",
    ),
    "json": (lambda f: (f / checkpoints.ADAPTER).write_text("{"), "adapter_config.json cannot be"),
    "list": (lambda f: (f / checkpoints.ADAPTER).write_text("[]"), "holds no JSON object"),
    "other base": (
        lambda f: edit(f, base_model_name_or_path="org/other"),
        "is an adapter for org/other .*--model is .*base.*--renamed",
    ),
    "deeper": (deeper, "has no place for 6 of the adapter's weights"),
    "shallower": (shallower, "does not fit .*missing adapter keys"),
    "wider": (wider, "does not fit .*size mismatch"),
    "weights": (lambda f: (f / checkpoints.WEIGHTS).write_bytes(b"x"), "does not fit"),
    "modules": (lambda f: edit(f, target_modules=["nothing"]), "does not fit"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_measured_is_refused_in_words(
    wrong: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = WRONG[wrong]
    shutil.copytree(home / "one" / "final", tmp_path / "one")
    spoil(tmp_path / "one")
    with pytest.raises(SystemExit) as status:
        drift(home, tmp_path / "out", tmp_path / "one")
    assert status.value.code == 1
    error = capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        raise ConfigError(error)


def test_a_whole_model_that_is_damaged_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "merged", tmp_path / "merged")
    (tmp_path / "merged" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit):
        drift(home, tmp_path / "out", tmp_path / "merged")
    assert "merged cannot be loaded" in capsys.readouterr().err


def test_all_that_is_wrong_with_the_folders_is_said_at_once(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        drift(home, tmp_path / "out", "merged", "none", "one/final", "merged", "base/none")
    error = capsys.readouterr().err
    assert error.count("is no folder") == 2
    assert error.count("merged is given twice") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--vectors", "nowhere/at/all"), "nowhere/at/all"),
        (("--prompts", "none.jsonl"), "none.jsonl cannot be read"),
        (("--response-tokens", "-1"), "response_tokens must be >= 0, got -1"),
        (("--blocks", "9"), "not in this vector set"),
        (("--facets", "songs"), "No facet 'songs'"),
        (("--model", "MERGED"), "vectors were made for base"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: tuple[str, ...], said: str, home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = tuple(str(home / "merged") if f == "MERGED" else f for f in flags)
    with pytest.raises(SystemExit):
        drift(home, tmp_path / "out", "full/checkpoint-7", flags=flags)
    assert said in capsys.readouterr().err


def test_names_have_as_many_parts_as_tell_them_apart() -> None:
    places = [Path(p) for p in ("/r/a/final", "/r/b/final", "/r/c")]
    assert names(places) == ["a-final", "b-final", "r-c"]
    assert names(places[1:]) == ["final", "c"]
    assert names([]) == []
