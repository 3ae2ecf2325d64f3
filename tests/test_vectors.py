"""A vector set comes back bit for bit or not at all, and says which model it was made for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import WIDTH, causal_lm, tokenizer, vector_set
from safetensors.torch import load_file, save_file

from emoreg.errors import UnknownEmotionError, VectorFileError, VectorMismatchError
from emoreg.vectors import EmotionVectors, identity

NAMES = "vectors.safetensors", "card.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_saved_set_comes_back_bit_for_bit_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    card = {"model": {"name": "tiny"}, "suggested_blocks": [1], "note": "σ, 平静"}
    saved = vector_set(card=card)
    loaded = EmotionVectors.load(saved.save(tmp_path / "new" / "folder"))
    for mine, theirs in zip(saved.facets, loaded.facets, strict=True):
        assert (mine.name, mine.emotions) == (theirs.name, theirs.emotions)
        assert torch.equal(mine.directions, theirs.directions)
        assert torch.equal(mine.sigma, theirs.sigma)
    assert torch.equal(saved.mu, loaded.mu)
    assert (saved.blocks, saved.suggested_blocks) == (loaded.blocks, loaded.suggested_blocks)
    assert {k: loaded.card[k] for k in card} == card
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "new" / "folder")
    assert sorted(contents(tmp_path / "again")) == sorted(NAMES)


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_write_that_fails_leaves_the_old_files_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector_set().save(tmp_path)
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            vector_set(card={"note": "new"}).save(tmp_path)
    assert contents(tmp_path) == before
    vector_set(card={"note": "new"}).save(tmp_path)
    assert contents(tmp_path) != before  # control


def test_files_of_two_sets_are_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector_set().save(tmp_path)
    replace_file = os.replace

    def fail_at_the_card(source: str, target: Path) -> None:
        if target.name == NAMES[1]:
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_card)
    with pytest.raises(OSError, match="No space left"):
        vector_set(width=16).save(tmp_path)
    with pytest.raises(VectorFileError, match="the two were mixed"):
        EmotionVectors.load(tmp_path)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def card(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "card.json").read_text())
        fields = {k: v for k, v in {**fields, **changes}.items() if v is not None}
        (folder / "card.json").write_text(json.dumps(fields))

    return change


def tensors(name: str, edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    """Change one tensor, and the card with it, as a careful hand would."""

    def change(folder: Path) -> None:
        path = folder / NAMES[0]
        held = load_file(path)
        held[name] = edit(held[name])
        save_file({k: v.contiguous() for k, v in held.items() if v is not None}, path)
        card(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return change


def swap_card(folder: Path) -> None:
    other = vector_set()
    replace(other, mu=other.mu + 1).save(folder / "other")
    (folder / "other" / NAMES[1]).replace(folder / NAMES[1])


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def put_pickle(folder: Path) -> None:
    trap = pickle.dumps(Trap(str(folder / "sprung")))
    pickle.loads(trap)
    (folder / "sprung").unlink()  # control: it does spring
    (folder / NAMES[0]).write_bytes(trap)


def set_at(index: tuple[int, ...], value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.index_put(tuple(torch.tensor(i) for i in index), torch.tensor(value))


STORIES, SIGMA = "stories.directions", "stories.sigma"
SPOILT: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no vectors": (remove(NAMES[0]), [NAMES[0], "cannot be read", "No such file"]),
    "no card": (remove(NAMES[1]), [NAMES[1], "cannot be read"]),
    "truncated vectors": (truncate(NAMES[0]), ["cannot be read as a vector set"]),
    "truncated card": (truncate(NAMES[1]), ["cannot be read as a vector set"]),
    "empty vectors": (write(NAMES[0], b""), ["cannot be read as a vector set"]),
    "card not JSON": (write(NAMES[1], b"desperate: 1"), ["cannot be read as a vector set"]),
    "card not text": (write(NAMES[1], b"\xff\xfe\x00"), ["cannot be read as a vector set"]),
    "card a list": (write(NAMES[1], b"[]"), ["not a card of format"]),
    "another format": (card(format="gguf"), ["not a card of format 'emoreg-vectors-1'"]),
    "pickle": (put_pickle, ["cannot be read as a vector set"]),
    "foreign tensors": (tensors(STORIES, lambda _: None), ["lacks 'stories.directions'"]),
    "no mu": (tensors("mu", lambda _: None), ["lacks 'mu'"]),
    "card without facets": (card(facets=None), ["lacks 'facets'"]),
    "card with facets of another kind": (card(facets=["stories"]), ["lacks"]),
    "no facet": (card(facets={}), ["no facet"]),
    "swapped card": (swap_card, ["not the file that card.json describes", "SHA-256"]),
    "card without hash": (card(sha256=None), ["not the file that card.json describes"]),
    "fewer blocks": (card(blocks=[0, 1]), ["mu has shape (3, 32)", "wanted (3, 2, 32)"]),
    "a scalar mu": (tensors("mu", lambda _: torch.tensor(1.0)), ["mu has shape ()", "stories: shapes"]),
    "NaN": (tensors(STORIES, set_at((1, 0, 3), torch.nan)), ["infinite directions for desperate"]),
    "NaN in mu": (tensors("mu", set_at((0, 0), torch.inf)), ["mu", "not finite"]),
    "not unit": (tensors(STORIES, lambda v: v * 1.01), ["not of unit length", "off by 0.01"]),
    "half precision": (tensors(STORIES, lambda v: v.half()), ["torch.float16", "wanted torch.float32"]),
    "sigma 0": (tensors(SIGMA, set_at((2, 1), 0.0)), ["sigma must be positive"]),
    "sigma negative": (tensors(SIGMA, lambda s: -s), ["sigma must be positive"]),
    "sigma NaN": (tensors(SIGMA, set_at((0, 0), torch.nan)), ["sigma must be positive"]),
    "a duplicate": (
        card(facets={"stories": ["calm", "calm", "happy"], "transcripts": ["calm", "happy"]}),
        ["stories: an emotion stands twice"],
    ),
    "an emotion of a later facet only": (
        card(facets={"stories": ["calm", "desperate", "happy"], "transcripts": ["calm", "sad"]}),
        ["transcripts: sad missing in the first facet"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_set_is_refused_with_what_is_wrong_with_it(
    spoil: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    vector_set().save(tmp_path)
    EmotionVectors.load(tmp_path)  # control: it was whole
    spoil(tmp_path)
    with pytest.raises(VectorFileError) as error:
        EmotionVectors.load(tmp_path)
    assert [w for w in words if w not in str(error.value)] == []
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "sprung").exists()


def test_a_set_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    broken = replace(vector_set(), mu=vector_set().mu * torch.nan)
    with pytest.raises(VectorFileError, match="not finite"):
        broken.save(tmp_path)
    assert contents(tmp_path) == {}


def test_every_problem_of_a_set_is_named_at_once() -> None:
    whole = vector_set()
    stories, transcripts = whole.facets
    facets = replace(stories, directions=2 * stories.directions), replace(transcripts, sigma=-transcripts.sigma)
    with pytest.raises(VectorFileError) as error:
        replace(whole, facets=facets, mu=whole.mu / 0).verify()
    assert str(error.value).count("\n  - ") == 3


def named(model: Any, name: str = "org/tiny-1") -> Any:
    model.config._name_or_path = name
    return model


def made_for(model: Any, tok: Any = None) -> EmotionVectors:
    return vector_set(card={"model": identity(model, tok)})


OTHERS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "width": (lambda: named(causal_lm(hidden_size=48)), ["width: vectors 32, model 48"]),
    "blocks": (lambda: named(causal_lm(num_hidden_layers=2)), ["blocks: vectors 3, model 2"]),
    "name": (lambda: named(causal_lm(), "org/tiny-2"), ["name: vectors 'tiny-1', model 'tiny-2'", "check_name"]),
    "all": (
        lambda: named(causal_lm(hidden_size=48, num_hidden_layers=2), "x/y"),
        ["width:", "blocks:", "name:", "emoreg.extract"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("other", "words"), OTHERS.values(), ids=OTHERS)
def test_a_set_for_another_model_is_refused_with_every_difference(other: Any, words: list[str]) -> None:
    vectors = made_for(named(causal_lm()))
    vectors.check(named(causal_lm(), "/some/where/tiny-1/"))  # control: the same model, elsewhere
    with pytest.raises(VectorMismatchError) as error:
        vectors.check(other())
    assert [w for w in ["made for tiny-1", *words] if w not in str(error.value)] == []


def test_another_name_is_accepted_on_request_and_a_model_without_one_always() -> None:
    vectors, renamed = made_for(named(causal_lm())), named(causal_lm(), "mine")
    with pytest.raises(VectorMismatchError):
        vectors.check(renamed)
    vectors.check(renamed, name=False)
    vectors.check(named(causal_lm(), ""))
    with pytest.raises(VectorMismatchError, match="width"):
        vectors.check(named(causal_lm(hidden_size=48), "mine"), name=False)


def test_another_tokenizer_is_refused() -> None:
    model, own, other = causal_lm(), tokenizer(), tokenizer(merges=[("q", "u")])
    vectors = made_for(model, own)
    vectors.check(model, tokenizer())
    vectors.check(model)
    with pytest.raises(VectorMismatchError, match="tokenizer: vectors"):
        vectors.check(model, other)


def test_a_set_without_a_card_is_not_taken_for_anyones() -> None:
    with pytest.raises(VectorMismatchError, match="made for another model"):
        vector_set().check(causal_lm())


UNKNOWN: dict[str, tuple[Callable[[EmotionVectors], Any], list[str]]] = {
    "near emotion": (lambda v: v.require(["calm", "desparate"]), ["'desparate'", "nearest: desperate"]),
    "far emotion": (lambda v: v.require(["xyzzy"]), ["'xyzzy'", "calm, desperate, happy"]),
    "facet": (lambda v: v.facet("refit"), ["'refit'", "stories, transcripts"]),
    "facet of a probe": (lambda v: v.probe(["refit"]), ["'refit'"]),
    "no facet": (lambda v: v.probe([]), ["vector set"]),
    "block": (lambda v: v.probe(None, [0, 7]), ["[7]", "[0, 1, 2]"]),
    "no block": (lambda v: v.probe(None, []), ["[]", "[0, 1, 2]"]),
}


@pytest.mark.parametrize(("ask", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_a_set_does_not_hold_is_refused_with_what_it_holds(ask: Any, words: list[str]) -> None:
    with pytest.raises(UnknownEmotionError) as error:
        ask(vector_set())
    assert [w for w in words if w not in str(error.value)] == []


def test_a_probe_reads_each_row_with_its_own_direction_and_scale() -> None:
    vectors = vector_set(blocks=(1, 4, 6))
    probe = vectors.probe(["transcripts", "stories"], [6, 1, 6])
    assert probe.blocks == (1, 6)  # the last is the deepest, and none counts twice
    acts = {b: torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(b)) for b in (1, 6)}
    found = probe.read(acts)
    assert found.shape == (2, 2, 5, 5)
    for i, block in enumerate(probe.blocks):
        at = vectors.blocks.index(block)
        for row, (name, emotion) in enumerate(probe.rows):
            facet = vectors.facet(name)
            e = facet.emotions.index(emotion)
            own = (acts[block] - vectors.mu[at]) @ facet.directions[e, at] / facet.sigma[e, at]
            torch.testing.assert_close(found[i, ..., row], own, atol=1e-5, rtol=1e-5)
    assert [probe.rows[i] for i in probe.of("calm")] == [("transcripts", "calm"), ("stories", "calm")]
    assert probe.of("sad") == []


@pytest.mark.parametrize(
    ("blocks", "card", "suggested"),
    [((0, 1, 2), {}, (2,)), (tuple(range(24)), {}, (16,)), ((5,), {}, (5,)), ((0, 1), {"suggested_blocks": [0]}, (0,))],
)  # fmt: skip
def test_the_suggested_block_is_the_cards_or_lies_at_two_thirds(
    blocks: tuple[int, ...], card: dict[str, Any], suggested: tuple[int, ...]
) -> None:
    vectors = vector_set(blocks=blocks, card=card)
    assert vectors.suggested_blocks == suggested
    assert vectors.probe().blocks == suggested
