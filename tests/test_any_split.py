"""How rows are split into micro-batches changes nothing of the term, in every trainer."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hand import adapters_off, by_hand, error, gradient_of
from trainers import logged
from windows import OWN_WORDS, READABLE, Watch, cells, control, make, of_data, silence

EVEN = ("PRM",)  # has two places that count in every row, so no split makes a difference
SPLITS = [(8, 1), (4, 2), (2, 4)]  # rows of a micro-batch, micro-batches of a step


def split(
    name: str, tmp_path: Path, size: int, steps: int, sides: list[str] | None = None, **args: Any
) -> Watch:
    """One step over all the data of `zoo`, with the terms alone."""
    preset = {"lmbda": 0.0} if name in ("GKD", "GOLD") else {}
    trainer = make(
        name, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
        learning_rate=0.0, **{"max_steps": 1, **preset, **args},
    )  # fmt: skip
    silence(trainer)
    watch = Watch(trainer, name)
    control(trainer, sides=sides)
    trainer.train()
    return watch


@pytest.mark.parametrize(
    "name",
    cells(
        "any split",
        [name for name in READABLE if name not in (*OWN_WORDS, *EVEN)],
        fast=("SFT", "DPO", "KTO", "GRPO", "Reward", "OnlineDPO"),
    ),
)
def test_every_split_has_the_gradient_and_the_log_of_one_direct_computation(
    name: str, tmp_path: Path
) -> None:
    watches = [split(name, tmp_path, *shape) for shape in SPLITS]
    means, wanted = watches[0].wanted()
    for watch in watches:
        assert error(watch.grads[0], wanted) < 1e-5
        assert logged(watch.trainer, "emoreg/loss") == pytest.approx([means["loss"]], rel=1e-5)
    _, naive = naively(watches[-1], 4)
    assert error(naive, wanted) > 1e-3  # control: the mean of micro-batches' means is another
    sums = {n: 4 * g for n, g in naive.items()}
    assert error(sums, wanted) > 1.0  # control: and so is their sum


@pytest.mark.parametrize("name", ["SFT", "DPO", "KTO", "Reward", "CPO"])
def test_rows_that_fill_neither_a_micro_batch_nor_a_window_weigh_what_others_do(
    name: str, tmp_path: Path
) -> None:
    watch = split(name, tmp_path, 3, 3)
    assert [len(window) % 8 for window in watch.windows] == [0]  # of 3, 3 and 2 rows
    assert error(watch.grads[0], watch.wanted()[1]) < 1e-5
    watch = split(name, tmp_path, 2, 3, max_steps=-1, num_train_epochs=1)
    for step in range(2):  # of 6 rows and 2
        assert error(watch.grads[step], watch.wanted(step)[1]) < 1e-5
    sizes = [len(window) for window in watch.windows]
    assert sizes[0] == 3 * sizes[1]  # control: the last window is shorter


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_a_side_of_which_micro_batches_hold_unlike_numbers_makes_no_difference(
    name: str, tmp_path: Path
) -> None:
    """Answers are shuffled before they are split, and of one side there may be none."""
    for shape in SPLITS:
        watch = split(name, tmp_path, *shape, sides=["rewarded"])
        assert error(watch.grads[0], watch.wanted(sides=["rewarded"])[1]) < 1e-5


def naively(watch: Watch, parts: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """As of a window that is cut into parts, of which each takes the mean over its own tokens."""
    rows = watch.windows[0]
    size = len(rows) // parts
    cut = [rows[i : i + size] for i in range(0, len(rows), size)]
    model = watch.trainer.model

    def mean() -> dict[str, torch.Tensor]:
        found = [by_hand(model, part, "tokens")["loss"] for part in cut]
        return {"loss": torch.stack(found).mean()}

    return gradient_of(model, mean)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_window_that_is_made_up_as_it_goes_is_the_mean_of_its_micro_batches_means(
    steps: int, tmp_path: Path
) -> None:
    watch = split("GKD", tmp_path, 8 // steps, steps, lmbda=1.0)
    data = {row.ids for row in of_data("GKD", range(8))}
    assert len({row.ids for row in watch.windows[0]} & data) == 4  # control: half is not of it
    if "pad_token_id" in signature(watch.trainer.generate_on_policy_outputs).parameters:
        rows = watch.windows[0]  # in TRL 1.0 prompts have labels too
        watch.windows[0] = [replace(row, own=frozenset(range(len(row.ids)))) for row in rows]
    _, wanted = naively(watch, steps)
    assert error(watch.grads[0], wanted) < 1e-5


@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize("more", [{"steps_per_generation": 4}, {"num_iterations": 2}], ids=str)
def test_several_windows_that_share_a_rollout_are_together_one_over_all_of_it(
    more: dict[str, int], anchor: str, tmp_path: Path
) -> None:
    """Two windows of half of its answers each, or the same ones twice."""
    size = 8 // more.get("steps_per_generation", 2)
    trainer = make(
        "GRPO", tmp_path, per_device_train_batch_size=size, learning_rate=0.0, beta=0.1, **more
    )
    silence(trainer)
    watch = Watch(trainer, "GRPO")
    control(trainer, anchor=anchor)
    trainer.train()
    assert [len(grads) > 0 for grads in watch.grads] == [True, True]
    base = adapters_off(trainer.model) if anchor == "base" else None
    _, wanted = watch.wanted(base=base)
    first, second = watch.grads
    assert error({n: (first[n] + second[n]) / 2 for n in first}, wanted) < 1e-5
    halves = error(first, second)
    assert halves < 1e-5 if "num_iterations" in more else halves > 0.01  # control
