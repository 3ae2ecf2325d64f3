"""The commands, as a user calls them: what they write, what they say of what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from emoreg import commands
from emoreg.bank import load_bank
from emoreg.cli import blocks, main
from emoreg.tiny import MODEL
from emoreg.tiny.bank import make_bank
from emoreg.tiny.vectors import save_bank
from emoreg.tiny.world import World
from emoreg.vectors import EmotionVectors

COMMON = ["--model", str(MODEL)]


@pytest.fixture(scope="module", name="bank")
def _bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "tiny.jsonl"
    save_bank(make_bank(World(), seed=1)[::5], path)
    return path


@pytest.fixture(scope="module", name="made")
def _made(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "mine"
    main(["extract", *COMMON, "--bank", str(bank), "--out", str(out), "--skip-tokens", "8"])
    return out


def fails(capsys: Any, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("emoreg: ")
    return str(said)


def test_extract_writes_a_set_that_loads_and_a_card_that_says_how(made: Path) -> None:
    vectors = EmotionVectors.load(made)
    assert [f.name for f in vectors.facets] == ["stories", "transcripts"]
    assert {p.name for p in made.iterdir()} == {"vectors.safetensors", "card.json", "README.md"}
    card = json.loads((made / "card.json").read_text())
    assert card["choices"]["skip_tokens"] == 8
    assert len(card["norms"]) == 6
    for key in ("name", "width", "blocks", "config", "tokenizer", "chat_template", "revision"):
        assert key in card["model"]
    assert "Not validated" in (made / "README.md").read_text()
    assert "were not validated" in vectors.caveat


def test_validate_writes_its_findings_and_the_verdict_into_the_card(
    made: Path, bank: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "findings"
    main(["validate", *COMMON, "--bank", str(bank), "--vectors", str(made), "--out", str(out)])
    said = capsys.readouterr().out
    found = json.loads((out / "validation.json").read_text())
    assert f"{found['verdict']}: {found['reason']}" in said.replace("\n", " ")
    assert all(gate["name"] in said for gate in found["gates"])
    assert (out / "validation.html").read_text().startswith("<!DOCTYPE html>")
    checked = EmotionVectors.load(out)
    assert checked.card["validation"]["verdict"] == found["verdict"]
    assert checked.caveat.startswith(f"These vectors are {found['verdict']}") or not checked.caveat
    assert found["verdict"].capitalize() in (out / "README.md").read_text()


def test_the_embedded_model_cannot_read_english_and_is_told_so(tmp_path: Path) -> None:
    """The bank in English on a model of another world: a verdict, with the reason."""
    folder, few = tmp_path / "set", tmp_path / "bank"
    few.mkdir()
    texts = [t for t in load_bank() if not t.messages]
    topics = sorted({t.topic for t in texts})[:9]
    save_bank([t for t in texts if t.topic in topics], few / "stories.jsonl")
    main(["extract", *COMMON, "--bank", str(few), "--out", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main(["validate", *COMMON, "--bank", str(few), "--vectors", str(folder), "--strict"])
    assert stop.value.code == 2
    found = json.loads((folder / "validation.json").read_text())
    assert found["verdict"] == "not usable"
    assert "split_half_cosine" in found["reason"]
    assert "auroc_desperate_response" in found["reason"]  # not measured: there are no transcripts


def test_a_set_is_not_replaced_unless_asked(made: Path, bank: Path, capsys: Any) -> None:
    before = (made / "vectors.safetensors").stat().st_mtime_ns
    argv = ["extract", *COMMON, "--bank", str(bank), "--out", str(made), "--skip-tokens", "8"]
    assert "holds a vector set already" in fails(capsys, *argv)
    assert (made / "vectors.safetensors").stat().st_mtime_ns == before
    main([*argv, "--overwrite", "--blocks", "2-4"])
    assert EmotionVectors.load(made).blocks == (2, 3, 4)
    main([*argv, "--overwrite"])


def rows(bank: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bank.read_text().splitlines()]


def changed(bank: Path, tmp_path: Path, how: str) -> Path:
    path, found = tmp_path / "changed.jsonl", rows(bank)
    if how == "empty":
        found = []
    elif how == "one emotion":
        found = [r for r in found if r["kind"] == "neutral" or r.get("label") == "calm"]
    elif how == "one text each":
        seen: set[str] = set()
        found = [
            r
            for r in found
            if r["kind"] == "neutral"
            or not ((r["kind"], r["label"]) in seen or seen.add((r["kind"], r["label"])))  # type: ignore[func-returns-value]
        ]
    text = "".join(json.dumps(r) + "\n" for r in found)
    path.write_text(text + ('{"kind": "story", ' if how == "cut" else ""))
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("empty", "holds no text; wanted a file of JSON lines"),
        ("one emotion", "texts of split 'fit' for ['calm']; wanted at least two"),
        ("one text each", "one text each for afraid, "),
        ("cut", "changed.jsonl, line "),
    ],
)
def test_a_bad_bank_is_one_line(
    how: str, words: str, bank: Path, tmp_path: Path, capsys: Any
) -> None:
    path, out = changed(bank, tmp_path, how), tmp_path / "out"
    argv = ["--bank", str(path), "--out", str(out), "--skip-tokens", "8"]
    assert words in fails(capsys, "extract", *COMMON, *argv)
    assert not out.exists()


def test_emotions_without_held_out_topics_cannot_be_validated(
    made: Path, bank: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "fit.jsonl"
    kept = [r for r in rows(bank) if r.get("label") != "sad" or r.get("split") != "held-out"]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    said = fails(capsys, "validate", *COMMON, "--bank", str(path), "--vectors", str(made))
    assert "No held-out stories for sad" in said


def test_a_model_or_a_set_that_is_not_there_is_one_line(made: Path, capsys: Any) -> None:
    said = fails(capsys, "validate", "--model", "/nowhere/model", "--vectors", str(made))
    assert "/nowhere/model cannot be loaded" in said
    said = fails(capsys, "extract", *COMMON, "--bank", "/nowhere", "--out", "/tmp/x")
    assert "/nowhere cannot be read" in said


def test_a_full_disk_leaves_nothing_half_written(
    bank: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, written = tmp_path / "out", os.fsync, []

    def full(number: int) -> None:
        written.append(number)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    argv = ["extract", *COMMON, "--bank", str(bank), "--out", str(out), "--skip-tokens", "8"]
    assert "No space left on device" in fails(capsys, *argv)
    assert [p.name for p in out.iterdir()] == [".progress"]  # what was read is not lost
    monkeypatch.undo()
    main(argv)  # control
    assert EmotionVectors.load(out)


def test_an_interrupted_command_goes_on(
    bank: Path, made: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = tmp_path / "out", commands.extract, []

    def stopped(*args: Any) -> Any:
        def tell(*_: int) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt

        return real(*args[:5], tell, *args[6:])

    monkeypatch.setattr(commands, "extract", stopped)
    argv = ["extract", *COMMON, "--bank", str(bank), "--out", str(out), "--skip-tokens", "8"]
    argv += ["--batch-tokens", "2000"]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == [".progress"]
    monkeypatch.undo()
    main(argv)
    assert not (out / ".progress").exists()
    one, other = EmotionVectors.load(out), EmotionVectors.load(made)
    assert (one.facets[0].directions * other.facets[0].directions).sum(-1).min() > 0.999999


def test_a_base_model_is_read_on_stories_alone(bank: Path, tmp_path: Path, capsys: Any) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(MODEL, base, ignore=shutil.ignore_patterns("chat_template.jinja"))
    argv = ["--bank", str(bank), "--out", str(out), "--skip-tokens", "8"]
    assert "--facets stories" in fails(capsys, "extract", "--model", str(base), *argv)
    main(["extract", "--model", str(base), *argv, "--facets", "stories"])
    assert [f.name for f in EmotionVectors.load(out).facets] == ["stories"]


def test_blocks_that_the_set_lacks_and_folders_that_are_none(made: Path, capsys: Any) -> None:
    argv = ["validate", *COMMON, "--vectors", str(made)]
    assert "Blocks [99] are not in this vector set" in fails(capsys, *argv, "--blocks", "99")
    for name in ("/nowhere/at/all", "./nowhere"):
        said = fails(capsys, "validate", *COMMON, "--vectors", name)
        assert "nowhere" in said
    file = made / "card.json"
    assert "cannot be written" in fails(capsys, "extract", *COMMON, "--out", str(file / "x"))


@pytest.mark.parametrize(("text", "found"), [("3", [3]), ("2-4", [2, 3, 4]), ("1, 5-6", [1, 5, 6])])
def test_blocks_are_lists_and_ranges(text: str, found: list[int]) -> None:
    assert blocks(text) == found


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "1;2"])
def test_other_blocks_are_refused(text: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["extract", *COMMON, "--out", "x", f"--blocks={text}"])
    assert stop.value.code == 2
    assert "is no list of blocks" in capsys.readouterr().err


def test_the_bank_command_checks_a_bank_with_stories_alone(tmp_path: Path, capsys: Any) -> None:
    stories = [t for t in load_bank() if t.kind in ("story", "neutral")]
    save_bank(stories, tmp_path / "stories.jsonl")
    main(["bank", str(tmp_path)])
    assert "0 problems" in capsys.readouterr().out


def test_the_bank_command_tells_what_is_wrong(tmp_path: Path, capsys: Any) -> None:
    from emoreg.bank import OWN_BANK

    for file in OWN_BANK.glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    main(["bank", str(tmp_path)])
    assert "0 problems" in capsys.readouterr().out
    assert (tmp_path / "card.json").exists()
    path = tmp_path / "stories.jsonl"
    path.write_text(path.read_text().replace('"text": "', '"text": "So hopeful. ', 1))
    with pytest.raises(SystemExit) as stop:
        main(["bank", str(tmp_path)])
    assert stop.value.code == 2
    assert "names an emotion: hopeful" in capsys.readouterr().out
