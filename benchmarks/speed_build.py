"""A trainer of TRL over a model of random weights, what an arm puts beside it, and its step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from speed_arms import EMOTIONS, Arm, Shape
from speed_peers import PEERS
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from emoreg import EmotionRegularizer, EmotionVectors
from emoreg.base import adapters_off
from emoreg.identity import identity
from emoreg.probe import Facet
from emoreg.tiny import MODEL

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, {}),
    "dpo": (DPOTrainer, DPOConfig, {}),
    "grpo": (GRPOTrainer, GRPOConfig, {"beta": 0.04, "num_generations": 2, "max_steps": 1000}),
}
ROWS: dict[str, dict[str, list[str]]] = {  # for the constructors: steps have batches of their own
    "sft": {"prompt": ["a"] * 8, "completion": ["b"] * 8},
    "dpo": {"prompt": ["a"] * 8, "chosen": ["b"] * 8, "rejected": ["c"] * 8},
    "grpo": {"prompt": ["a"] * 8},
}
PROMPT = 4  # of that many tokens one is the prompt's, in DPO and GRPO


@dataclass(frozen=True)
class Setting:
    """What one ratio is of: everything but the arm."""

    shape: Shape
    trainer: str
    checkpointing: bool
    device: str
    emotions: int = len(EMOTIONS)

    def with_size(self, what: str, value: int) -> Setting:
        """The same with another number of emotions, blocks, tokens or rows."""
        if what == "emotions":
            return replace(self, emotions=value)
        if what == "blocks":
            last = max(self.shape.blocks[-1], value - 1)
            return replace(self, shape=replace(self.shape, blocks=_last(last, value)))
        return replace(self, shape=replace(self.shape, **{what: value}))


def _last(block: int, number: int) -> tuple[int, ...]:
    return tuple(range(block - number + 1, block + 1))


def base_model(setting: Setting) -> Any:
    """The model all arms share."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **setting.shape.sizes, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
        max_position_embeddings=32768,
    )  # fmt: skip
    with torch.device(setting.device):
        return Qwen2ForCausalLM._from_config(config, dtype=getattr(torch, setting.shape.dtype))


def sharing(model: nn.Module) -> Any:
    """A copy of a model with the same parameters and buffers."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def vectors(
    model: Any, setting: Setting, tokenizer: Any, suggested: Sequence[int] | None = None
) -> EmotionVectors:
    """Random directions in two facets: what they cost does not depend on values."""
    names = ("desperate", "calm", *(e for e in EMOTIONS if e not in ("desperate", "calm")))
    names, blocks = names[: setting.emotions], setting.shape.blocks
    draw = torch.Generator().manual_seed(0)
    shape = (2, len(names), len(blocks), setting.shape.sizes["hidden_size"])
    first, second = normalize(torch.randn(shape, generator=draw), dim=-1)
    second = normalize(second - (second * first).sum(-1, keepdim=True) * first, dim=-1)
    scale = torch.ones(shape[1:3])
    facets = (Facet("stories", names, first, scale), Facet("transcripts", names, second, scale))
    card = {"model": identity(model, tokenizer), "suggested_blocks": list(suggested or blocks)}
    return EmotionVectors(facets, blocks, torch.zeros(shape[2:]), card)


def tokenizer() -> PreTrainedTokenizerBase:
    """The embedded model's."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MODEL)
    return found


def batch(setting: Setting) -> dict[str, Tensor]:
    """One micro-batch as the trainer's loss gets it, without padding."""
    shape = setting.shape
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 256, (shape.rows, shape.tokens), generator=draw)
    ones = torch.ones_like(ids)
    if setting.trainer == "sft":
        return {"input_ids": ids, "attention_mask": ones, "labels": ids.clone()}
    begins = shape.tokens // PROMPT
    after = (torch.arange(shape.tokens) >= begins).long().expand_as(ids).contiguous()
    if setting.trainer == "dpo":
        return {"input_ids": ids, "attention_mask": ones, "completion_mask": after}
    return {
        "prompt_ids": ids[:, :begins].contiguous(),
        "prompt_mask": ones[:, :begins].contiguous(),
        "completion_ids": ids[:, begins:].contiguous(),
        "completion_mask": ones[:, begins:].contiguous(),
        "advantages": torch.linspace(-1, 1, shape.rows),
        "num_items_in_batch": torch.tensor(shape.rows * (shape.tokens - begins)),
    }


def make_trainer(setting: Setting, model: Any, **changes: Any) -> Any:
    """A trainer with LoRA on all linear layers, ready to step."""
    kind, config, own = KINDS[setting.trainer]
    cpu = setting.device == "cpu"
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": cpu, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        "per_device_train_batch_size": 2, "max_steps": 1000, "learning_rate": 1e-5,
        "bf16": setting.shape.dtype == "bfloat16", "logging_steps": 10,
        "gradient_checkpointing": setting.checkpointing, **own, **changes,
    }  # fmt: skip
    more = {"reward_funcs": _nothing} if setting.trainer == "grpo" else {}
    trainer = kind(
        model, args=config(**settings), processing_class=tokenizer(), **more,
        train_dataset=Dataset.from_dict(ROWS[setting.trainer]),
        peft_config=LoraConfig(r=setting.shape.rank, target_modules="all-linear"),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if setting.checkpointing:  # as `train` does
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.create_optimizer_and_scheduler(1000)
    trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped = trainer.model
    trainer.state.max_steps, trainer.state.global_step = 1000, 1
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def _nothing(completions: list[Any], **_kwargs: Any) -> list[float]:
    return [0.0 for _ in completions]


class Bench:
    """One arm: its trainer, and a step of it.

    Args:
        setting: Shape, trainer and device.
        arm: What stands beside the trainer.
        model: The base model, whose weights are shared.
        real: Within, tensors have values although the model's may have none.
        changes: Other arguments of the trainer.
    """

    def __init__(
        self,
        setting: Setting,
        arm: Arm,
        model: Any,
        real: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **changes: Any,
    ) -> None:
        self.setting, self.arm = setting, arm
        trainer = self.trainer = make_trainer(setting, sharing(model), **changes)
        self.regularizer: EmotionRegularizer | None = None
        with real():
            self.inputs = {k: v.to(setting.device) for k, v in batch(setting).items()}
            self.vectors = vectors(trainer.model, setting, trainer.processing_class)
            if arm.knobs is not None:
                self.regularizer = self._regularize(arm.knobs)
            if arm.peer is not None:
                PEERS[arm.peer](trainer, self.vectors.probe())
            if setting.trainer == "grpo":
                trainer._prepare_inputs = self._rollout
            trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
            if arm.facets and self.regularizer is not None:
                self.regularizer.terms.extend(self._refitted(arm.facets))

    def _regularize(self, knobs: Mapping[str, Any]) -> EmotionRegularizer:
        held = self.vectors.emotions
        own = {
            k: {e: w for e, w in v.items() if e in held} if k in ("penalize", "reward") else v
            for k, v in knobs.items()
        }
        found = EmotionRegularizer(self.trainer, self.vectors, **own)
        self.trainer.add_callback(found)
        return found

    def _refitted(self, number: int) -> list[Facet]:
        """More facets of what is watched, as `emoreg_refit_facets` allows at most."""
        assert self.regularizer is not None
        names = self.regularizer.terms.watched
        at = [self.vectors.emotions.index(e) for e in names]
        found = []
        for i in range(number):
            rows = self.vectors.facets[0].directions[at].roll(i + 1, -1)
            found.append(Facet(f"own@{i}", names, rows, torch.ones(rows.shape[:2])))
        return found

    def step(self) -> Tensor:
        """A whole training step with its optimizer, as `Trainer` takes it; the loss."""
        t = self.trainer
        events = t.callback_handler
        events.on_step_begin(t.args, t.state, t.control)
        [inputs], items = t.get_batch_samples(iter([dict(self.inputs)]), 1, t.args.device)
        loss: Tensor = t.training_step(t.model, inputs, items)
        t.accelerator.clip_grad_norm_(t.model.parameters(), t.args.max_grad_norm)
        events.on_pre_optimizer_step(t.args, t.state, t.control)
        t.optimizer.step()
        events.on_optimizer_step(t.args, t.state, t.control)
        t.lr_scheduler.step()
        t.model.zero_grad()
        events.on_step_end(t.args, t.state, t.control)
        return loss

    def line(self) -> dict[str, Any]:
        """One line of the log; what is in it."""
        self.trainer.log({"loss": 1.0})
        found: dict[str, Any] = self.trainer.state.log_history[-1]
        return found

    def _rollout(self, inputs: Any) -> Any:
        """What GRPO does with a sampled rollout before its loss: the reference scores it."""
        t, both = self.trainer, {}
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad(), adapters_off(t.accelerator.unwrap_model(t.model)):
            both["ref_per_token_logps"] = t._get_per_token_logps_and_entropies(
                t.model, ids, mask, inputs["completion_ids"].shape[1]
            )[0]
        return {**inputs, **both}

    def own_bytes(self, moments: int = 0) -> int:
        """What stays on the device of one arm alone: weights, and so many moments of each."""
        held = {id(p): p for p in self.trainer.model.parameters()}.values()
        return sum(p.nbytes * (1 + (moments if p.requires_grad else 0)) for p in held)
