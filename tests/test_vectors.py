"""A vector set comes back bit for bit or not at all, and says which model it was made for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import WIDTH, causal_lm, tokenizer, vector_set
from safetensors.torch import load_file, save_file
from torch import Tensor

from emoreg.errors import UnknownEmotionError, VectorFileError, VectorMismatchError
from emoreg.identity import identity
from emoreg.vectors import EmotionVectors

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
    assert (loaded.blocks, loaded.suggested_blocks) == (saved.blocks, (1,))
    assert {k: loaded.card[k] for k in card} == card
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "new" / "folder")


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


Spoil = Callable[[Path], None]


def file(name: str, edit: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes())) and None


def card(**changes: Any) -> Spoil:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "card.json").read_text())
        fields = {k: v for k, v in {**fields, **changes}.items() if v is not None}
        (folder / "card.json").write_text(json.dumps(fields))

    return change


def facets(stories: str, transcripts: str) -> Spoil:
    return card(facets={"stories": stories.split(), "transcripts": transcripts.split()})


def tensors(name: str, edit: Callable[[Tensor], Tensor | None]) -> Spoil:
    """Change one tensor, and the card with it, as a careful hand would."""

    def change(folder: Path) -> None:
        path = folder / NAMES[0]
        held = load_file(path)
        held[name] = edit(held[name])
        save_file({k: v.contiguous() for k, v in held.items() if v is not None}, path)
        card(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return change


class Trap:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def set_at(*index: int, to: float) -> Callable[[Tensor], Tensor]:
    return lambda t: t.index_put(tuple(map(torch.tensor, index)), torch.tensor(to))


STORIES, SIGMA = "stories.directions", "stories.sigma"
UNREADABLE, SWAPPED = "cannot be read as a vector set", "not the file that card.json describes"
SCALE = "sigma must be positive and finite"
SPOILT: dict[str, tuple[Spoil, list[str]]] = {
    "no vectors": (
        lambda folder: (folder / NAMES[0]).unlink(),
        [NAMES[0], "cannot be read", "No such file"],
    ),
    "no card": (lambda folder: (folder / NAMES[1]).unlink(), [NAMES[1], "cannot be read"]),
    "truncated vectors": (file(NAMES[0], lambda data: data[:-20]), [UNREADABLE]),
    "truncated card": (file(NAMES[1], lambda data: data[:-20]), [UNREADABLE]),
    "empty vectors": (file(NAMES[0], lambda _: b""), [UNREADABLE]),
    "card not JSON": (file(NAMES[1], lambda _: b"desperate: 1"), [UNREADABLE]),
    "card not text": (file(NAMES[1], lambda _: b"\xff\xfe\x00"), [UNREADABLE]),
    "card a list": (file(NAMES[1], lambda _: b"[]"), ["not a card of format"]),
    "another format": (card(format="gguf"), ["not a card of format 'emoreg-vectors-1'"]),
    "pickle": (file(NAMES[0], lambda _: pickle.dumps(Trap())), [UNREADABLE]),
    "foreign tensors": (tensors(STORIES, lambda _: None), ["lacks 'stories.directions'"]),
    "no mu": (tensors("mu", lambda _: None), ["lacks 'mu'"]),
    "card without facets": (card(facets=None), ["lacks 'facets'"]),
    "card with facets of another kind": (card(facets=["stories"]), ["lacks"]),
    "no facet": (card(facets={}), ["no facet"]),
    "swapped card": (card(sha256="0" * 64), [SWAPPED, "SHA-256"]),
    "card without hash": (card(sha256=None), [SWAPPED]),
    "fewer blocks": (card(blocks=[0, 1]), ["mu has shape (3, 32)", "wanted (3, 2, 32)"]),
    "a scalar mu": (tensors("mu", lambda m: m.sum()), ["mu has shape ()", "stories: shapes"]),
    "NaN": (tensors(STORIES, set_at(1, 0, 3, to=torch.nan)), ["infinite directions for desperate"]),
    "NaN in mu": (tensors("mu", set_at(0, 0, to=torch.inf)), ["mu", "not finite"]),
    "not unit": (tensors(STORIES, lambda v: v * 1.01), ["not of unit length", "off by 0.01"]),
    "half precision": (tensors(STORIES, lambda v: v.half()), ["wanted torch.float32"]),
    "sigma 0": (tensors(SIGMA, set_at(2, 1, to=0.0)), [SCALE]),
    "sigma negative": (tensors(SIGMA, lambda s: -s), [SCALE]),
    "sigma NaN": (tensors(SIGMA, set_at(0, 0, to=torch.nan)), [SCALE]),
    "a duplicate": (facets("calm calm happy", "calm happy"), ["stories: an emotion stands twice"]),
    "a late emotion": (facets("calm sad happy", "bored sad"), ["transcripts: bored missing in"]),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_set_is_refused_with_what_is_wrong_with_it(
    spoil: Spoil, words: list[str], tmp_path: Path
) -> None:
    vector_set().save(tmp_path)
    EmotionVectors.load(tmp_path)  # control: it was whole
    spoil(tmp_path)
    with pytest.raises(VectorFileError) as error:
        EmotionVectors.load(tmp_path)
    assert [w for w in words if w not in str(error.value)] == []
    assert str(tmp_path) in str(error.value)


def test_the_pickle_that_was_refused_would_have_run() -> None:
    with pytest.raises(pytest.fail.Exception, match="unpickled"):  # control
        pickle.loads(pickle.dumps(Trap()))


def test_a_set_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    broken = replace(vector_set(), mu=vector_set().mu * torch.nan)
    with pytest.raises(VectorFileError, match="not finite"):
        broken.save(tmp_path)
    assert contents(tmp_path) == {}


def test_every_problem_of_a_set_is_named_at_once() -> None:
    whole = vector_set()
    worse = [replace(f, directions=2 * f.directions, sigma=-f.sigma) for f in whole.facets]
    with pytest.raises(VectorFileError) as error:
        replace(whole, facets=tuple(worse), mu=whole.mu / 0).verify()
    assert str(error.value).count("\n  - ") == 1 + 2 * len(worse)


def named(model: Any, name: str = "org/tiny-1") -> Any:
    model.config._name_or_path = name
    return model


def made_for(model: Any, tok: Any = None) -> EmotionVectors:
    return vector_set(card={"model": identity(model, tok)})


@pytest.mark.parametrize(
    ("sizes", "name", "words"),
    [
        ({"hidden_size": 48}, "tiny-1", ["width: vectors 32, model 48"]),
        ({"num_hidden_layers": 2}, "tiny-1", ["blocks: vectors 3, model 2"]),
        ({}, "org/tiny-2", ["name: vectors 'tiny-1', model 'tiny-2'", "set check_name to false"]),
        ({"hidden_size": 48, "num_hidden_layers": 2}, "x/y", ["width:", "blocks:", "name:"]),
    ],
)
def test_a_set_for_another_model_is_refused_with_every_difference(
    sizes: dict[str, int], name: str, words: list[str]
) -> None:
    vectors = made_for(named(causal_lm()))
    vectors.check(named(causal_lm(), "/some/where/tiny-1/"))  # control: the same model, elsewhere
    with pytest.raises(VectorMismatchError) as error:
        vectors.check(named(causal_lm(**sizes), name))
    assert [w for w in ["made for tiny-1", *words] if w not in str(error.value)] == []


def test_another_name_is_accepted_on_request_and_a_model_without_one_always() -> None:
    vectors = made_for(named(causal_lm()))
    vectors.check(named(causal_lm(), "mine"), name=False)
    vectors.check(named(causal_lm(), ""))
    with pytest.raises(VectorMismatchError, match="width"):
        vectors.check(named(causal_lm(hidden_size=48), "mine"), name=False)


def test_another_tokenizer_is_refused() -> None:
    model, own, other = causal_lm(), tokenizer(), tokenizer(merges=[("q", "u")])
    vectors = made_for(model, own)
    for same in (tokenizer(), None):
        vectors.check(model, same)
    with pytest.raises(VectorMismatchError, match="tokenizer: vectors"):
        vectors.check(model, other)


def test_a_set_without_a_card_is_not_taken_for_anyones() -> None:
    with pytest.raises(VectorMismatchError, match="made for another model"):
        vector_set().check(causal_lm())


UNKNOWN: dict[str, tuple[Callable[[EmotionVectors], Any], list[str]]] = {
    "near emotion": (lambda v: v.require(["calm", "desparate"]), ["nearest: desperate"]),
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
    assert {probe.rows[i][1] for i in probe.of("calm")} == {"calm"}
    assert (len(probe.of("calm")), probe.of("sad")) == (2, [])


@pytest.mark.parametrize(
    ("blocks", "card", "suggested"),
    [
        ((0, 1, 2), {}, 2),
        (range(24), {}, 16),
        ((5,), {}, 5),
        ((0, 1), {"suggested_blocks": [0]}, 0),
    ],
)
def test_the_suggested_block_is_the_cards_or_lies_at_two_thirds(
    blocks: Sequence[int], card: dict[str, Any], suggested: int
) -> None:
    vectors = vector_set(blocks=blocks, card=card)
    assert vectors.suggested_blocks == vectors.probe().blocks == (suggested,)
