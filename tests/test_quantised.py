"""LoRA on a quantised base has the gradient that it has on the same weights, not quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import Case, checkpointing, talkative, trainer_of
from quantised import linears, plain_twin, quantised
from ways import COLUMNS, Grads, Step, apart, marks, step

from emoreg.errors import CaptureError

ROWS = {  # the kinds of a row, and the class of their layers or of their weights
    "QLoRA 4-bit (bitsandbytes)": {"nf4": "Params4bit", "nf4_double": "Params4bit"},
    "8-bit (bitsandbytes)": {"bitsandbytes_int8": "Int8Params"},
    "torchao int8 weights": {"torchao_int8": "Int8Tensor"},
    "Quanto int8": {"quanto_int8": "WeightQBytesTensor"},
    "Quanto int4": {"quanto_int4": "WeightQBitsTensor"},
    "HQQ int4": {"hqq_int4": "HQQLinear"},
}
ROUNDED = {"bitsandbytes_int8": 3e-2}  # rounds activations too, to eight bits
WHY_NOT = "the layers put out what carries no gradient"
ANCHORS: dict[str, dict[str, Any]] = {"neutral": {}, "base": {"anchor": "base", "keep": 0.05}}


def parameters() -> list[Any]:
    """Kind, class of its weights and column, with the marks of their cells."""
    return [
        pytest.param(kind, name, column, marks=marks(row, column, slow=True), id=f"{kind}-{column}")
        for row, kinds in ROWS.items()
        for kind, name in kinds.items()
        for column in COLUMNS
    ]


def stepped(
    column: str, folder: Path, base: Any, like: Grads | None = None, case: Case | None = None,
    **knobs: Any,
) -> Step:  # fmt: skip
    """One step of a LoRA on a base; TRL rounds one on a quantised base to bfloat16, `like` too."""
    trainer = trainer_of(column, folder, case or Case(size=8), base=base)
    for name, parameter in trainer.model.named_parameters():
        if like is not None and parameter.requires_grad:
            parameter.data = parameter.data.to(like[name].dtype)
    return step(trainer, **knobs)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("kind", "name", "column"), parameters())
def test_the_gradient_is_that_of_the_same_weights_not_quantised(
    kind: str, name: str, column: str, anchor: str, tmp_path: Path
) -> None:
    base, knobs = quantised(kind), ANCHORS[anchor]
    assert name in names(base)
    twin = plain_twin(base)
    found = stepped(column, tmp_path / "found", base, **knobs).grads
    wanted = stepped(column, tmp_path / "twin", twin, found, **knobs).grads
    assert apart(found, wanted) < ROUNDED.get(kind, 1e-5)
    case = Case(size=8, options=checkpointing(reentrant=False))
    again = stepped(column, tmp_path / "again", quantised(kind), case=case, **knobs).grads
    assert apart(again, found) < 1e-5
    before = stepped(column, tmp_path / "before", talkative(), found, **knobs).grads
    assert apart(before, wanted) > 4e-2  # control: weights that are not rounded have another


def names(model: Any) -> set[str]:
    """The classes of the layers inside the blocks and of their weights."""
    used = linears(model).values()
    return {type(m).__name__ for m in [*used, *(getattr(layer, "weight", None) for layer in used)]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "column",
    [pytest.param(c, marks=marks("torchao int8 dynamic", c, refused=WHY_NOT)) for c in COLUMNS],
)
def test_layers_that_carry_no_gradient_are_refused(column: str, tmp_path: Path) -> None:
    trainer = trainer_of(column, tmp_path, Case(size=8), base=quantised("torchao_dynamic"))
    with pytest.raises(CaptureError, match="carry no gradient"):
        step(trainer)
    assert trainer.state.global_step == 0
