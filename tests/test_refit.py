"""A refit finds what is new, keeps what tells the most, and leaves the model as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from trainers import WIDTH, hooks, make_model, make_tokenizer, make_vectors
from transformers import AutoTokenizer

from emoreg import refits
from emoreg.bank import Text
from emoreg.base import adapters_off
from emoreg.errors import BankError, ConfigError
from emoreg.refit import Neutral, Refitter
from emoreg.samples import Sample
from emoreg.tiny import MODEL

STATES = ("calm", "desperate", "happy")
READ = [0, 1]
SAID = {"calm": "All is well.", "desperate": "Nothing works!", "happy": "What a day!"}


def transcript(state: str, topic: str, number: int = 0) -> Text:
    asked = {"role": "user", "content": f"{topic}: {SAID[state]} Say {number}."}
    return Text(
        "transcript", state, "fit", topic, messages=(asked, {"role": "assistant", "content": "So."})
    )


TALK = [transcript(s, f"topic {t}", n) for t in range(8) for s in STATES for n in range(2)]
NOTES = [
    Text("neutral", text=f"Two and two are {w}, in the harbour.") for w in ("four", "five", "six")
]
TEXTS = [*TALK, *NOTES]


def make_refitter(texts: Any = TEXTS, tokenizer: Any = None, **how: Any) -> Refitter:
    probe = make_vectors().probe(None, READ)
    emotions = how.pop("emotions", ("desperate",))
    settings = {"most": 4, "number": 48, "response_tokens": 0, **how}
    return Refitter(tokenizer or make_tokenizer(), probe, emotions, texts, **settings)


@contextmanager
def base_of(model: Any) -> Iterator[Any]:
    with adapters_off(model):
        yield model


# --- planted activations --------------------------------------------------------------------


def own_directions(refitter: Refitter, emotion: str = "desperate") -> Tensor:
    """Of the set, (facets, blocks, width)."""
    return refitter.probe.directions[:, refitter.probe.of(emotion)].transpose(0, 1)


def new_direction(refitter: Refitter, seed: int) -> Tensor:
    """Unit length, across the set's own, (blocks, width)."""
    draw = torch.randn(len(READ), WIDTH, generator=torch.Generator().manual_seed(seed))
    for own in own_directions(refitter):
        draw = draw - (draw * own).sum(-1, keepdim=True) * own
    return normalize(draw, dim=-1)


def planted(refitter: Refitter, extra: Tensor, noise: float = 0.3) -> Sample:
    """Desperate texts have 2 along the set's first direction, and `extra`, (blocks, width)."""
    draw = torch.Generator().manual_seed(7)
    acts = noise * torch.randn(len(TALK), len(READ), WIDTH, generator=draw)
    desperate = torch.tensor([t.label == "desperate" for t in TALK])
    acts[desperate] += 2 * own_directions(refitter)[0] + extra
    return Sample(tuple(TALK), acts)


def neutral(scale: float = 1.0) -> Neutral:
    draw = torch.randn(64, len(READ), WIDTH, generator=torch.Generator().manual_seed(3))
    return Neutral(scale * draw, [torch.zeros(0, WIDTH) for _ in READ])


def refitted(refitter: Refitter, sample: Sample, step: int) -> dict[str, float]:
    """What a refit finds in these activations in place of a model's."""
    refitter._neutral = neutral()
    refitter._encoded = lambda _model: []  # type: ignore[method-assign]
    refitter._read = lambda _model, _encoded: sample  # type: ignore[method-assign]
    return refitter.fit(torch.nn.Identity(), step)


def test_a_direction_that_is_new_becomes_a_facet_across_the_earlier_ones() -> None:
    refitter = make_refitter()
    new = new_direction(refitter, 1)
    logs = refitted(refitter, planted(refitter, 3 * new), 5)
    (row,) = refitter.rows
    assert (row.name, row.emotion) == ("transcripts@5", "desperate")
    assert torch.allclose(row.direction.norm(dim=-1), torch.ones(2))
    assert (row.direction * new).sum(-1).min() > 0.95
    assert (own_directions(refitter) * row.direction).sum(-1).abs().max() < 1e-6
    assert logs == {"refit_facets/desperate": 1.0, "refit_auroc/desperate": 1.0}
    wanted = torch.einsum("tbw,bw->tb", neutral().tokens, row.direction).std(0)
    assert torch.equal(row.sigma, wanted)
    again = refitted(refitter, planted(refitter, 3 * new), 6)  # nothing is new any more
    assert [r.name for r in refitter.rows] == ["transcripts@5"]
    assert again["refit_auroc/desperate"] < refits.USEFUL


def test_without_a_new_direction_there_is_no_facet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding leaves of a direction may tell all states apart, and is none."""
    refitter, nothing = make_refitter(), torch.zeros(len(READ), WIDTH)
    for noise in (0.3, 0.0):
        logs = refitted(refitter, planted(refitter, nothing, noise), 5)
        assert refitter.rows == []
        assert logs["refit_facets/desperate"] == 0
        assert logs["refit_auroc/desperate"] < 0.7
    monkeypatch.setattr(refits, "NEW", 0.0)
    rounding = 1e-7 * new_direction(refitter, 1)
    refitted(refitter, planted(refitter, rounding, 0.0), 5)
    assert len(refitter.rows) == 1  # control


def test_a_block_with_nothing_new_has_no_direction() -> None:
    refitter = make_refitter()
    new = new_direction(refitter, 1)
    new[0] *= 1e-7  # as of a block below all adapters
    refitted(refitter, planted(refitter, 3 * new, 0.0), 5)
    (row,) = refitter.rows
    assert row.direction[0].abs().max() == 0
    assert (row.direction[1] * new[1]).sum() > 0.95
    (facet,) = refitter.facets()
    probe = refitter.probe.beside([facet])
    acts = {b: torch.randn(2, 3, WIDTH) for b in READ}
    read = probe.read(acts)
    assert read[0].abs().max() == 0
    assert read.isfinite().all()
    assert read[1].abs().min() > 0  # control


def test_the_most_useful_facets_are_kept_and_no_more_than_asked_for() -> None:
    def names(most: int, last: tuple[float, ...]) -> list[str]:
        refitter = make_refitter(most=most)
        found = [new_direction(refitter, seed) for seed in (1, 2, 3)]
        for step, weights in enumerate([(3, 0, 0), (3, 3, 0), last], 1):
            extra = sum(w * v for w, v in zip(weights, found, strict=True))
            refitted(refitter, planted(refitter, extra), step)
        return [row.name.removeprefix("transcripts@") for row in refitter.rows]

    assert names(8, (3, 3, 3)) == ["1", "2", "3"]  # with the set's two
    assert names(4, (0.3, 3, 3)) == ["2", "3"]
    assert names(4, (3, 0.3, 3)) == ["1", "3"]
    assert names(8, (0, 3, 3)) == ["2", "3"]  # one that tells nothing goes in any case
    assert names(2, (3, 3, 3)) == []


def test_state_and_restore_are_exact_and_foreign_states_are_refused() -> None:
    refitter = make_refitter(emotions=("desperate", "calm"))
    refitted(refitter, planted(refitter, 3 * new_direction(refitter, 1)), 5)
    tensors, names = refitter.state()
    again = make_refitter(emotions=("desperate", "calm"))
    again.restore(tensors, names)
    assert [(r.name, r.emotion) for r in again.rows] == [(r.name, r.emotion) for r in refitter.rows]
    assert len(again.rows) >= 1
    for found, wanted in zip(again.facets(), refitter.facets(), strict=True):
        assert torch.equal(found.directions, wanted.directions)
        assert torch.equal(found.sigma, wanted.sigma)
    wrong = {k: v[..., :-1] for k, v in tensors.items()}
    for given, emotions in ((wrong, ("desperate", "calm")), (tensors, ("happy",))):
        other = make_refitter(emotions=emotions)
        with pytest.raises(ConfigError, match="Resume with the vectors, emotions and blocks"):
            other.restore(given, names)
        assert other.rows == []


# --- a model --------------------------------------------------------------------------------


def read_by_hand(model: Any, ids: list[int]) -> Tensor:
    """Block outputs of one row, (tokens, blocks, width)."""
    seen: list[Tensor] = []
    layers = [model.get_base_model().model.layers[b] for b in READ]
    handles = [layer.register_forward_hook(lambda *a: seen.append(a[-1][0])) for layer in layers]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen, 1)


def test_sigma_is_the_spread_under_the_base_and_directions_are_of_the_current_model() -> None:
    model = make_model().eval()
    refitter = make_refitter(most=8)
    refitter.prepare(base_of(model))
    refitter.fit(model, 3)
    assert refitter.rows
    ids = [make_tokenizer()(t.text)["input_ids"] for t in NOTES]
    with model.disable_adapter():
        base = torch.cat([read_by_hand(model, row)[1:] for row in ids])
    now = torch.cat([read_by_hand(model, row)[1:] for row in ids])
    for row in refitter.rows:
        sigma, other = (torch.einsum("tbw,bw->tb", x, row.direction).std(0) for x in (base, now))
        assert torch.allclose(row.sigma, sigma, rtol=1e-4)
        assert not torch.allclose(sigma, other, rtol=1e-2)  # control: the adapter is far from zero
    held = make_refitter(most=8)
    held.prepare(base_of(model))
    with model.disable_adapter():
        held.fit(model, 3)
    assert not torch.allclose(held.rows[0].direction, refitter.rows[0].direction, atol=0.05)


def random_state() -> tuple[Any, ...]:
    numbers = np.random.get_state()
    return torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2], random.getstate()  # type: ignore[index]


def test_a_refit_leaves_the_model_and_every_random_state_as_they_were() -> None:
    model = make_model(lora_dropout=0.5).train()
    model.get_base_model().model.layers[1].eval()
    refitter = make_refitter(response_tokens=4)

    def state() -> list[Any]:
        modes = [m.training for m in model.modules()]
        flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        own = [sorted(vars(m)) for m in model.modules()]
        return [hooks(model), modes, flags, own, vars(model.generation_config), random_state()]

    before, values = state(), [p.clone() for p in model.parameters()]
    refitter.prepare(base_of(model))
    logs = [refitter.fit(model, step) for step in (1, 2)]
    assert state() == before
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert logs[0]["refit_auroc/desperate"] > 0
    twin = make_refitter(response_tokens=4)  # control: had dropout been on, these would differ
    twin.prepare(base_of(model))
    assert twin.fit(model, 1) == logs[0]


def test_the_models_own_answers_are_read_in_the_states_of_the_transcripts() -> None:
    model = make_model().eval()
    refitter = make_refitter(response_tokens=5)
    tokenizer = make_tokenizer()
    for item in refitter._own(model)[::7]:
        prompt = tokenizer.apply_chat_template(
            list(item.text.messages[:-1]), add_generation_prompt=True, return_dict=False
        )
        out = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=5, do_sample=False,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long), eos_token_id=1,
        )[0].tolist()  # fmt: skip
        assert item.ids[: len(prompt)] == prompt
        said = item.ids[len(prompt) :]
        assert said == [t for t in out[len(prompt) :] if t != 1][:5] or said == [1]
        assert item.counted == list(range(len(prompt), len(item.ids)))
        assert item.colons == [len(prompt) - 1]


def test_a_context_without_room_for_answers_leaves_them_out() -> None:
    model = make_model().eval()
    refitter = make_refitter(response_tokens=1024)
    refitter.prepare(base_of(model))
    refitter.fit(model, 1)
    assert all(row.name.startswith("transcripts@") for row in refitter.rows)


# --- what it refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([t for t in TEXTS if t.label != "desperate"], "16 of calm, 16 of happy; and 3 neutral"),
        ([t for t in TEXTS if t.label in ("desperate", "")], "transcripts: 16 of desperate; and 3"),
        ([*TALK, NOTES[0]], "1 neutral texts"),
        ([t for t in TEXTS if t.label == "calm" or t in TALK[2:4] + NOTES], "16 of calm, 2 of d"),
        ([], "transcripts: none; and 0 neutral texts"),
    ],
)  # fmt: skip
def test_a_bank_that_tells_no_states_is_refused(texts: list[Text], words: str) -> None:
    with pytest.raises(BankError, match=r"emoreg_refit_steps to 0") as error:
        make_refitter(texts, number=48)
    assert words in str(error.value)
    make_refitter()  # control


def test_a_tokenizer_without_a_chat_template_is_refused_at_once() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = None
    with pytest.raises(BankError, match="no chat template"):
        make_refitter(tokenizer=tokenizer)
