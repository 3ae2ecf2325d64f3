"""KL to the base, value and gradient, against whole logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from anchored import FAMILIES, anchor_of, direct, gradients, ids_of, made
from models import counting

from emoreg import kl
from emoreg.blocks import find_backbone


@pytest.mark.parametrize(("family", "chunk"), [*((f, 31) for f in FAMILIES), ("llama", 1024)])
def test_value_and_gradient_are_those_of_whole_logits(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "CHUNK", chunk)
    model = made(family)
    anchor = anchor_of(model)
    for step in range(2):
        found, wanted = anchor(step), direct(model, anchor.texts(step))
        assert found.dtype == torch.float32
        assert found.shape == ()
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
        assert wanted > 1e-3  # control: the adapters change what is said
        own, theirs = gradients(model, found), gradients(model, wanted)
        largest = max(g.abs().max() for g in theirs.values())
        assert all(torch.allclose(own[n], theirs[n], atol=1e-4 * largest, rtol=0) for n in own)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_what_a_family_does_to_its_logits_matters(family: str) -> None:
    """Control of the test above: the plain head is far off."""
    model = made(family)
    anchor = anchor_of(model)
    anchor._factor, anchor._cap = 1.0, None
    wanted = direct(model, anchor.texts(0)).item()
    assert abs(anchor(0).item() - wanted) > 0.1 * wanted


def test_at_the_start_of_lora_the_anchor_is_zero_and_pulls_nowhere() -> None:
    model = made(adapted={"init_lora_weights": True})
    value = anchor_of(model)(0)
    assert abs(value.item()) < 1e-7
    found = gradients(model, value)
    assert max(g.abs().max() for g in found.values()) < 1e-6
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05
    moved = gradients(model, anchor_of(model)(0))
    assert max(g.abs().max() for g in moved.values()) > 1e-3  # control


def test_descent_on_the_anchor_alone_leads_back_to_the_base() -> None:
    model = made()
    anchor = anchor_of(model, batch_size=8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    values = []
    for _ in range(30):
        loss = anchor(0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < 0.25 * values[0]


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl, "CHUNK", 11)
    model = made()
    anchor = anchor_of(model)
    rows: list[int] = []
    kept: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _m, _a, out: rows.append(out.numel() // out.shape[-1])
    )
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t
    ):
        loss = anchor(0)
    forward = len(rows)
    loss.backward()
    hook.remove()
    assert max(rows) == 11
    assert sum(rows[:forward]) == 2 * sum(len(ids_of(t)) - 1 for t in anchor.texts(0))
    assert len(rows) == 2 * forward  # once more in backward, so
    weights = [tuple(p.shape[::-1]) for p in model.parameters()]  # a head's is kept as it is
    assert not [shape for shape in kept if shape[-1:] == (261,) and shape not in weights]


def test_the_base_is_read_once_for_each_batch_of_texts() -> None:
    model = made()
    anchor = anchor_of(model)
    seen = []
    for step in (0, 1, 2, 3, 4, 5):
        with counting([find_backbone(model).module]) as calls:
            anchor(step)
        seen.append(calls[0])
    assert seen == [2, 2, 2, 1, 1, 1]


def test_what_is_kept_of_the_base_is_right_after_the_policy_has_moved() -> None:
    model = made()
    anchor = anchor_of(model)
    before = anchor(0).item()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.1
    assert anchor(0).item() == pytest.approx(direct(model, anchor.texts(0)).item(), abs=1e-6)
    assert anchor(0).item() < 0.5 * before  # control


def test_dropout_and_gradient_checkpointing_do_not_change_the_value() -> None:
    plain, model = made(), made(adapted={"lora_dropout": 0.5}, attention_dropout=0.5)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    for step in range(2):
        found, wanted = anchor_of(model)(step), anchor_of(plain)(step)
        assert found.item() == wanted.item()
        own, theirs = gradients(model, found), gradients(plain, wanted)
        assert all(torch.equal(own[n], theirs[n]) for n in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_divergence_is_float32(dtype: torch.dtype) -> None:
    model = made()
    wanted = anchor_of(model)(0)
    narrow = copy.deepcopy(model).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        anchor = anchor_of(narrow)
        found = anchor(0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=0.1)
    own, theirs = gradients(narrow, found), gradients(model, wanted)  # outside, as `backward` is
    flat = [torch.cat([g.float().flatten() for g in of.values()]) for of in (own, theirs)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.98
    assert anchor(0).dtype == torch.float32  # and without autocast afterwards


def test_under_autocast_the_start_of_lora_is_zero() -> None:
    model = made(adapted={"init_lora_weights": True})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert abs(anchor_of(model)(0).item()) < 1e-6


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    "adapted", [{}, {"target_modules": ["q_proj", "embed_tokens"]}, {"modules_to_save": ["norm"]}]
)
def test_a_head_that_shares_its_weights_with_the_embedding_is_fine(adapted: Any) -> None:
    model = made(adapted=adapted, tie_word_embeddings=True)
    anchor = anchor_of(model)
    wanted = direct(model, anchor.texts(0)).item()
    assert anchor(0).item() == pytest.approx(wanted, rel=1e-5)
