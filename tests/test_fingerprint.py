"""Any changed weight of the base changes its fingerprint, and no adapter does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from trainers import make_base, make_model

from emoreg import fingerprint
from emoreg.fingerprint import fingerprint as weights_of


def test_any_one_changed_number_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "WORDS", 64)  # several chunks in a tensor
    for dtype in (torch.float32, torch.bfloat16):
        model = make_base().to(dtype)
        found = weights_of(model)
        assert found == weights_of(make_base().to(dtype))
        for parameter in model.parameters():
            flat = parameter.data.view(-1)
            for at in (0, len(flat) // 2, len(flat) - 1):
                before = flat[at].clone()
                flat[at] = torch.nextafter(before, before + 1)
                assert weights_of(model) != found
                flat[at] = before
        assert weights_of(model) == found  # control: it was that number


def test_weights_that_change_places_change_the_fingerprint() -> None:
    model, other = make_base(), make_base()
    layers = other.model.layers
    one, two = layers[0].mlp.up_proj.weight, layers[1].mlp.up_proj.weight
    one.data, two.data = two.data, one.data
    assert weights_of(other) != weights_of(model)
    other = make_base()
    rows = other.model.layers[0].mlp.up_proj.weight.data
    rows[[3, 4]] = rows[[4, 3]]
    assert weights_of(other) != weights_of(model)


@pytest.mark.parametrize(
    "knobs",
    [
        {"r": 8}, {"target_modules": "all-linear"}, {"use_dora": True},
        {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 4]},
    ],
    ids=str,
)  # fmt: skip
def test_adapters_of_any_kind_have_no_part_in_it(knobs: dict[str, Any]) -> None:
    wanted, model = weights_of(make_base()), make_model(**knobs)
    assert weights_of(model) == wanted
    model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 1
    assert weights_of(model) == wanted
    model.get_base_model().model.norm.weight.data[0] += 1  # control: of the base
    assert weights_of(model) != wanted


def test_odd_sizes_foreign_strides_and_views_are_read_whole() -> None:
    def of(tensor: torch.Tensor) -> str | None:
        model = nn.Module()
        model.register_buffer("x", tensor)
        model.config = make_base().config  # type: ignore[assignment]
        return weights_of(model)

    whole = torch.arange(77, dtype=torch.int8).view(7, 11)
    assert of(whole.T) == of(whole.T.contiguous()) != of(whole)
    view = whole.view(-1)[3:10]
    assert of(view) == of(view.clone()) != of(whole.view(-1)[4:11])
    assert of(torch.tensor(True)) != of(torch.tensor(False))


def test_what_cannot_be_known_has_no_fingerprint() -> None:
    with torch.device("meta"):
        assert weights_of(make_base()) is None
    model = make_model()
    model.merge_adapter()
    assert weights_of(model) is None
    model.unmerge_adapter()
    assert weights_of(model) is not None  # control
