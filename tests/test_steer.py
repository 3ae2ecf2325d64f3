"""Steering adds what it says, where it says, and takes it away again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import causal_lm, hooks, tokenizer, vector_set
from torch.nn.functional import cosine_similarity

from emoreg.cli import main
from emoreg.errors import UnknownEmotionError, VectorFileError, VectorMismatchError
from emoreg.identity import identity
from emoreg.steer import steer
from emoreg.tap import Tap
from emoreg.vectors import EmotionVectors

NORMS = [2.0, 3.0, 5.0]


@pytest.fixture(name="bench")
def _bench() -> tuple[Any, Any, EmotionVectors]:
    tok = tokenizer()
    model = causal_lm(vocab_size=len(tok), max_position_embeddings=256)
    card = {"model": identity(model, tok), "norms": NORMS, "suggested_blocks": [0, 1, 2]}
    return model, tok, vector_set(card=card)


def pushes(run: Any, block: int) -> list[torch.Tensor]:
    """What each forward of `run` added to the output of a block, by the tap outside of its own."""
    seen: list[torch.Tensor] = []
    real = Tap._at_block

    def spy(self: Tap, at: int, *rest: Any) -> Any:
        before = rest[-1][0] if isinstance(rest[-1], tuple) else rest[-1]
        after = real(self, at, *rest)
        if after is not None and at == block:
            changed = after[0] if isinstance(after, tuple) else after
            seen.append((changed - before).detach())
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tap, "_at_block", spy)
        run()
    return seen


def test_the_strength_is_a_fraction_of_the_norm_at_every_token(bench: Any) -> None:
    model, tok, vectors = bench
    row = vectors.facets[0].directions[vectors.facets[0].emotions.index("calm"), 1]
    found = pushes(lambda: steer(model, tok, vectors, "calm", ["hi"], 0.5, tokens=2), 1)
    lengths = torch.stack([f.norm(dim=-1).mean() for f in found])
    assert set((lengths * 100).round().int().tolist()) == {0, 150}  # 0.5 of block 1's norm of 3
    first, last = found[0][0, 0], [f for f in found if f.norm() > 1][-1][0, 0]
    assert cosine_similarity(first, row, dim=0) == pytest.approx(-1, abs=1e-4)
    assert cosine_similarity(last, row, dim=0).abs() < 0.9  # the control is another direction


def test_texts_stand_side_by_side_and_the_model_is_left_as_it_was(bench: Any) -> None:
    model, tok, vectors = bench
    model.train()
    before = hooks(model)
    (found,) = steer(model, tok, vectors, "desperate", ["hi"], 4.0, tokens=8)
    assert list(found.texts) == ["-4 desperate", "as it is", "+4 desperate", "+4 random"]
    alone = found.texts.pop("as it is")
    assert alone not in found.texts.values()  # so strong that each differs
    assert hooks(model) == before
    assert model.training


def test_strength_0_changes_nothing(bench: Any) -> None:
    model, tok, vectors = bench
    (found,) = steer(model, tok, vectors, "calm", ["hi"], 0.0, [0, 2], tokens=8)
    assert len(set(found.texts.values())) == 1


def test_what_cannot_be_steered_is_refused(bench: Any) -> None:
    model, tok, vectors = bench
    with pytest.raises(UnknownEmotionError, match="nearest: calm"):
        steer(model, tok, vectors, "clam", ["hi"])
    with pytest.raises(UnknownEmotionError, match="Blocks"):
        steer(model, tok, vectors, "calm", ["hi"], blocks=[9])
    with pytest.raises(VectorMismatchError):
        steer(causal_lm(hidden_size=64), tok, vectors, "calm", ["hi"])
    unscaled = replace(vectors, card={**vectors.card, "norms": None})
    with pytest.raises(VectorFileError, match="no residual norms"):
        steer(model, tok, unscaled, "calm", ["hi"])


def test_the_command_shows_four_columns(capsys: Any) -> None:
    flags = ["--model", "emoreg/tiny/emoreg-tiny", "--vectors", "vectors/tiny"]
    main(["steer", *flags, "--emotion", "calm", "--prompt", "Hello.", "--tokens", "6"])
    out = capsys.readouterr().out
    for name in ("-0.05 calm", "as it is", "+0.05 calm", "+0.05 random"):
        assert name in out
