"""Forwards beside the steps leave DeepSpeed no wrong idea of the steps."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from emoreg.host import reading


class Order:
    """The order of weights that ZeRO-3 has learned, or has not; forgetting twice is an error."""

    def __init__(self, known: bool) -> None:
        self.known = known

    def is_invalid_trace(self) -> bool:
        return not self.known

    def _invalidate_trace(self) -> None:
        assert self.known, "attempted to invalidate already invalid trace"
        self.known = False


def trainer(optimizer: Any) -> Any:
    """A trainer with an engine of DeepSpeed that has this optimizer."""
    engine = SimpleNamespace(engine=SimpleNamespace(optimizer=optimizer))
    return SimpleNamespace(
        accelerator=SimpleNamespace(autocast=nullcontext, deepspeed_engine_wrapped=engine)
    )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_zero3_forgets_the_order_of_what_was_read(known: bool, fails: bool) -> None:
    order = Order(known)
    offload = SimpleNamespace(get_param_coordinator=lambda: order)
    expected = pytest.raises(OSError, match="full") if fails else nullcontext()
    with expected, reading(trainer(SimpleNamespace(parameter_offload=offload))):
        assert order.known == known  # control: not before
        if fails:
            raise OSError("the disk is full")
    assert not order.known


def test_without_zero3_there_is_nothing_to_forget() -> None:
    without = trainer(None)
    del without.accelerator.deepspeed_engine_wrapped
    for each in (without, trainer(None), trainer(SimpleNamespace())):
        with reading(each):
            pass
