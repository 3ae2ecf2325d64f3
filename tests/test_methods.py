"""Prevent, ablate and cap in a trainer: the gradient is that of plain hooks on the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import checkpointing
from edited import METHODS, edits_by_hand, gradient_by_hand, of_every_method, of_one_method, step
from hand import SCOPE, VECTORS, Row, error
from torch import Tensor, nn
from trainers import (
    logged,
    make_model,
    make_prompted,
)
from windows import Watch, of_data
from windows import control as control_of_zoo
from windows import make as make_of_zoo

# --- what is edited -------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "checkpointed": checkpointing(False),
    "re-entrant": checkpointing(True),
}


@of_every_method
def test_the_gradient_of_sft_is_that_of_plain_hooks_on_unpadded_rows(
    method: str, tmp_path: Path
) -> None:
    model = make_model()
    wanted_loss, wanted = gradient_by_hand(model, method)
    for name, way in WAYS.items():
        trainer, recorder = step(tmp_path, method, **way)
        assert error(recorder.grads[0], wanted) < 1e-5, name
        assert logged(trainer, "loss") == pytest.approx([wanted_loss], rel=1e-3), name
    _, plain = step(tmp_path)
    assert error(plain.grads[0], wanted) > 1e-2  # control: the edit does something


@of_one_method
def test_the_scope_says_which_tokens_are_edited(method: str, tmp_path: Path) -> None:
    model = make_model()
    for scope in (("completion",), ("prompt",)):
        _, recorder = step(tmp_path, method, _scope=list(scope))
        _, wanted = gradient_by_hand(model, method, scope=scope)
        assert error(recorder.grads[0], wanted) < 1e-5
    _, other = gradient_by_hand(model, method, scope=SCOPE)
    assert error(recorder.grads[0], other) > 1e-2  # control


@of_one_method
def test_a_warm_up_scales_the_edit(method: str, tmp_path: Path) -> None:
    _, recorder = step(tmp_path, method, _warmup=1.0, max_steps=4)
    for at in (1, 3):
        _, wanted = gradient_by_hand(make_model(), method, share=(at + 1) / 4)
        assert error(recorder.grads[at], wanted) < 1e-5
    assert error(recorder.grads[0], wanted) > 1e-3  # control


@of_every_method
def test_virtual_tokens_come_first_and_are_not_edited(method: str, tmp_path: Path) -> None:
    model = make_prompted()
    _, recorder = step(tmp_path, method, model)
    _, wanted = gradient_by_hand(model, method, virtual=3)
    assert error(recorder.grads[0], wanted) < 1e-5
    assert error(step(tmp_path, "", model)[1].grads[0], wanted) > 1e-2  # control


# --- preferences and rollouts ---------------------------------------------------------------


class Lookup:
    """Knows the tokens that count in a forward's rows, by their ids without padding."""

    def __init__(self, model: Any, scope: tuple[str, ...], sides: tuple[str, ...]) -> None:
        self.rows: list[Row] = []
        self.scope, self.sides = scope, sides
        self.masks: list[Tensor] = []
        inner = model.get_base_model()
        inner.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        real = kwargs["attention_mask"].bool()
        self.mask = torch.zeros_like(ids, dtype=torch.bool)
        if not torch.is_grad_enabled():
            return
        for i in range(len(ids)):
            own = tuple(ids[i][real[i]].tolist())
            row = next(r for r in self.rows if r.ids == own)
            if not self.sides or row.side in self.sides:
                self.mask[i, real[i].nonzero()[row.counted(self.scope), 0]] = True
        self.masks.append(self.mask)


@pytest.mark.parametrize(
    ("name", "method", "sides"),
    [
        ("DPO", "prevent", ()), ("DPO", "ablate", ("rejected",)), ("DPO", "cap", ("chosen",)),
        ("GRPO", "prevent", ()), ("GRPO", "ablate", ()), ("GRPO", "cap", ("rewarded",)),
        ("KTO", "prevent", ("desired",)),
    ],
)  # fmt: skip
def test_the_gradient_of_other_trainers_is_that_of_plain_hooks_on_the_same_trainer(
    name: str, method: str, sides: tuple[str, ...], tmp_path: Path
) -> None:
    """The same rows of padded batches, told apart by their tokens; reference forwards are plain."""
    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    args = {"max_steps": 1, "learning_rate": 0.0, **size}

    def trained(how: str) -> Watch:
        trainer = make_of_zoo(name, tmp_path, **args)
        watch = Watch(trainer, name)
        if how == "emoreg":
            knobs = {**METHODS[method], "sides": list(sides) or None}
            control_of_zoo(trainer, method=method, **knobs)
        if how == "hand":
            lookup = Lookup(trainer.model, SCOPE, sides)
            lookup.rows = watch.rollout.rows if name == "GRPO" else of_data(name, range(8))
            with edits_by_hand(trainer.model, method, lambda: lookup.mask, VECTORS):
                trainer.train()
            assert sum(int(m.sum()) for m in lookup.masks) > 10  # control: something is edited
        else:
            trainer.train()
        return watch

    found, wanted, plain = (trained(how).grads[0] for how in ("emoreg", "hand", ""))
    assert error(found, wanted) < 1e-5
    assert error(plain, wanted) > 1e-3  # control
