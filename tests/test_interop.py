"""Directions leave for other tools' formats and come back as they were, calibrated anew."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from models import WIDTH, causal_lm, tokenizer, vector_set
from test_extract import planted, texts, world

from emoreg import interop
from emoreg.bank import Text
from emoreg.errors import BankError, BlocksNotFoundError, UnknownEmotionError, VectorFileError
from emoreg.extract import Choices, extract
from emoreg.identity import identity
from emoreg.vectors import EmotionVectors

Formats = pytest.mark.parametrize(
    ("write", "read", "first"),
    [
        (interop.write_gguf, interop.read_gguf, 1),
        (interop.write_persona, interop.read_persona, 0),
    ],
    ids=["gguf", "persona"],
)


@pytest.fixture(name="vectors")
def _vectors() -> EmotionVectors:
    return vector_set(card={"model": {"type": "llama", "blocks": 3, "name": "m"}})


@Formats
@pytest.mark.parametrize("facet", ["stories", "transcripts"])
def test_a_direction_survives_the_round_trip(
    write: Any, read: Any, first: int, facet: str, vectors: EmotionVectors, tmp_path: Path
) -> None:
    path = write(vectors, "calm", tmp_path / "new" / "calm.bin", facet)
    found = read(path)
    rows = vectors.facet(facet).directions[vectors.facet(facet).emotions.index("calm")]
    assert sorted(found) == list(range(first, 3))
    for block, direction in found.items():
        assert torch.equal(direction, rows[block])
    assert [p.name for p in path.parent.iterdir()] == ["calm.bin"]


def test_a_gguf_is_what_repeng_and_llama_cpp_expect(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    held = gguf.GGUFReader(str(interop.write_gguf(vectors, "calm", tmp_path / "c.gguf")))
    fields = {k: f.contents() for k, f in held.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert [t.name for t in held.tensors] == ["direction.1", "direction.2"]
    assert {t.data.dtype for t in held.tensors} == {np.dtype("float32")}


def test_a_persona_tensor_has_a_row_for_the_embeddings_and_each_block(
    vectors: EmotionVectors, tmp_path: Path
) -> None:
    whole = torch.load(interop.write_persona(vectors, "calm", tmp_path / "c.pt"), weights_only=True)
    assert whole.shape == (4, WIDTH)
    assert not whole[0].any()


def test_the_activations_are_those_a_steering_vector_takes(vectors: EmotionVectors) -> None:
    found = interop.layer_activations(vectors, "desperate")
    assert list(found) == [0, 1, 2]
    assert torch.equal(found[2], vectors.facets[0].directions[1, 2])
    with pytest.raises(UnknownEmotionError):
        interop.layer_activations(vectors, "desparate")
    with pytest.raises(VectorFileError, match="'transcripts' has no 'happy'"):
        interop.layer_activations(vectors, "happy", "transcripts")


def test_foreign_directions_are_calibrated_as_extraction_calibrates() -> None:
    model, tok = world()
    made = extract(model, tok, texts(), [0, 1], Choices())
    story = made.facets[0]
    raw = {
        e: {b: 7.0 * story.directions[i, k] for k, b in enumerate(made.blocks)}
        for i, e in enumerate(story.emotions)
    }
    again = interop.calibrate(model, tok, raw, texts(), source="elsewhere")
    again.check(model, tok)
    torch.testing.assert_close(again.mu, made.mu)
    torch.testing.assert_close(again.facets[0].directions, story.directions)
    torch.testing.assert_close(again.facets[0].sigma, story.sigma)
    assert again.card["norms"] == pytest.approx(made.card["norms"])
    assert again.card["source"] == "elsewhere"
    assert planted()[1].shape == (WIDTH,)  # the same world


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    torch.save(Hostile(), path)
    with pytest.raises(VectorFileError, match="cannot be read as a tensor"):
        interop.read_persona(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(VectorFileError, match="cannot be read as a tensor"):
        interop.read_persona(path)
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x00" * 64, b"GGUF" + b"\xff" * 60])
@pytest.mark.parametrize("read", [interop.read_gguf, interop.read_persona])
def test_a_file_of_another_kind_is_refused(content: bytes, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(VectorFileError, match="cannot be read"):
        read(path)
    with pytest.raises(VectorFileError, match="cannot be read"):
        read(tmp_path / "missing")


def test_a_gguf_of_a_model_is_no_control_vector(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(VectorFileError, match=r"no control vector: it holds token_embd.weight"):
        interop.read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("content", [torch.zeros(4), [1, 2], torch.zeros(1, 8)], ids=str)
def test_a_tensor_of_another_shape_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(VectorFileError, match=r"wanted a tensor of \(blocks \+ 1, width\)"):
        interop.read_persona(tmp_path / "x.pt")


ROW = torch.ones(WIDTH)
WRONG: dict[str, tuple[dict[int, torch.Tensor], type[Exception], str]] = {
    "width": ({1: torch.ones(8)}, VectorFileError, r"calm, block 1: shape \(8,\); wanted \(32,\)"),
    "zero": ({1: 0 * ROW}, VectorFileError, "finite and not all zero"),
    "not finite": ({1: float("nan") * ROW}, VectorFileError, "finite and not all zero"),
    "no such block": ({7: ROW}, BlocksNotFoundError, r"Blocks \[7\] asked for"),
}


@pytest.mark.parametrize(("rows", "kind", "words"), WRONG.values(), ids=WRONG)
def test_directions_that_are_none_of_the_models_are_refused(
    rows: dict[int, torch.Tensor], kind: type[Exception], words: str
) -> None:
    model, tok = world()
    with pytest.raises(kind, match=words):
        interop.calibrate(model, tok, {"calm": rows}, texts())


def test_without_neutral_text_nothing_can_be_calibrated() -> None:
    stories = [Text("story", "calm", text="abc")]
    with pytest.raises(BankError, match="at least two neutral texts"):
        interop.calibrate(causal_lm(), tokenizer(), {"calm": {0: ROW}}, stories)


def test_the_set_of_block_0_alone_cannot_leave_as_gguf(tmp_path: Path) -> None:
    only = vector_set(blocks=(0,), card={"model": identity(causal_lm())})
    with pytest.raises(VectorFileError, match="cannot hold block 0"):
        interop.write_gguf(only, "calm", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []
