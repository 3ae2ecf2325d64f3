"""After a run everything of the user's is as it is without emoreg, in every way of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from test_ways_adapters import WAYS, WITH_BASE, trained_as
from torch import nn
from trainers import Do
from ways import blocks_of, cells, control


def hooks(model: nn.Module) -> dict[tuple[str, str], list[str]]:
    """Every hook of every module, by the name of its function."""
    return {
        (name, kind): [getattr(f, "__qualname__", repr(type(f))) for f in value.values()]
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if kind.endswith("_hooks") and isinstance(value, dict)
    }


def possessions(trainer: Any) -> dict[str, Any]:
    """What a guest could leave changed, by name."""
    modules = dict(trainer.model.named_modules())
    return {
        "trained": {n: p.requires_grad for n, p in trainer.model.named_parameters()},
        "modes": {n: m.training for n, m in modules.items()},
        "active adapter": getattr(trainer.model, "active_adapter", None),
        "adapters": {
            n: (m.disable_adapters, m.active_adapters)
            for n, m in modules.items()
            if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
        },
        "hooks": hooks(trainer.model),
        "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
        "trainer": sorted(vars(trainer)),
    }


def randomness() -> list[Any]:
    """Where the generators of torch, NumPy and Python are."""
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]


@pytest.mark.parametrize(
    "checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "again"]
)
@pytest.mark.parametrize(
    ("row", "column"), [*cells(WAYS, ["SFT"]), *cells(WAYS, ["DPO", "GRPO"], slow=True)]
)
def test_a_run_leaves_everything_as_it_is_without_emoreg(
    row: str, column: str, checkpointing: bool, tmp_path: Path
) -> None:
    if row == "prefix tuning":
        checkpointing = False  # PEFT refuses both together
    rows = Dataset.from_dict(dict(zoo.TRAINERS[column].columns))
    args = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    left, during = [], []
    for guest in (False, True):
        trainer = trained_as(
            row, column, tmp_path, gradient_checkpointing=checkpointing, **args,
            more={"eval_dataset": rows},
        )  # fmt: skip
        for block in blocks_of(trainer.model):
            block.self_attn.attention_dropout = 0.1
        if column == "SFT":  # the others' own reference forward trains again what a user froze
            blocks_of(trainer.model)[1].requires_grad_(False)
        drawn = randomness()
        seen = Do("on_step_begin", lambda t=trainer, **_: during.append(hooks(t.model)))
        trainer.add_callback(seen)
        if guest:
            control(trainer, anchor="base" if row in WITH_BASE else "neutral")
        trainer.train()
        left.append({**possessions(trainer), "randomness": randomness()})
        assert randomness() != drawn  # control: something was drawn
    plain, guested = left
    for name, wanted in plain.items():
        assert guested[name] == wanted, name
    assert during[0] != during[2]  # control: while it trained the guest was there
