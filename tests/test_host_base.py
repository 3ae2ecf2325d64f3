"""The base is read from the reference forward that a host runs anyway, or from one cut short."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hand import READ, Base, adapters_off, blocks_of, error, read
from models import counting
from trainers import logged
from windows import READABLE, Watch, cells, control, make, silence

MICRO_BATCHES = 2  # of the one step that is taken
OWN: dict[str, tuple[str, dict[str, Any]]] = {  # hosts that run the base: which one, with what
    "DPO": ("DPO", {}), "KTO": ("KTO", {}), "GRPO": ("GRPO", {"beta": 0.1}), "RLOO": ("RLOO", {}),
    "OnlineDPO": ("OnlineDPO", {}), "A2PO": ("A2PO", {"lora": False}),
    "full DPO": ("DPO", {"lora": False}), "full KTO": ("KTO", {"lora": False}),
    "full GRPO": ("GRPO", {"lora": False, "beta": 0.1}), "full RLOO": ("RLOO", {"lora": False}),
    "full OnlineDPO": ("OnlineDPO", {"lora": False}),
    "GMPO": ("GMPO", {"beta": 0.1}), "BEMADPO": ("BEMADPO", {}), "BCO": ("BCO", {}),
    "ExperimentalKTO": ("ExperimentalKTO", {}),
}  # fmt: skip
NONE: dict[str, tuple[str, dict[str, Any]]] = {  # and hosts that do not
    **{name: (name, {}) for name in READABLE if name not in OWN},
    "GRPO": ("GRPO", {"beta": 0.0}), "GMPO": ("GMPO", {"beta": 0.0}),
    "RLOO": ("RLOO", {"beta": 0.0}), "DPO": ("DPO", {"precompute_ref_log_probs": True}),
    "KTO": ("KTO", {"precompute_ref_log_probs": True}),
}  # fmt: skip


@dataclass
class Step:
    """One step of a trainer: what it ran, and what the base of its window is."""

    watch: Watch
    policy: list[int]  # forwards of each block of the model
    reference: list[int]  # and of the reference model, if there is one
    base: Base


def step(name: str, tmp_path: Path, args: dict[str, Any], **knobs: Any) -> Step:
    """Train one step with the terms alone; nothing is generated, so every forward is of a loss."""
    trainer = make(name, tmp_path, max_steps=1, gradient_accumulation_steps=MICRO_BATCHES, **args)
    model, other = trainer.model, getattr(trainer, "ref_model", None)
    if args.get("lora", True):
        base, other = adapters_off(model), None
    else:
        torch.manual_seed(3)
        for parameter in model.parameters():  # or it would be its own reference
            parameter.data += 0.1 * torch.randn_like(parameter)

        def base(row: Any, at: list[int]) -> Any:
            with torch.no_grad():
                return read(other, row.ids, at)

    silence(trainer)
    watch = Watch(trainer, name)
    if knobs:
        control(trainer, **knobs)
    with counting([*blocks_of(model), *(blocks_of(other) if other else ())]) as calls:
        trainer.train()
    depth = len(blocks_of(model))
    return Step(watch, calls[:depth], calls[depth:], base)


def assert_read_right(found: Step) -> None:
    """The excess is that of a direct computation, and so is the gradient over it."""
    means, wanted = found.watch.wanted(base=found.base)
    assert error(found.watch.grads[0], wanted) < 1e-5
    assert error(found.watch.wanted()[1], wanted) > 0.01  # control: the anchor matters
    keys = [f"excess/{emotion}" for emotion in ("desperate", "calm", "happy")]
    excess = [logged(found.watch.trainer, f"emoreg/{key}")[0] for key in keys]
    assert excess == pytest.approx([means[key] for key in keys], rel=1e-4, abs=1e-6)
    assert max(map(abs, excess)) > 1e-3  # control: the policy is not the base


def cases(table: dict[str, Any], fast: tuple[str, ...]) -> list[Any]:
    """The hosts of a table that are installed, with the cells of those that the README names."""
    named = [key for key, (name, _) in table.items() if name in READABLE]
    return cells("host's base", named, fast=fast)


@pytest.mark.parametrize("case", cases(OWN, fast=("DPO", "GRPO", "full DPO", "OnlineDPO")))
def test_a_host_s_own_reference_forward_is_the_base_and_no_other_is_run(
    case: str, tmp_path: Path
) -> None:
    name, args = OWN[case]
    plain, found = (step(name, tmp_path, args, **k) for k in ({}, {"anchor": "base"}))
    assert found.policy == plain.policy
    assert found.reference == plain.reference
    assert sum(plain.policy) + sum(plain.reference) >= 2 * MICRO_BATCHES * 3  # control: it is run
    assert_read_right(found)


@pytest.mark.parametrize("case", cases(NONE, fast=("SFT", "GRPO", "DPO")))
def test_where_a_host_runs_no_base_one_forward_of_it_is_run_up_to_the_deepest_block_read(
    case: str, tmp_path: Path
) -> None:
    name, args = NONE[case]
    plain, found = (step(name, tmp_path, args, **k) for k in ({}, {"anchor": "base"}))
    deepest = READ[-1]
    more = [after - before for after, before in zip(found.policy, plain.policy, strict=True)]
    assert more == [MICRO_BATCHES * (block <= deepest) for block in range(len(more))]
    assert_read_right(found)
    neutral = step(name, tmp_path, args, anchor="neutral")
    assert neutral.policy == plain.policy
