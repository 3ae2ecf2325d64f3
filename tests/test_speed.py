"""What a step costs, by profiles: waits, what is kept, products, graphs; times are benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from speed_arms import ARMS, BARE, EMOTIONS, SHAPES, Arm, Shape
from speed_build import Bench, Setting, base_model
from speed_count import (
    ATTENTION,
    PRODUCTS,
    WAITS,
    Ops,
    Saved,
    count,
    fake,
    saved_bytes,
    unset_fake_temporarily,
)
from speed_run import Parts, measuring

SIZES = {
    **SHAPES["small"].sizes, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
PAIR = "two emotions"
TABLE = {
    **ARMS, PAIR: Arm(PAIR, {"penalize": {"desperate": 0.01}, "reward": {"calm": 0.01}}),
}  # fmt: skip
SHAPE = Shape(SIZES, rows=2, tokens=24, dtype="float32", blocks=(1, 2), rank=4)

FLAT = replace(SHAPE, sizes={**SIZES, "num_hidden_layers": 2}, blocks=(0, 1))


def built(arm: str, trainer: str = "sft", shape: Shape = SHAPE, **changes: Any) -> Bench:
    """An arm that has taken a step, so that what the first one alone does is over."""
    setting = Setting(shape, trainer, False, "cpu")
    found = Bench(setting, TABLE[arm], base_model(setting), **changes)
    found.step()
    return found


made = cache(built)  # for those that nobody changes


def ops(bench: Bench) -> Ops:
    """The operations of one more step."""
    with Ops() as found:
        bench.step()
    return found


# --- waits ----------------------------------------------------------------------------------


@contextmanager
def waits_after_the_forward_begins(bench: Bench) -> Iterator[list[Any]]:
    """Operations that wait for a device, from the policy's forward to the end of the step."""
    found: list[Any] = []

    class Watch(Ops):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if self.begun and func.overloadpacket in WAITS:
                found.append(func)
            return func(*args, **(kwargs or {}))

        begun = False

    watch = Watch()

    def begin(*_: object) -> None:
        watch.begun |= torch.is_grad_enabled()  # not at a reference forward

    handle = bench.trainer.model.get_base_model().model.register_forward_pre_hook(begin)
    try:
        with watch:
            yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("trainer", ["sft", "dpo", "grpo"])
def test_no_step_waits_for_the_device_once_its_forward_has_begun(trainer: str) -> None:
    number = {}
    for arm in (BARE, "penalty"):
        with waits_after_the_forward_begins(made(arm, trainer)) as found:
            made(arm, trainer).step()
        number[arm] = len(found)
    assert number["penalty"] <= number[BARE] + 1  # that of the window's count, held on the CPU
    bench = built("penalty", trainer)
    compute = bench.trainer.compute_loss
    bench.trainer.compute_loss = lambda *a, **k: (loss := compute(*a, **k)) * float(loss == loss)
    with waits_after_the_forward_begins(bench) as found:  # control: a wait is seen
        bench.step()
    assert len(found) > number["penalty"]


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_a_step_looks_at_its_batch_once_before_the_forward(trainer: str) -> None:
    number = {arm: ops(made(arm, trainer)).number(*WAITS) for arm in (BARE, "measure", "penalty")}
    assert number["measure"] - number[BARE] <= 3  # two lists of positions, how many sequences
    assert number["penalty"] - number["measure"] <= 1  # and the window's, which lies on the CPU
    bench = built("penalty", trainer)
    bench.regularizer._reader.counting._foreseen = _Forgetful()  # control: to count twice is seen
    assert ops(bench).number(*WAITS) > number["penalty"]


class _Forgetful(list[Any]):
    def append(self, _: Any) -> None:
        pass


# --- what is kept ---------------------------------------------------------------------------


def kept(bench: Bench) -> Saved:
    """What autograd keeps of one step."""
    with saved_bytes(bench.trainer.model.parameters()) as found:
        bench.step()
    return found


def wide(found: Saved, shape: Shape = SHAPE) -> int:
    """How many of what is kept are float32 activations of all tokens."""
    width = shape.sizes["hidden_size"]
    size = shape.rows * (shape.tokens - 1) * width
    alike = (s for dtype, s in found.wide.values() if dtype == torch.float32 and s[-1:] == (width,))
    return sum(s.numel() >= size for s in alike)


def careless(bench: Bench) -> None:
    """A penalty that keeps a float32 copy of a block's output."""
    compute, block = (
        bench.trainer.compute_loss,
        bench.trainer.model.get_base_model().model.layers[1],
    )
    seen: list[Tensor] = []
    block.register_forward_hook(lambda _m, _a, out: seen.append(out))

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        return compute(*args, **kwargs) + seen.pop().float().double().float().square().mean()

    bench.trainer.compute_loss = loss


@pytest.mark.parametrize("arm", ["measure", "penalty", "anchor", "all emotions"])
def test_no_wide_copy_of_activations_is_kept_for_the_backward_pass(arm: str) -> None:
    plain = kept(made(BARE))
    found = kept(made(arm))
    assert wide(found) == wide(plain)
    tokens = SHAPE.rows * SHAPE.tokens
    rows = 2 * len(EMOTIONS) if arm == "all emotions" else 4
    directions = len(SHAPE.blocks) * rows * (SHAPE.sizes["hidden_size"] + 1)
    readings = (4 if arm != "measure" else 0) * len(SHAPE.blocks) * tokens * rows
    assert found.bytes - plain.bytes <= 4 * (directions + readings + 8 * tokens)
    bench = built(BARE)
    careless(bench)
    assert wide(kept(bench)) > wide(plain)  # control: a copy would be seen


# --- products -------------------------------------------------------------------------------


def test_all_emotions_of_a_block_are_one_product() -> None:
    number = {}
    for name in (BARE, PAIR, "all emotions"):
        found = ops(made(name))
        number[name] = found.number(*PRODUCTS)
    sizes = [s for op, s in found.calls if op in PRODUCTS]
    assert number["all emotions"] == number[PAIR]  # 342 rows cost as many products as four
    assert number[PAIR] - number[BARE] <= 5 * len(SHAPE.blocks)
    per_block = [s for s in sizes if any(x[-1] == 2 * len(EMOTIONS) for x in s)]
    assert len(per_block) >= len(SHAPE.blocks)  # control: those of all rows are among them


def test_as_many_operations_run_for_all_emotions_as_for_two() -> None:
    two, every = (len(ops(made(arm)).calls) for arm in (PAIR, "all emotions"))
    bare = len(ops(made(BARE)).calls)
    assert every - two < 0.2 * (two - bare)
    assert two > bare  # control: there are some


# --- counting without values ----------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer", ["sft", *(pytest.param(t, marks=pytest.mark.slow) for t in ("dpo", "grpo"))]
)
def test_a_step_without_values_is_the_arithmetic_of_a_real_one(trainer: str) -> None:
    setting = Setting(FLAT, trainer, False, "cpu")
    counts = []
    for real, context in ((nullcontext, nullcontext()), (unset_fake_temporarily, fake())):
        with context:
            bench = Bench(setting, ARMS["penalty"], base_model(setting), real, optim="adamw_torch")
            if real is nullcontext:
                bench.step()
            counts.append(count(bench))
    assert counts[0].flops == counts[1].flops > 0
    assert counts[0].saved == pytest.approx(counts[1].saved, rel=0.1)
    assert counts[0].peak == pytest.approx(counts[1].peak, rel=0.2)


@pytest.mark.slow
def test_a_step_counted_again_is_the_same_to_the_byte() -> None:
    setting, counts = Setting(FLAT, "sft", True, "cpu"), []
    with fake():
        base = base_model(setting)
        for arm in (BARE, "penalty", BARE):
            bench = Bench(setting, ARMS[arm], base, unset_fake_temporarily, optim="adamw_torch")
            counts.append(count(bench))
    assert counts[0] == counts[2]
    assert counts[0] != counts[1]  # control: another step is told apart


def test_products_of_attention_are_counted_on_a_cpu() -> None:
    rows, heads, tokens, width = 2, 3, 16, 8
    q = torch.randn(rows, heads, tokens, width, requires_grad=True)
    found = {}
    for name, mapping in (("with", ATTENTION), ("without", {})):
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        found[name] = counter.get_total_flops()
    assert found["with"] == 14 * rows * heads * tokens * tokens * width  # seven products
    assert found["without"] == 0  # control: PyTorch's counter leaves them out


@pytest.mark.slow
def test_the_tokens_told_of_an_audit_are_those_that_went_forward() -> None:
    shape = replace(SHAPE, sizes={**SIZES, "num_hidden_layers": 8})
    parts = Parts(built(BARE, shape=shape))
    told = parts.forwards(parts.model, shape.depth)
    assert told["audit, base"].tokens == pytest.approx(parts.audited.tokens)
    now = parts.auditor.now(parts.model, parts.audited)
    assert told["audit"].tokens == pytest.approx(now.tokens)
    assert told["audit"].tokens != told["audit, base"].tokens  # control: they are two amounts


def test_what_measuring_adds_is_its_products_by_hand() -> None:
    added = count(made("measure")).flops - count(made(BARE)).flops
    tokens = SHAPE.rows * (SHAPE.tokens - 1)  # the first of a sequence never counts
    size = SIZES["hidden_size"], len(EMOTIONS), len(SHAPE.blocks)
    assert added == measuring(*size, tokens)
    assert added != measuring(*size, tokens + 1)  # control: one token more would be seen


# --- compiling ------------------------------------------------------------------------------


def graphs(arm: str) -> tuple[int, int]:
    """Graphs and breaks of a compiled step."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    built(arm, torch_compile=True, torch_compile_backend="eager", gradient_accumulation_steps=1)
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.slow
def test_reading_breaks_no_graph() -> None:
    plain = graphs(BARE)
    assert plain[0] > 0  # control: it was compiled
    assert graphs("penalty") == plain
