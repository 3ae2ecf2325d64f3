"""Vector sets on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download

FILES = ["vectors.safetensors", "card.json"]


def download(repo_id: str, subfolder: str = "", revision: str | None = None, **knobs: Any) -> Path:
    """A set's folder in the local cache.

    Args:
        repo_id: ``org/name``.
        subfolder: Where in the repository, if it holds several sets.
        revision: Branch, tag or commit.
        knobs: As for `huggingface_hub.snapshot_download`: ``token``, ``cache_dir``, …

    Raises:
        OSError: No such repository, or it cannot be reached.
    """
    names = [f"{subfolder}/{f}" if subfolder else f for f in FILES]
    found = snapshot_download(repo_id, revision=revision, allow_patterns=names, **knobs)
    return Path(found) / subfolder


def upload(
    vectors: Any, repo_id: str, private: bool | None = None, message: str = "", **knobs: Any
) -> str:
    """Write a set into a model repository, which is made if it is missing; returns its address.

    Args:
        vectors: The set.
        repo_id: ``org/name``.
        private: Of a repository that is made.
        message: Of the commit.
        knobs: As for `HfApi.upload_folder`: ``token``, ``revision``, ``path_in_repo``, …
    """
    api = HfApi(token=knobs.pop("token", None))
    made = api.create_repo(repo_id, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        vectors.save(folder)
        message = message or "Upload emotion vectors"
        found = api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=message, **knobs
        )
    return str(found.commit_url)
