"""Planted directions are found again, from labels and not by chance, however texts are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from random import Random
from typing import Any

import pytest
import torch
from models import WIDTH, causal_lm, hooks, tokenizer
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import normalize

from emoreg.bank import Text
from emoreg.errors import BankError
from emoreg.extract import Choices, extract
from emoreg.probe import Facet
from emoreg.vectors import EmotionVectors

EMOTIONS = ("afraid", "calm", "desperate", "happy")
SIGNS = {"story": "ABCD", "transcript": "EFGH"}  # a letter of each emotion carries its direction
PLAIN, NUISANCE = "abcdefghij .", "z"
SKIP = 4
CHOICES = Choices(skip_tokens=SKIP)


@cache
def planted() -> tuple[dict[str, Tensor], Tensor]:
    """By kind the centred directions of the emotions, (emotions, width); and one that disturbs."""
    frame = torch.linalg.qr(torch.randn(WIDTH, 9, generator=torch.Generator().manual_seed(4))).Q.T
    by_kind = {kind: frame[4 * i : 4 * i + 4] for i, kind in enumerate(SIGNS)}
    return {k: normalize(v - v.mean(0), dim=-1) for k, v in by_kind.items()}, frame[8]


@cache
def world() -> tuple[Any, Any]:
    """A model whose embeddings carry the planted directions, and its tokenizer."""
    tok = tokenizer()
    model = causal_lm(vocab_size=len(tok), max_position_embeddings=512)
    directions, nuisance = planted()
    with torch.no_grad():
        rows = model.get_input_embeddings().weight.mul_(5)
        for kind, letters in SIGNS.items():
            for letter, direction in zip(letters, directions[kind], strict=True):
                rows[tok.convert_tokens_to_ids(letter)] = direction
        rows[tok.convert_tokens_to_ids(NUISANCE)] = 2 * nuisance
    return model, tok


def write(rng: Random, sign: str = "", disturbed: float = 0.0) -> str:
    """60 to 90 letters in disorder, a third of them the sign."""
    length = rng.randint(60, 90)
    letters = list(sign * (length // 3) + NUISANCE * int(disturbed * length))
    letters += rng.choices(PLAIN, k=length - len(letters))
    rng.shuffle(letters)
    return "".join(letters)


@cache
def texts(each: int = 12) -> tuple[Text, ...]:
    """Desperate stories are disturbed, as neutral texts are now and then."""
    rng, made = Random(0), []
    for _ in range(each):
        for i, emotion in enumerate(EMOTIONS):
            story = write(rng, SIGNS["story"][i], 0.3 if emotion == "desperate" else 0.0)
            made.append(Text("story", emotion, text=story))
            talk = (
                ("user", write(rng)),
                ("assistant", write(rng, SIGNS["transcript"][i])),
                ("user", "?"),
            )
            messages = tuple({"role": r, "content": c} for r, c in talk)
            made.append(Text("transcript", emotion, messages=messages))
        made.append(Text("neutral", text=write(rng, disturbed=rng.random() / 2)))
    return tuple(made)


def fit(bank: Sequence[Text] | None = None, **choices: Any) -> EmotionVectors:
    model, tok = world()
    return extract(model, tok, bank or texts(), [0, 1], replace(CHOICES, **choices))


@cache
def fitted() -> EmotionVectors:
    return fit()


near = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


def agreement(facet: Facet, kind: str) -> Tensor:
    """Cosine of what was found with what was planted, (emotions, blocks)."""
    assert facet.emotions == EMOTIONS
    return torch.einsum("ebw,ew->eb", facet.directions, planted()[0][kind])


@pytest.mark.parametrize(("name", "kind"), [("stories", "story"), ("transcripts", "transcript")])
def test_planted_directions_are_recovered_and_those_of_shuffled_labels_are_not(
    name: str, kind: str
) -> None:
    assert agreement(fitted().facet(name), kind).min() > 0.95
    seen = dict.fromkeys(EMOTIONS, 0)

    def shuffled(text: Text) -> Text:
        if text.kind != kind:
            return text
        seen[text.label] += 1  # each label gets equally many texts of every emotion
        return replace(text, label=EMOTIONS[seen[text.label] % len(EMOTIONS)])

    assert agreement(fit([shuffled(t) for t in texts()]).facet(name), kind).abs().max() < 0.5


def test_what_varies_in_neutral_text_is_projected_out() -> None:
    _, nuisance = planted()
    desperate = EMOTIONS.index("desperate")
    stories = [v.facet("stories") for v in (fitted(), fit(neutral_variance=0))]
    clean, raw = (f.directions[desperate] @ nuisance for f in stories)
    assert clean.abs().max() < 0.05
    assert raw.abs().min() > 0.5  # control: without the projection it is taken for desperation


@cache
def read_by_the_model(kind: str, label: str = "") -> list[Tensor]:
    """What the model's hidden states say of each text's counted tokens, (blocks, tokens, width)."""
    model, tok = world()
    found = []
    for text in texts():
        if (text.kind, text.label) != (kind, label):
            continue
        ids = torch.tensor([tok(text.text)["input_ids"]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        found.append(torch.stack([states[1][0, SKIP:], states[2][0, SKIP:]]).double())
    return found


def neutral_components(block: int) -> Tensor:
    """Principal components of the means of neutral texts that explain half of their variance."""
    means = torch.stack([acts[block].mean(0) for acts in read_by_the_model("neutral")])
    _, size, rows = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    explained = size.square().cumsum(0) / size.square().sum()
    return rows[: int((explained < 0.5).sum()) + 1]


@pytest.mark.parametrize("block", [0, 1])
def test_a_story_direction_is_the_recipe_text_by_text(block: int) -> None:
    by_text = [[a[block].mean(0) for a in read_by_the_model("story", e)] for e in EMOTIONS]
    means = torch.stack([sum(rows) / len(rows) for rows in by_text])
    centred, noise = means - means.mean(0), neutral_components(block)
    oracle = normalize(centred - centred @ noise.T @ noise, dim=-1)
    found = fitted().facet("stories").directions[:, block].double()
    near(found, oracle)
    for facet in fitted().facets:
        assert (facet.directions[:, block].double() @ noise.T).abs().max() < 1e-6
    assert (normalize(centred, dim=-1) @ noise.T).abs().max() > 0.1  # control


def test_mu_and_sigma_are_those_of_the_tokens_of_neutral_text() -> None:
    tokens = torch.cat(read_by_the_model("neutral"), 1)  # (blocks, tokens, width)
    near(fitted().mu.double(), tokens.mean(1))
    story = fitted().facet("stories")
    projected = torch.einsum("btw,ebw->ebt", tokens, story.directions.double())
    near(story.sigma.double(), projected.std(-1, unbiased=False))


def test_the_facets_of_one_emotion_are_orthonormal() -> None:
    stacked = torch.stack([f.directions for f in fitted().facets])
    gram = torch.einsum("febw,gcbw->ecbfg", stacked, stacked)  # by emotion, emotion, block
    own = gram.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    near(own, torch.eye(2).expand_as(own))
    assert gram[..., 0, 1].abs().max() > 1e-3  # control: those of two emotions need not be


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**9])
def test_the_result_depends_neither_on_batch_nor_on_order(batch_tokens: int) -> None:
    shuffled = Random(batch_tokens).sample(texts(), len(texts()))
    again = fit(shuffled, batch_tokens=batch_tokens)
    assert again.emotions == fitted().emotions
    near(again.mu, fitted().mu)
    for mine, theirs in zip(again.facets, fitted().facets, strict=True):
        near(mine.directions, theirs.directions)
        near(mine.sigma, theirs.sigma)


def test_a_set_is_whole_fits_its_model_and_leaves_it_as_it_was() -> None:
    model, tok = world()
    model.train()
    before, told = hooks(model), []
    try:
        vectors = extract(model, tok, texts(), None, CHOICES, lambda *at: told.append(at))
        assert hooks(model) == before
        assert model.training
    finally:
        model.eval()
    vectors.verify()
    vectors.check(model, tok)
    assert vectors.blocks == (0, 1, 2)
    done, total = zip(*told, strict=True)
    assert done[0] == 0
    assert list(done) == sorted(done)
    assert done[-1] == total[0]  # tokens: neutral texts are read twice
    assert len(set(total)) == 1
    assert vectors.card["texts"] == {"neutral": 12, "story": 48, "transcript": 48}


def test_the_other_split_is_left_alone() -> None:
    other = [replace(t, split="held-out", label="calm") for t in texts() if t.kind == "story"]
    again = fit([*other, *texts()])
    assert torch.equal(again.facets[0].directions, fitted().facets[0].directions)


def but(kind: str, change: Callable[[Text], Text | None]) -> list[Text]:
    changed = [change(t) if t.kind == kind else t for t in texts()]
    return [t for t in changed if t is not None]


REFUSED: dict[str, tuple[Callable[[], list[Text]], list[str]]] = {
    "no stories": (lambda: but("story", lambda _: None), ["stories", "no emotion", "at least two"]),
    "one emotion": (
        lambda: but("story", lambda t: replace(t, label="calm")),
        ["['calm']", "at least two"],
    ),
    "one state": (
        lambda: but("transcript", lambda t: replace(t, label="calm")),
        ["transcripts", "['calm']"],
    ),
    "a state without stories": (
        lambda: but("transcript", lambda t: replace(t, label=t.label.replace("calm", "rushed"))),
        ["transcripts", "['rushed'] have no stories"],
    ),
    "no neutral text": (lambda: but("neutral", lambda _: None), ["at least two neutral"]),
    "a story too short": (
        lambda: [*texts(), Text("story", "calm", text="Oh.")],
        ["story 'Oh.' has 3 tokens", "after the first 4", "lower skip_tokens"],
    ),
    "the same stories for each": (  # once or thrice, so that they differ by rounding
        lambda: [
            replace(t, label=t.label and emotion)
            for emotion in ("afraid", "calm", "calm", "calm")
            for t in texts()
            if t.kind == "neutral" or (t.kind, t.label) == ("story", "calm")
        ],
        ["stories: nothing tells the texts for 'afraid' from the others"],
    ),
}


@pytest.mark.parametrize(("bank", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bank_from_which_nothing_can_be_fitted_is_refused(bank: Any, words: list[str]) -> None:
    with pytest.raises(BankError) as error:
        fit(bank())
    assert [w for w in words if w not in str(error.value)] == []


def test_a_live_adapter_is_read_as_it_stands_and_training_goes_on() -> None:
    base, tok = world()
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    live = get_peft_model(deepcopy(base), config).train()
    live.gradient_checkpointing_enable()
    loss = live(input_ids=torch.arange(6).unsqueeze(0), labels=torch.arange(6).unsqueeze(0)).loss
    loss.backward()
    grads = [p.grad.clone() for p in live.parameters() if p.grad is not None]
    state = torch.random.get_rng_state()
    found = extract(live, tok, texts(), [0, 1], CHOICES)
    assert live.training
    assert torch.equal(torch.random.get_rng_state(), state)
    after = [p.grad for p in live.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(grads, after, strict=True))
    merged = extract(live.merge_and_unload(), tok, texts(), [0, 1], CHOICES)
    near(found.facets[0].directions, merged.facets[0].directions)
    gap = (found.facets[0].directions - fitted().facets[0].directions).abs().max()
    assert gap > 1e-2  # control: the adapter is on


def test_bfloat16_finds_what_float32_finds() -> None:
    model, tok = world()
    half = extract(deepcopy(model).bfloat16(), tok, texts(), [0, 1], CHOICES)
    agree = (half.facets[0].directions * fitted().facets[0].directions).sum(-1)
    assert agree.min() > 0.99
    assert half.facets[0].directions.dtype == torch.float32


def test_a_state_that_is_neutral_is_compared_with_and_has_no_direction() -> None:
    turned = [
        replace(t, label="neutral") if t.kind == "transcript" and t.label == "happy" else t
        for t in texts()
    ]
    found = fit(turned).facet("transcripts")
    assert found.emotions == ("afraid", "calm", "desperate")
    kept = [i for i, e in enumerate(EMOTIONS) if e != "happy"]
    near(found.directions, fitted().facet("transcripts").directions[kept])
