"""Trainers of one's own, that emoreg has never heard of, get the terms all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from datasets import Dataset
from hand import error
from models import tokenizer, with_lora
from torch import Tensor
from trainers import logged
from transformers import Trainer, TrainingArguments
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from windows import Watch, control, make, of_data, silence


class Halved(SFTTrainer):
    """Scales its loss."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) / 2


class Measured(DPOTrainer):
    """Has a metric of its own."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["longest"].append(float(inputs["attention_mask"].sum(1).max()))
        return super().compute_loss(model, inputs, *args, **kwargs)


class Imitator(GRPOTrainer):
    """Has another loss over its rollouts, with a forward of its own."""

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        said = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        good = (inputs["advantages"] > 0)[:, None] & mask[:, 1:].bool()
        return -(said * good).sum() / good.sum().clamp(min=1)


class Reminded(SFTTrainer):
    """Runs the policy over other texts too, with gradients."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        old = tokenizer()(list(zoo.BAD[:2]), return_tensors="pt", padding=True)
        before = model(**old).logits.square().mean()
        return super().compute_loss(model, *args, **kwargs) + before


class Scored(SFTTrainer):
    """Pairs its loss with outputs when asked, and reads its batch once more without gradients."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("DPO", Measured), ("GRPO", Imitator), ("SFT", Reminded), ("SFT", Scored)],
)
def test_a_subclass_has_the_gradient_and_the_log_of_a_direct_computation(
    name: str, kind: type[Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.TRAINERS, name, replace(zoo.TRAINERS[name], trainer=kind))
    trainer = make(name, tmp_path)
    assert type(trainer) is kind
    silence(trainer)
    watch = Watch(trainer, name)
    control(trainer)
    trainer.train()
    for step in range(2):
        means, wanted = watch.wanted(step)
        assert error(watch.grads[step], wanted) < 1e-5
        assert logged(trainer, "emoreg/loss")[step] == pytest.approx(means["loss"], rel=1e-5)
    if kind is Measured:
        lengths = [[len(row.ids) for row in window] for window in watch.windows]
        longest = [(max(n[:2] + n[4:6]) + max(n[2:4] + n[6:])) / 2 for n in lengths]
        assert logged(trainer, "longest") == longest  # control: its metric is as it was


def test_a_subclass_that_scales_its_own_loss_does_not_scale_the_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.TRAINERS, "SFT", replace(zoo.TRAINERS["SFT"], trainer=Halved))

    def watched(**knobs: Any) -> Watch:
        trainer = make("SFT", tmp_path, max_steps=1)
        watch = Watch(trainer, "SFT")
        if knobs:
            control(trainer, **knobs)
        trainer.train()
        return watch

    plain, found = watched(), watched(penalize={"desperate": 100.0}, reward={"calm": 50.0})
    added = {n: (g - plain.grads[0][n]) / 100 for n, g in found.grads[0].items()}
    assert error(added, found.wanted()[1]) < 1e-4
    (before,), (after,) = (logged(watch.trainer, "loss") for watch in (plain, found))
    (term,) = logged(found.trainer, "emoreg/loss")
    assert after - before == pytest.approx(term, rel=1e-4)


# --- trainers of Transformers alone ---------------------------------------------------------


def rows() -> list[dict[str, list[int]]]:
    """The data of SFT as ids, and where the answer begins."""
    return [{"input_ids": list(r.ids), "begins": [min(r.own)]} for r in of_data("SFT", range(8))]


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Ids, mask and where answers begin."""
    width = max(len(row["input_ids"]) for row in batch)
    fill = [[0] * (width - len(row["input_ids"])) for row in batch]
    ids = [row["input_ids"] + more for row, more in zip(batch, fill, strict=True)]
    mask = [[1] * len(row["input_ids"]) + more for row, more in zip(batch, fill, strict=True)]
    begins = torch.tensor([row["begins"] for row in batch])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "begins": begins}


def labels_of(batch: dict[str, Tensor]) -> Tensor:
    ids, real = batch["input_ids"], batch["attention_mask"] == 1
    own = torch.arange(ids.shape[1]) >= batch["begins"]
    return ids.masked_fill(~(own & real), -100)


def labelled(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    found = padded(batch)
    labels = labels_of(found)
    del found["begins"]
    return {**found, "labels": labels}


class Popping(Trainer):
    """Takes the labels out of its batch, as the pages of Transformers show it."""

    def compute_loss(self, model: Any, inputs: Any, *_args: Any, **_kwargs: Any) -> Any:
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)


class Labelling(Trainer):
    """Makes up labels that its batches do not have."""

    def compute_loss(self, model: Any, inputs: Any, *_args: Any, **_kwargs: Any) -> Any:
        labels = labels_of(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def plain(tmp_path: Path, kind: type[Trainer], collate: Callable[..., Any], **args: Any) -> Trainer:
    """A trainer of Transformers for one step over all the data."""
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    settings = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=1,
        max_grad_norm=0.0, logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
        **{**split, **args},
    )  # fmt: skip
    return kind(
        with_lora(zoo.head()), settings, collate, Dataset.from_list(rows()),
        processing_class=tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "collate", "args"),
    [
        (Trainer, labelled, {}),
        (Trainer, labelled, {"label_smoothing_factor": 0.1}),
        (Popping, labelled, {}),
        # Its labels are not known before its loss, so only a window of one batch is told.
        (Labelling, padded, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}),
    ],
    ids=["labels of the batch", "smoothed", "popped", "labels of the trainer"],
)
def test_a_trainer_of_transformers_has_the_gradient_of_a_direct_computation(
    kind: type[Trainer],
    collate: Callable[..., Any],
    args: dict[str, Any],
    tmp_path: Path,
) -> None:
    trainer = plain(tmp_path, kind, collate, **args)
    silence(trainer)
    watch = Watch(trainer, "SFT")
    control(trainer)
    trainer.train()
    means, wanted = watch.wanted(unit="tokens")
    assert error(watch.grads[0], wanted) < 1e-5
    assert logged(trainer, "emoreg/loss") == pytest.approx([means["loss"]], rel=1e-5)
