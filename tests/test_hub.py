"""Sets travel to the hub and back as people expect; nothing but the two files comes down."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import vector_set

from emoreg import hub
from emoreg.errors import VectorFileError
from emoreg.vectors import EmotionVectors

CARD = {"model": {"id": "org/model", "name": "model", "blocks": 3}}


class Hub:
    """A hub in a folder, with the two calls that are used."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def create_repo(self, repo_id: str, **knobs: Any) -> Any:
        self.calls.append(("create_repo", repo_id, knobs))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: str, **knobs: Any) -> Any:
        self.calls.append(("upload_folder", repo_id, knobs))
        target = self.root / repo_id / knobs.get("path_in_repo", "")
        shutil.copytree(folder_path, target, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot(self, repo_id: str, *, allow_patterns: list[str], **knobs: Any) -> str:
        self.calls.append(("snapshot", repo_id, {"allow": allow_patterns, **knobs}))
        cache = self.root / "cache"
        for name in allow_patterns:
            source = self.root / repo_id / name
            if source.exists():
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, cache / name)
        return str(cache)


@pytest.fixture(name="fake")
def _fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")

    def api(token: str | None = None) -> Hub:
        made.calls.append(("token", token, {}))
        return made

    monkeypatch.setattr(hub, "HfApi", api)
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot)
    return made


@pytest.mark.parametrize("folder", ["", "sets/one"])
def test_a_set_comes_back_as_it_went(fake: Hub, folder: str) -> None:
    vectors = vector_set(card=CARD)
    knobs = {"path_in_repo": folder} if folder else {}
    url = vectors.push_to_hub("me/set", private=True, token="t", **knobs)
    assert url == "https://hub/me/set/commit/1"
    assert ("token", "t", {}) in fake.calls
    assert ("create_repo", "me/set", {"private": True, "exist_ok": True}) in fake.calls
    again = EmotionVectors.from_pretrained("me/set", subfolder=folder, revision="v1")
    assert torch.equal(again.mu, vectors.mu)
    for mine, theirs in zip(again.facets, vectors.facets, strict=True):
        assert torch.equal(mine.directions, theirs.directions)
    asked = next(knobs for name, _, knobs in fake.calls if name == "snapshot")
    assert asked["revision"] == "v1"
    assert [Path(p).name for p in asked["allow"]] == ["vectors.safetensors", "card.json"]
    readme = (fake.root / "me/set" / folder / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: emoreg\nbase_model: org/model\n")


def test_a_folder_is_loaded_without_the_hub(fake: Hub, tmp_path: Path) -> None:
    vector_set(card=CARD).save(tmp_path / "set")
    assert EmotionVectors.from_pretrained(tmp_path / "set").emotions
    assert fake.calls == []


def test_a_repository_without_a_set_is_an_error(fake: Hub) -> None:
    (fake.root / "me/other").mkdir(parents=True)
    with pytest.raises(VectorFileError, match="cannot be read"):
        EmotionVectors.from_pretrained("me/other")


def test_a_broken_set_is_not_uploaded(fake: Hub) -> None:
    vectors = vector_set(card=CARD)
    vectors.mu[0, 0] = float("nan")
    with pytest.raises(VectorFileError, match="not finite"):
        vectors.push_to_hub("me/set")
    assert not any(name == "upload_folder" for name, _, _ in fake.calls)
