"""One optimizer step of a trainer whose loss is the terms alone, and the same step by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from datasets import Dataset
from models import causal_lm, tokenizer, vector_set
from peft import LoraConfig
from torch import Tensor, nn
from trainers import Recorder

from emoreg.identity import identity
from emoreg.regularizer import EmotionRegularizer

Grads = dict[str, Tensor]
COLUMNS = ("SFT", "DPO", "GRPO")
KNOBS: dict[str, Any] = {"penalize": {"desperate": 0.5}, "reward": {"calm": 0.3}, "blocks": [0, 1]}
ONE_STEP = {
    "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    "learning_rate": 0.0, "max_grad_norm": 0.0,
}  # fmt: skip


def marks(row: str, column: str, refused: str | None = None, slow: bool = False) -> list[Any]:
    """The marks of a test of one cell of the table of ways."""
    told = {} if refused is None else {"refused": refused}
    return [pytest.mark.cell("ways", row, column, **told)] + [pytest.mark.slow] * slow


def cells(rows: Iterable[str], columns: Sequence[str] = COLUMNS, **options: Any) -> list[Any]:
    """The parameters ``row, column`` of all cells of some rows and columns."""
    return [
        pytest.param(row, column, marks=marks(row, column, **options), id=f"{row}-{column}")
        for row in rows
        for column in columns
    ]


def columns_of(row: str, columns: Sequence[str] = COLUMNS, **options: Any) -> list[Any]:
    """The parameter ``column`` of the cells of one row."""
    return [pytest.param(column, marks=marks(row, column, **options)) for column in columns]


def llama(family: str = "llama", **changes: Any) -> Any:
    """A model that knows the ids of `tokenizer()`, and whose blocks do more than its embeddings."""
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1}
    made = causal_lm(family, bos_token_id=None, initializer_range=0.2, **ids, **changes)
    if not made.config.tie_word_embeddings:
        made.lm_head.weight.data[1] *= 8  # ends some completions early
    return made


def make(
    name: str, tmp_path: Path, model: Any = None, peft: Any = None, rows: Any = None,
    tok: Any = None, more: Mapping[str, Any] | None = None, **args: Any,
) -> Any:  # fmt: skip
    """A trainer of `zoo.TRAINERS`, with any adapter, that takes one step and moves nothing."""
    builder = zoo.TRAINERS[name]
    settings = builder.settings(tmp_path, **{**ONE_STEP, **args})
    model = llama() if model is None else model
    if not hasattr(model, "peft_config"):
        model = zoo.at_home(model, tmp_path / "policy")
    given = {"reward_funcs": zoo.reward} if "reward_funcs" in builder.needs else {}
    given |= {} if peft is None else {"peft_config": peft}
    if rows is None:
        rows = Dataset.from_dict(dict(builder.columns))
    made = builder.trainer(
        model=model, args=settings, processing_class=tok or tokenizer(), **given,
        train_dataset=zoo.table(rows), **(more or {}),
    )  # fmt: skip
    zoo.in_order(made)
    return made


def lora(**changes: Any) -> LoraConfig:
    """LoRA on some linear layers of every block."""
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"], **changes})


def trained(name: str, tmp_path: Path, model: Any = None, peft: Any = "lora", **args: Any) -> Any:
    """The same, with what is trained, LoRA unless told, moved from where it starts."""
    made = make(name, tmp_path, model, lora() if peft == "lora" else deepcopy(peft), **args)
    stir(made.model)
    return made


def stir(model: nn.Module) -> None:
    """Move every trained parameter, so that adapters change the model and all have gradients."""
    draw = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data += (0.1 * noise).to(parameter)


def silence(trainer: Any) -> list[dict[str, Any]]:
    """Make the trainer's own loss zero; the batches of training that reach it, as they come."""
    before, seen = trainer.compute_loss, []

    def silent(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.append(dict(inputs))
        found = before(model, inputs, *args, **kwargs)
        return (found[0] * 0.0, *found[1:]) if isinstance(found, tuple) else found * 0.0

    trainer.compute_loss = silent
    return seen


def control(trainer: Any, **knobs: Any) -> EmotionRegularizer:
    """A regularizer that is added to its trainer."""
    made_for = identity(trainer.model, tokenizer())
    vectors = vector_set(card={"model": made_for})
    knobs = {**KNOBS, "check_name": False, **knobs}
    found = EmotionRegularizer(trainer, vectors, **knobs)
    trainer.add_callback(found)
    return found


@dataclass
class Step:
    """What one optimizer step left behind."""

    trainer: Any
    grads: Grads
    batches: list[dict[str, Any]]

    def log(self, key: str) -> list[float]:
        """Every value of a logged key."""
        return [row[key] for row in self.trainer.state.log_history if key in row]


def step(trainer: Any, **knobs: Any) -> Step:
    """Train with the terms alone; the gradients just before the first optimizer step."""
    batches, recorder = silence(trainer), Recorder()
    control(trainer, **knobs)
    trainer.add_callback(recorder)
    trainer.train()
    return Step(trainer, recorder.grads[0], batches)


# --- by hand --------------------------------------------------------------------------------


@dataclass
class Row:
    """One sequence without padding, and the places in it that count."""

    ids: Tensor
    at: list[int]
    extra: dict[str, Any] = field(default_factory=dict)  # other inputs of the model


def places(target: Sequence[bool]) -> list[int]:
    """Where a sequence counts: at its targets and just before each run of them; never first."""
    after = [*target[1:], False]
    return [i for i in range(1, len(target)) if target[i] or after[i]]


def unpadded(batches: Sequence[Mapping[str, Any]], left: bool = False) -> list[Row]:
    """The sequences of a trainer's batches, one by one.

    Virtual tokens stand before the padding that TRL puts on the left, so their distance to the text
    depends on it; `left` keeps that padding.
    """
    rows = []
    for batch in batches:
        for ids, target, mask in zip(*_columns(batch), strict=True):
            real = mask.bool()
            row = Row(ids[real], places(target[real].tolist()))
            if left:
                pads, end = int(mask.argmax()), int(real.nonzero().max()) + 1
                own = {"attention_mask": mask[None, :end]}
                row = Row(ids[:end], [pads + i for i in row.at], own)
            rows.append(row)
    return rows


def _columns(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, which of them are targets, and which are no padding."""
    if "prompt_ids" in batch:
        after = batch["completion_mask"]
        own = after * batch.get("tool_mask", torch.ones_like(after))
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        target = torch.cat([torch.zeros_like(batch["prompt_ids"]), own], 1) == 1
        return ids, target, torch.cat([batch["prompt_mask"], after], 1)
    ids = batch["input_ids"]
    real = batch.get("attention_mask", torch.ones_like(ids))
    told = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
    return ids, told, real


def blocks_of(model: Any) -> Any:
    """The decoder blocks, by the names that the models here have."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = getattr(inner, "model", inner)
    return getattr(inner, "language_model", inner).layers


def read(model: Any, row: Row, blocks: Sequence[int]) -> dict[tuple[str, str, int], Tensor]:
    """Readings of one unpadded sequence where it counts: (facet, emotion, block) -> (places,)."""
    vectors, seen = vector_set(), {}
    handles = [
        blocks_of(model)[b].register_forward_hook(
            lambda *a, b=b: seen.update({b: a[-1][0] if isinstance(a[-1], tuple) else a[-1]})
        )
        for b in blocks
    ]
    try:
        model(input_ids=row.ids[None], **row.extra)
    finally:
        for handle in handles:
            handle.remove()
    own = {b: h[0, -len(row.ids) :][row.at].float() for b, h in seen.items()}
    return {
        (f.name, emotion, b): (own[b] - vectors.mu[b]) @ f.directions[e, b] / f.sigma[e, b]
        for f in vectors.facets
        for e, emotion in enumerate(f.emotions)
        for b in blocks
    }


def terms(
    model: Any, rows: Sequence[Row], unit: str, base: Callable[[Row], Any] | None = None
) -> Tensor:
    """The weighted terms as a mean over tokens, or over sequences of the mean of each."""
    totals, number = [], 0
    for row in rows:
        if not row.at:
            continue
        now = read(model, row, KNOBS["blocks"])
        before = base(row) if base else dict.fromkeys(now, 0.0)
        value = torch.zeros(len(row.at))
        for sign, weighted in ((1, KNOBS["penalize"]), (-1, KNOBS["reward"])):
            for emotion, weight in weighted.items():
                keys = [k for k in now if k[1] == emotion]
                beyond = torch.stack([sign * (now[k] - before[k]) for k in keys])
                value = value + weight * beyond.clamp(min=0).square().mean(0)
        totals.append(value.sum() if unit == "tokens" else value.mean())
        number += len(row.at) if unit == "tokens" else 1
    return torch.stack(totals).sum() / number


def by_hand(found: Step, rows: Sequence[Row] | None = None, anchor: str = "neutral") -> Grads:
    """The gradients that the step should have had, from the trainer's model as it is."""
    trainer, model = found.trainer, found.trainer.model.eval()
    parameters = {n: p for n, p in model.named_parameters() if n in found.grads}
    rows = unpadded(found.batches) if rows is None else rows
    base = _base(trainer) if anchor == "base" else None
    loss = terms(model, rows, unit_of(trainer), base)
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(parameters.items(), grads, strict=True)
    }


def _base(trainer: Any) -> Callable[[Row], Any]:
    """Reads a sequence with the adapters off, or with the reference model where there are none."""
    model = trainer.model

    def reading(row: Row) -> Any:
        trained = [(p, p.requires_grad) for p in model.parameters()]
        with torch.no_grad():
            if not hasattr(model, "disable_adapter"):
                return read(trainer.ref_model, row, KNOBS["blocks"])
            with model.disable_adapter():
                found = read(model, row, KNOBS["blocks"])
        for parameter, flag in trained:  # PEFT makes all of them trained
            parameter.requires_grad_(flag)
        return found

    return reading


def unit_of(trainer: Any) -> str:
    """Preferences weigh sequences alike; SFT, and GRPO by default, tokens."""
    return "tokens" if type(trainer).__name__ in ("SFTTrainer", "GRPOTrainer") else "sequences"


def apart(found: Grads, wanted: Grads) -> float:
    """The largest relative difference of a parameter's gradient; small ones by the whole."""
    assert found.keys() == wanted.keys()
    whole = torch.stack([w.float().norm() for w in wanted.values()]).norm()
    assert whole > 1e-3  # control: there is something
    differences = [
        (found[n].float() - w.float()).norm() / max(w.float().norm(), whole / 100)
        for n, w in wanted.items()
    ]
    return float(torch.stack(differences).max())
