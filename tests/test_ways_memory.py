"""How a step is computed, in what precision and with how much memory, leaves its terms alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import trl.trainer.dpo_trainer
import trl.trainer.sft_trainer
import zoo
from datasets import Dataset
from torch import Tensor
from trl.models import activation_offloading
from ways import (
    Step,
    apart,
    blocks_of,
    by_hand,
    cells,
    columns_of,
    llama,
    lora,
    make,
    step,
    trained,
)

from emoreg.errors import CaptureError

# --- precision ------------------------------------------------------------------------------

TRL = {"bf16": None, "gradient_checkpointing": True}
PRECISION: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {  # of weights, knobs, tolerance
    "float32": (torch.float32, {}, 1e-5),
    "bf16 autocast": (torch.float32, {"bf16": True}, 5e-2),
    "TRL's own precision and checkpointing": (torch.float32, TRL, 5e-2),
    "bf16 weights": (torch.bfloat16, {}, 5e-2),
    "fp16 weights": (torch.float16, {}, 1e-2),
}


def computed_in(model: Any) -> set[torch.dtype]:
    """The types of what a linear layer puts out from now on; grows while the model runs."""
    seen: set[torch.dtype] = set()
    projection = blocks_of(model)[0].mlp.down_proj
    projection.register_forward_hook(  # samples of GRPO are made without autocast
        lambda *a: seen.add(a[-1].dtype) if torch.is_grad_enabled() else None
    )
    return seen


def in_single(trainer: Any) -> None:
    """Take autocast and any other precision off the model."""
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float()


@pytest.mark.parametrize("peft", ["lora", None])
@pytest.mark.parametrize(("row", "column"), cells(PRECISION))
def test_the_gradient_is_that_of_single_precision(
    row: str, column: str, peft: str | None, tmp_path: Path
) -> None:
    dtype, knobs, tolerance = PRECISION[row]
    trainer = trained(column, tmp_path, llama().to(dtype), peft, **knobs)
    seen = computed_in(trainer.model)
    found = step(trainer)
    assert seen == {torch.bfloat16 if knobs else dtype}  # control: it is that precision
    in_single(trainer)
    error = apart(found.grads, by_hand(found))
    assert error < tolerance
    assert (error < 1e-5) == (row == "float32")


@pytest.mark.parametrize(("row", "column"), cells(["bf16 autocast"]))
def test_the_base_is_read_in_the_precision_of_the_policy(
    row: str, column: str, tmp_path: Path
) -> None:
    knobs, tolerance = PRECISION[row][1:]
    for more in [{"beta": 0.0}, {"beta": 0.1}] if column == "GRPO" else [{}]:
        fresh = step(make(column, tmp_path, peft=lora(), **knobs, **more), anchor="base")
        assert fresh.log("emoreg/excess/desperate") == pytest.approx([0.0], abs=1e-7)  # one sum
        trainer = trained(column, tmp_path, **knobs, **more)
        found = step(trainer, anchor="base")
        in_single(trainer)
        assert apart(found.grads, by_hand(found, anchor="base")) < tolerance
        assert apart(found.grads, by_hand(found)) > 2 * tolerance  # control: there is a base


# --- checkpointing --------------------------------------------------------------------------

KIND = "gradient_checkpointing_kwargs"
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "no checkpointing": {"gradient_checkpointing": False},
    "checkpointing as TRL does it": {"gradient_checkpointing": True},
    "non-reentrant checkpointing": {"gradient_checkpointing": True, KIND: {"use_reentrant": False}},
    "re-entrant checkpointing": {"gradient_checkpointing": True, KIND: {"use_reentrant": True}},
}
SOME = {"gradient_checkpointing": True, KIND: {"every_n_layers": 2}}
# DPO's own reference forward cannot be had beside it, see the test of its refusal.
SOME_OF = {"SFT": {}, "DPO": {"precompute_ref_log_probs": True}}


def run_again(trainer: Any) -> list[int]:
    """Blocks that run in a backward pass, so that their activations need not be kept."""
    seen, backward, inside = [], trainer.accelerator.backward, []

    def watched(*args: Any, **kwargs: Any) -> None:
        inside.append(True)
        backward(*args, **kwargs)
        inside.clear()

    trainer.accelerator.backward = watched
    for i, block in enumerate(blocks_of(trainer.model)):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: seen.append(i) if inside else None)
    return seen


def check_checkpointed(trainer: Any, blocks: set[int], anchor: str) -> None:
    """The terms are right, and these blocks ran again."""
    again = run_again(trainer)
    found = step(trainer, anchor=anchor)
    assert apart(found.grads, by_hand(found, anchor=anchor)) < 1e-5
    assert set(again) == blocks


@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize(("row", "column"), cells(CHECKPOINTING))
def test_blocks_that_run_again_are_read_once(
    row: str, column: str, anchor: str, tmp_path: Path
) -> None:
    args = CHECKPOINTING[row]
    if row == "checkpointing as TRL does it":  # control: it is on without being asked for
        assert zoo.TRAINERS[column].config(str(tmp_path), use_cpu=True).gradient_checkpointing
    blocks = {0, 1, 2} if args["gradient_checkpointing"] else set()
    check_checkpointed(trained(column, tmp_path, **args), blocks, anchor)
    if anchor == "neutral":
        check_checkpointed(trained(column, tmp_path, peft=None, **args), blocks, anchor)


@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize("column", columns_of("every_n_layers", SOME_OF))
def test_blocks_of_which_some_run_again_are_read_once(
    column: str, anchor: str, tmp_path: Path
) -> None:
    check_checkpointed(trained(column, tmp_path, **SOME, **SOME_OF[column]), {0, 2}, anchor)


TWICE = "TRL refuses: after a forward without gradients it hands every_n_layers to torch"


@pytest.mark.parametrize("column", columns_of("every_n_layers", ["GRPO"], refused=TWICE))
def test_every_n_layers_is_refused_after_a_forward_without_gradients(
    column: str, tmp_path: Path
) -> None:
    for name in (column, "DPO"):  # without emoreg
        with pytest.raises(ValueError, match="Unexpected keyword arguments: every_n_layers"):
            trained(name, tmp_path, **SOME).train()
        with pytest.raises(ValueError, match="Unexpected keyword arguments: every_n_layers"):
            step(trained(name, tmp_path, **SOME))


# --- offloading -----------------------------------------------------------------------------


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Lets TRL offload from the CPU as if that were an accelerator; what comes back."""
    back: list[Tensor] = []

    def context(model: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
            made = activation_offloading.get_act_offloading_ctx_manager(
                model, use_pin_memory=False, use_streams=False, min_offload_size=0
            )
        unpack = made.unpack_hook
        made.unpack_hook = lambda key: back.append(made.tracker[key][1]) or unpack(key)
        return made

    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    for module in (trl.trainer.sft_trainer, trl.trainer.dpo_trainer):
        monkeypatch.setattr(module, "get_act_offloading_ctx_manager", context)
    return back


@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize("column", columns_of("activation offloading", ["SFT", "DPO"]))
def test_activations_that_are_put_away_come_back(
    column: str, anchor: str, offloaded: list[Tensor], tmp_path: Path
) -> None:
    trainer = trained(column, tmp_path, activation_offloading=True)
    found = step(trainer, anchor=anchor, penalize={"desperate": 0.5, "happy": 0.0})
    assert apart(found.grads, by_hand(found, anchor=anchor)) < 1e-5
    assert sum(map(bool, offloaded)) > 20  # control: they were away


# --- compiling ------------------------------------------------------------------------------

COMPILED = {  # with one shape to compile, not one for each micro-batch
    "torch_compile": True, "torch_compile_backend": "aot_eager", "gradient_accumulation_steps": 1,
}  # fmt: skip


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def _fresh() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def compiled(column: str, tmp_path: Path, **args: Any) -> Any:
    """A trainer that compiles its model, with some rows to evaluate on."""
    rows = Dataset.from_dict(dict(zoo.TRAINERS[column].columns)).select(range(4))
    return trained(column, tmp_path, **COMPILED, more={"eval_dataset": rows}, **args)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("column", columns_of("torch.compile", slow=True))
def test_a_compiled_model_has_the_terms_of_an_eager_one(column: str, tmp_path: Path) -> None:
    found = step(compiled(column, tmp_path), anchor="base")
    assert graphs() > 0  # control: it was compiled
    assert apart(found.grads, by_hand(found, anchor="base")) < 1e-5


BEFORE: dict[str, dict[str, Any]] = {
    "on start": {"eval_on_start": True, "eval_strategy": "steps"}, "evaluate": {}, "train": {},
}  # fmt: skip


def controlled_or_refused(trainer: Any) -> Step | CaptureError:
    """The step, or why emoreg refused it."""
    try:
        return step(trainer)
    except CaptureError as error:
        return error


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("column", columns_of("torch.compile, eval_on_start", slow=True))
def test_a_compiled_forward_before_the_first_step_never_loses_the_terms(
    column: str, before: str, tmp_path: Path
) -> None:
    trainer = compiled(column, tmp_path, **BEFORE[before])
    if before != "on start":
        getattr(trainer, before)()
        assert graphs() > 0  # control: it ran compiled
    found = controlled_or_refused(trainer)
    if isinstance(found, Step):
        assert apart(found.grads, by_hand(found)) < 1e-5
        assert before != "on start" or found.log("eval_emoreg/reading/calm")
    else:
        assert before == "train"
        assert "0 forwards with gradients" in str(found)
