"""What is fuzzed as tensors: vector sets, kept readings, states, formats of other tools."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fuzz_harness import Bomb, Target
from fuzz_mutants import (
    damaged,
    mutated,
    plain,
    retyped,
    stored,
    tensors_like,
)
from hypothesis import strategies as st
from models import vector_set
from safetensors.torch import load as load_tensors
from torch import Tensor

from emoreg import audit_kept, control, interop, kept
from emoreg.audit_view import View
from emoreg.audit_words import Words
from emoreg.card import brief, markdown
from emoreg.errors import EmoregError
from emoreg.refit import Refitter
from emoreg.schedule import Dual
from emoreg.snapshot import Snapshot
from emoreg.vectors import EmotionVectors

Draw = Any
BLOCKS, WIDTH = (1, 2), 4
GATE = {"name": "held_out", "value": 0.9, "bar": 0.5, "passed": True, "control": {"p95": 0.2},
        "note": "12 emotions"}  # fmt: skip
CARD = {
    "model": {"name": "m", "id": None, "type": "llama", "width": WIDTH, "blocks": 3},
    "source": "extract", "bank": "5f2c", "texts": {"story": 3}, "choices": {"skip_tokens": 50},
    "suggested_blocks": [2], "norms": [1.0, 2.0],
    "validation": {"verdict": "usable", "reason": "2 of 2 gates passed", "gates": [GATE]},
}  # fmt: skip
SET = vector_set(None, BLOCKS, WIDTH, CARD)


def _saved() -> tuple[dict[str, Any], dict[str, Tensor]]:
    with TemporaryDirectory() as folder:
        SET.save(folder)
        card = json.loads((Path(folder) / "card.json").read_bytes())
        return card, load_tensors((Path(folder) / "vectors.safetensors").read_bytes())


WHOLE_CARD, TENSORS = _saved()


@st.composite
def vector_files(draw: Draw) -> dict[str, bytes]:
    """A set's files; the card mostly has the sum of the damaged tensors, so that they are read."""
    data: bytes = draw(stored(tensors_like(TENSORS)))
    card = dict(WHOLE_CARD)
    if draw(st.integers(0, 4)):
        card["sha256"] = hashlib.sha256(data).hexdigest()
    text = draw(mutated(card)).encode("utf-8", "surrogatepass")
    if not draw(st.integers(0, 4)):
        text = draw(damaged(text))
    found = {"vectors.safetensors": data, "card.json": text}
    if not draw(st.integers(0, 40)):
        del found[draw(st.sampled_from(sorted(found)))]
    return found


def check_vectors(found: EmotionVectors) -> None:
    """It can be read with, told of, written down and saved again."""
    found.verify()
    found.probe().read({b: torch.zeros(2, found.width) for b in found.suggested_blocks})
    found.require(found.emotions)
    assert isinstance(found.caveat, str)
    for text in (json.dumps(dict(found.card), ensure_ascii=False), markdown(found.card)):
        text.encode()
    json.dumps(brief(found.card))
    assert list(found.blocks) == sorted(set(found.blocks))
    assert all(type(b) is int and b >= 0 for b in found.blocks)
    assert all(type(e) is str for f in found.facets for e in f.emotions)


def _snapshot() -> dict[str, np.ndarray[Any, Any]]:
    places = {p: np.ones((2, 2, 3), np.float32) for p in ("colon", "response")}
    numbers = np.ones((2, WIDTH), np.float32), np.ones(2, np.float32)
    return Snapshot(places, *numbers, ([5, 6, 7], [8])).tensors()


ABOUT = {"prompts": "d00d", "response_tokens": 2}
SNAPSHOT = {f"base/{k}": torch.from_numpy(v) for k, v in _snapshot().items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    known = {n: t for n, t in tensors.items() if t.dtype is not torch.bfloat16}
    return kept._digest({n: t.numpy() for n, t in known.items() if "float8" not in str(t.dtype)})


@st.composite
def kept_files(draw: Draw) -> dict[str, bytes]:
    """Snapshots whose sum is mostly right."""
    tensors = draw(tensors_like(SNAPSHOT))
    metadata = {
        "format": kept.FORMAT, "about": draw(mutated(ABOUT, 1)), "digest": _digest(tensors),
    }  # fmt: skip
    if not draw(st.integers(0, 5)):
        del metadata[draw(st.sampled_from(sorted(metadata)))]
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {"kept": draw(stored(st.just(tensors), st.just(clean), deep))}


def load_kept(folder: Path) -> dict[str, Snapshot]:
    try:
        return kept.read(folder / "kept", ABOUT)
    except kept.NotThese as e:  # which never leaves the package
        raise EmoregError(str(e)) from e


def check_kept(found: dict[str, Snapshot]) -> None:
    for snapshot in found.values():
        assert kept.digest(snapshot)
        assert snapshot.places["colon"].ndim == 3
        assert all(p.shape == snapshot.places["colon"].shape for p in snapshot.places.values())
        assert snapshot.mean.shape == (len(snapshot.length), *snapshot.mean.shape[1:])
        assert all(type(i) is int for text in snapshot.texts for i in text)


VIEW = View(
    torch.ones(3, 2, 2, WIDTH), torch.ones(5, 2, WIDTH), np.ones(2),
    {"colon": torch.ones(2, 2, WIDTH), "response": torch.ones(2, 2, WIDTH)}, ([5, 6], [7]),
    Words(*(tuple(torch.ones(n, 4) for n in (3, 2)) for _ in range(4))), 0.0,
)  # fmt: skip


def _view_file() -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        audit_kept.write(Path(folder) / audit_kept.FILE, VIEW, ABOUT)
        return load_tensors((Path(folder) / audit_kept.FILE).read_bytes())


@st.composite
def view_files(draw: Draw, view: dict[str, Tensor]) -> dict[str, bytes]:
    about = json.dumps(ABOUT, sort_keys=True)
    metadata = {"about": about if draw(st.integers(0, 5)) else draw(mutated(ABOUT))}
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {audit_kept.FILE: draw(stored(tensors_like(view), st.just(clean), deep))}


def check_view(view: View) -> None:
    assert view.labelled.ndim == 4
    assert view.neutral.shape[1:] == view.labelled.shape[2:]
    assert view.loss.ndim == 1
    assert all(p.shape[1:] == view.labelled.shape[2:] for p in view.places.values())
    assert all(type(i) is int for text in view.texts for i in text)
    if view.words is not None:
        wanted = [len(text) + 1 for text in view.texts]
        for name in audit_kept.WORDS:
            assert [len(t) for t in getattr(view.words, name)] == wanted


class Refits(Refitter):
    """A refitter without a model."""

    def __init__(self) -> None:
        self.probe, self.emotions, self.rows = SET.probe(blocks=BLOCKS), ["desperate"], []

    def prepare(self, base: Any) -> None:
        """There is no base to read."""


def controlled() -> control.Control:
    """A control with adaptive weights and refits, without a trainer."""
    made = object.__new__(control.Control)
    made.trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=7), accelerator=SimpleNamespace(autocast=nullcontext)
    )
    made.terms = SimpleNamespace(weights={}, extend=lambda facets: list(facets))
    made._dual = Dual({"desperate": 0.1, "calm": 0.2}, 0.5, 0.05, 10.0, 0.1)
    made._refitter = Refits()
    return made


FACETS = {
    "0.direction": SET.facets[0].directions[0].clone(), "0.sigma": SET.facets[0].sigma[0].clone(),
    "step": torch.tensor([7]),
}  # fmt: skip


@st.composite
def control_files(draw: Draw) -> dict[str, bytes]:
    dual = {"weights": {"desperate": 0.3, "calm": 0.1}, "losses": 12, "sum": 1.5, "lowest": 0.7}
    metadata = {
        "format": control.FORMAT, "dual": draw(mutated(dual)),
        "refit": draw(mutated([["transcripts@7", "desperate"]])),
    }  # fmt: skip
    if not draw(st.integers(0, 5)):
        del metadata[draw(st.sampled_from(sorted(metadata)))]
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {"c.safetensors": draw(stored(tensors_like(FACETS), st.just(clean), deep))}


def load_control(folder: Path) -> control.Control:
    found = controlled()
    with patch.object(control, "base_model", lambda _: nullcontext()):
        found._restore(folder / "c.safetensors")
    return found


def check_control(found: control.Control) -> None:
    assert found._dual is not None
    assert found._refitter is not None
    assert all(math.isfinite(w) and w >= 0 for w in found._dual.weights.values())
    found._dual.update({"calm": 1.0, "desperate": -1.0}, 2.0)
    json.dumps(found._dual.state(), allow_nan=False)
    for facet in found._refitter.facets():
        assert facet.directions.shape == (1, len(BLOCKS), WIDTH)
        assert bool(facet.directions.isfinite().all())
        assert facet.sigma.shape == (1, len(BLOCKS))
        assert bool((facet.sigma >= 0).all() and facet.sigma.isfinite().all())


def _gguf() -> bytes:
    with TemporaryDirectory() as folder:
        return interop.write_gguf(SET, "calm", Path(folder) / "c.gguf").read_bytes()


def _entry(name: str, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + content


@st.composite
def gguf_files(draw: Draw, data: bytes) -> dict[str, bytes]:
    """Damaged bytes, or a field more that claims to hold much."""
    if draw(st.booleans()):
        return {"c": draw(damaged(data))}
    element = draw(st.sampled_from([0, 1, 4, 7, 8, 9, 10, 12, 13, 99]))
    count = draw(st.sampled_from([0, 1, 5, 2**20, 2**40, 2**63, 2**64 - 1]))
    array = struct.pack("<IQ", element, count) * draw(st.sampled_from([1, 2, 40, 3000]))
    entry = _entry(draw(st.sampled_from(["a", "general.alignment"])), 9, array)
    if draw(st.booleans()):
        alignment = draw(st.sampled_from([0, 1, 3, 32, 2**31, 2**32 - 1]))
        entry = _entry("general.alignment", 4, struct.pack("<I", alignment))
    number = struct.unpack("<Q", data[16:24])[0] + 1
    return {"c": data[:16] + struct.pack("<Q", number) + entry + data[24:]}


@st.composite
def persona_files(draw: Draw) -> dict[str, bytes]:
    rows = np.ones((4, WIDTH), np.float32)
    saved: Any = draw(
        st.one_of(retyped(rows), retyped(rows), plain, st.just({"calm": torch.ones(4)}))
    )
    kind = draw(st.sampled_from(["", "", "bytes", "bomb"]))
    buffer = io.BytesIO()
    torch.save(Bomb() if kind == "bomb" else saved, buffer)
    data = buffer.getvalue()
    return {"p": draw(damaged(data)) if kind == "bytes" else data}


def check_directions(found: dict[int, Tensor]) -> None:
    assert found
    for block, row in found.items():
        assert type(block) is int
        assert block >= 0
        assert row.ndim == 1
        assert row.dtype is torch.float32


BINARY: dict[str, Target] = {
    "vectors": Target(vector_files(), EmotionVectors.load, check_vectors),
    "kept": Target(kept_files(), load_kept, check_kept),
    "audit": Target(
        view_files(_view_file()), lambda p: audit_kept.read(p / audit_kept.FILE, ABOUT), check_view
    ),
    "control": Target(control_files(), load_control, check_control),
    "gguf": Target(gguf_files(_gguf()), lambda p: interop.read_gguf(p / "c"), check_directions),
    "persona": Target(persona_files(), lambda p: interop.read_persona(p / "p"), check_directions),
}
