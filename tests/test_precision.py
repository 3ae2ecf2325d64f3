"""A scaled loss and Liger's kernels leave the gradient of the terms what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case, trainer_of
from launch import launch
from trainers import weights
from ways import COLUMNS, apart, by_hand, columns_of, step

# --- fp16 -----------------------------------------------------------------------------------


def scaled(column: str, folder: Path, scale: float, **options: Any) -> Any:
    """A trainer that computes in fp16 and scales its loss by a power of two.

    accelerate does neither on the CPU, and says nothing.
    """
    trainer = trainer_of(column, folder, Case(steps=2, options={"fp16": True, **options}))
    accelerator = trainer.accelerator
    assert accelerator.mixed_precision == "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


def computed_in(trainer: Any) -> set[torch.dtype]:
    """The types of what a linear layer puts out in training from now on."""
    seen: set[torch.dtype] = set()
    trainer.model.get_base_model().model.layers[0].mlp.down_proj.register_forward_hook(
        lambda *a: seen.add(a[-1].dtype) if torch.is_grad_enabled() else None
    )
    return seen


@pytest.mark.parametrize("column", columns_of("fp16 with GradScaler", slow=True))
def test_a_scaled_loss_in_fp16_has_the_gradient_of_single_precision(
    column: str, tmp_path: Path
) -> None:
    plain = step(trainer_of(column, tmp_path / "plain", Case(steps=2)))
    wanted = by_hand(plain)
    trainer = scaled(column, tmp_path / "scaled", 1024.0)
    types = computed_in(trainer)
    found = step(trainer)
    assert types == {torch.float16}  # control: autocast is on
    assert 1e-5 < apart(found.grads, wanted) < 1e-2
    assert found.log("emoreg/loss") == pytest.approx(plain.log("emoreg/loss"), rel=1e-2)
    without = {n: g / 1024 for n, g in found.grads.items()}
    assert apart(without, wanted) > 0.9  # control: what is not scaled, and divided all the same


@pytest.mark.parametrize("column", columns_of("fp16 with GradScaler", slow=True))
@pytest.mark.parametrize(("power", "after"), [(100, 99), (10, 10)])
def test_a_step_that_overflows_is_skipped_and_the_scale_halved(
    column: str, power: int, after: int, tmp_path: Path
) -> None:
    trainer = scaled(column, tmp_path, 2.0**power, learning_rate=0.1)
    before = weights(trainer.model)
    found = step(trainer)
    assert trainer.accelerator.scaler.get_scale() == 2.0**after
    moved = any(not torch.equal(w, before[n]) for n, w in weights(trainer.model).items())
    assert moved == (power == after)  # control: a scale that fits
    assert torch.tensor(found.log("emoreg/loss")).isfinite().all()


# --- Liger ----------------------------------------------------------------------------------

KERNELS = ("rms_norm_forward", "rms_norm_backward", "rope", "swiglu_forward", "swiglu_backward")


@pytest.fixture(scope="module")
def by_liger(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Reads what one process, which interprets Liger's kernels, found in a column."""
    folder, said = tmp_path_factory.mktemp("liger"), []

    def found(column: str) -> dict[str, Any]:
        if not said:
            said.append(launch("precision.py", str(folder), *COLUMNS))
        path = folder / f"{column}.pt"
        assert path.exists(), said[0]
        return torch.load(path)

    return found


@pytest.mark.parametrize("name", ["liger", "liger_checkpoint"])
@pytest.mark.parametrize("column", columns_of("Liger kernels", slow=True))
def test_ligers_kernels_have_the_gradient_of_plain_layers(
    column: str, name: str, by_liger: Any
) -> None:
    found = by_liger(column)
    assert 0 < apart(found[name]["grads"], found["plain"]["grads"]) < 1e-5
    ran = " ".join(found[name]["kernels"])
    assert all(kernel in ran for kernel in KERNELS)
    assert not found["plain"]["kernels"]  # control
    counts = [sum(found[each]["kernels"].values()) for each in ("liger", "liger_checkpoint")]
    assert counts[0] < counts[1]  # control: blocks are computed again
