"""What an audit read of the base in a file, for runs that go on without adapters to switch off."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emoreg.audit_view import View
from emoreg.audit_words import Words
from emoreg.errors import ConfigError
from emoreg.files import write_atomic
from emoreg.snapshot import check_lengths

FILE = "emoreg-audit.safetensors"
WORDS = ("ids", "said", "more", "less")


def write(path: Path, view: View, about: Mapping[str, Any]) -> None:
    """Write a base's view, whole or not at all.

    Args:
        path: The file; its folder is made.
        view: Of the base.
        about: What `read` must find to accept it, as JSON can hold it.

    Raises:
        OSError: It cannot be written.
    """
    tensors = {
        "labelled": view.labelled,
        "neutral": view.neutral,
        "loss": torch.from_numpy(view.loss),
        "texts": torch.tensor([i for text in view.texts for i in text], dtype=torch.long),
        "lengths": torch.tensor([len(text) for text in view.texts], dtype=torch.long),
        **{f"places.{place}": acts for place, acts in view.places.items()},
    }
    if view.words is not None:
        tensors |= {f"words.{name}": torch.cat(getattr(view.words, name)) for name in WORDS}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(kept, {"about": json.dumps(about, sort_keys=True)}))


def read(path: Path, about: Mapping[str, Any]) -> View:
    """Read what `write` wrote.

    Raises:
        ConfigError: It is missing, damaged, or of another model, bank, prompts or blocks.
    """
    try:
        with safe_open(path, "pt") as held:
            metadata = held.metadata() or {}
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise ConfigError(f"{path} cannot be read: {e}. {_advice(path)}") from e
    if metadata.get("about") != json.dumps(about, sort_keys=True):
        raise ConfigError(f"{path} was made with another bank, prompts or blocks. {_advice(path)}")
    try:
        return _view(tensors)
    except (KeyError, ValueError, TypeError) as e:
        raise ConfigError(
            f"{path} is damaged: it lacks {e} or has it in another form. {_advice(path)}"
        ) from e


def _view(tensors: Mapping[str, Tensor]) -> View:
    places = {n.removeprefix("places."): t for n, t in tensors.items() if n.startswith("places.")}
    labelled, neutral, loss = (tensors[name] for name in ("labelled", "neutral", "loss"))
    if labelled.dim() != 4 or {t.shape[1:] for t in (neutral, *places.values())} != {
        labelled.shape[2:]
    }:
        raise ValueError("activations of other shapes")
    floats = {torch.float32, torch.float64}
    types = {t.dtype for t in (labelled, neutral, loss, *places.values())}
    if loss.dim() != 1 or not types <= floats:
        raise ValueError(f"losses of shape {tuple(loss.shape)}, or types that are no activations")
    check_lengths(tensors["texts"].numpy(), tensors["lengths"].numpy())
    lengths = tensors["lengths"].tolist()
    texts = tuple(ids.tolist() for ids in tensors["texts"].split(lengths)) if lengths else ()
    return View(
        labelled,
        neutral,
        loss.numpy(),
        places,
        texts,
        _words(tensors, lengths),
        0.0,
    )


def _words(tensors: Mapping[str, Tensor], lengths: Sequence[int]) -> Words | None:
    if "words.ids" not in tensors:
        return None
    places = [length + 1 for length in lengths]  # each token, and what follows the last
    shapes = {(*tensors[f"words.{name}"].shape,) for name in WORDS}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 2 or shape[0] != sum(places):
        raise ValueError("next words of other shapes")
    return Words(*(tuple(tensors[f"words.{name}"].split(places)) for name in WORDS))


def _advice(path: Path) -> str:
    return (
        "Training resumes without adapters to switch off, so the audit compares with what was "
        f"read at step 0: copy {path.name} from the output folder of the run that is resumed, or "
        "leave the audit out."
    )
