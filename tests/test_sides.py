"""The terms of one side of a batch alone, and of what a tool put out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from hand import error
from trainers import logged, weights
from windows import OWN_WORDS, READABLE, SIDES, Watch, cells, control, make, silence

from emoreg.errors import ConfigError

TOLD = [name for name in READABLE if name in SIDES and name not in OWN_WORDS]
UNTOLD = [name for name in READABLE if name not in SIDES]


@pytest.mark.parametrize("name", cells("sides", TOLD, fast=("DPO", "KTO", "GRPO", "Reward")))
def test_terms_of_one_side_have_the_gradient_of_its_sequences_alone(
    name: str, tmp_path: Path
) -> None:
    for side in SIDES[name]:
        trainer = make(name, tmp_path, max_steps=1)
        silence(trainer)
        watch = Watch(trainer, name)
        control(trainer, sides=[side])
        trainer.train()
        means, wanted = watch.wanted(sides=[side])
        assert error(watch.grads[0], wanted) < 1e-5
        _, whole = watch.wanted()
        assert error(whole, wanted) > 0.01  # control: the other sides would change it
        assert logged(trainer, "emoreg/loss") == pytest.approx([means["loss"]], rel=1e-5)
        for each in SIDES[name]:  # whatever the terms act on, all sides are logged
            for emotion in ("desperate", "calm"):
                key = f"reading_{each}/{emotion}"
                assert logged(trainer, f"emoreg/{key}") == pytest.approx([means[key]], rel=1e-5)


def test_two_of_three_sides_go_together(tmp_path: Path) -> None:
    name = "TPO" if "TPO" in READABLE else "DPO"
    trainer = make(name, tmp_path, max_steps=1)
    silence(trainer)
    watch = Watch(trainer, name)
    control(trainer, sides=list(SIDES[name][-2:]))
    trainer.train()
    assert error(watch.grads[0], watch.wanted(sides=SIDES[name][-2:])[1]) < 1e-5


@pytest.mark.parametrize(
    "name", cells("sides", UNTOLD, fast=UNTOLD, refused="its batches tell no sides")
)
def test_a_side_of_batches_that_tell_none_is_refused_before_anything_has_moved(
    name: str, tmp_path: Path
) -> None:
    trainer = make(name, tmp_path)
    before = weights(trainer.model)
    control(trainer, sides=["chosen"])
    with pytest.raises(ConfigError, match=r"asks for chosen; the batch tells no sides"):
        trainer.train()
    assert all(torch.equal(now, before[n]) for n, now in weights(trainer.model).items())


class ToolUser(zoo.TRAINERS["GRPO"].trainer):  # type: ignore[misc]
    """Its answers hold tool output from their third token to their fifth, as after a call."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        mask = torch.ones_like(found["completion_mask"])
        mask[:, 2:5] = 0
        return {**found, "tool_mask": mask}


def tool_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **knobs: Any) -> Watch:
    """One step of GRPO with tools, watched by somebody who knows where tool output is."""
    monkeypatch.setitem(zoo.TRAINERS, "GRPO", replace(zoo.TRAINERS["GRPO"], trainer=ToolUser))
    trainer = make("GRPO", tmp_path, max_steps=1)
    silence(trainer)
    watch = Watch(trainer, "GRPO")
    control(trainer, **knobs)
    trainer.train()
    for i, row in enumerate(watch.windows[0]):
        first = min(row.own)
        tool = row.own & frozenset(range(first + 2, first + 5))
        watch.windows[0][i] = replace(row, own=row.own - tool, tool=tool)
    return watch


@pytest.mark.parametrize(
    "scope",
    [["tool"], ["completion"], ["prompt"], ["completion", "colon"], ["tool", "completion"]],
    ids="+".join,
)
def test_tool_output_is_neither_completion_nor_prompt_but_a_scope_of_its_own(
    scope: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = tool_user(tmp_path, monkeypatch, scope=scope)
    means, wanted = watch.wanted(scope=scope)
    assert error(watch.grads[0], wanted) < 1e-5
    found = logged(watch.trainer, "emoreg/reading/desperate")
    assert found == pytest.approx([means["reading/desperate"]], rel=1e-5)
    for other in (["tool"], ["completion"], ["prompt"]):
        if other != scope:  # control: scopes differ
            assert error(watch.wanted(scope=other)[1], wanted) > 0.01


def test_tool_output_that_batches_do_not_tell_is_refused(tmp_path: Path) -> None:
    trainer = make("GRPO", tmp_path)
    control(trainer, scope=["tool"])
    with pytest.raises(ConfigError, match="do not tell tool output from the rest of the prompt"):
        trainer.train()
