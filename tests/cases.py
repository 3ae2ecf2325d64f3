"""A trainer of a LoRA in every layout of a model on two processes, and on one without any."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import zoo
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from models import tokenizer, vector_set, with_lora
from safetensors.torch import save_file
from trainers import PROMPT_FILE
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from ways import KNOBS, control, llama, make

from emoreg import DriftCallback
from emoreg.identity import identity


@dataclass(frozen=True)
class Case:
    """How sequences are spread over micro-batches of a process, and under what."""

    size: int = 4
    steps: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    load: str = ""  # how a saved model is loaded, sharded at once: "fsdp" or "zero"

    @property
    def shape(self) -> dict[str, Any]:
        """Every field of a trainer's configuration that the case sets."""
        spread = {"per_device_train_batch_size": self.size}
        return {**spread, "gradient_accumulation_steps": self.steps, **self.options}


def checkpointing(reentrant: bool) -> dict[str, Any]:
    """Options of gradient checkpointing."""
    return {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }


def fsdp(**changes: Any) -> dict[str, Any]:
    """Options of FSDP 2 through accelerate."""
    wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    wrap["transformer_layer_cls_to_wrap"] = "LlamaDecoderLayer"
    return {"fsdp": True, "fsdp_config": {"version": 2, **wrap, **changes}}


def zero(stage: int) -> dict[str, Any]:
    """Options of a DeepSpeed ZeRO stage; no parameter is too small to be sharded."""
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "optimizer": {"type": "Adam", "params": {"lr": "auto", "torch_adam": True}},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    }


USED = {"ddp_find_unused_parameters": False}
CASES = {
    "ddp": Case(),
    "ddp_ga": Case(size=2, steps=2),
    "ddp_checkpoint": Case(options=checkpointing(False)),
    "ddp_reentrant": Case(options={**checkpointing(True), **USED}),
    "fsdp2": Case(options=fsdp()),
    "fsdp2_ga": Case(size=2, steps=2, options=fsdp()),
    "fsdp2_checkpoint": Case(options={**fsdp(), **checkpointing(False)}),
    "fsdp2_activation": Case(options=fsdp(activation_checkpointing=True)),
    "native": Case(load="fsdp"),
    "native_ga": Case(size=2, steps=2, load="fsdp"),
    "native_checkpoint": Case(load="fsdp", options=checkpointing(False)),
    "zero1": Case(options=zero(1)),
    "zero1_ga": Case(size=2, steps=2, options=zero(1)),
    "zero2": Case(options=zero(2)),
    "zero2_ga": Case(size=2, steps=2, options=zero(2)),
    "zero3": Case(options=zero(3)),
    "zero3_ga": Case(size=2, steps=2, options=zero(3)),
    "zero3_init": Case(options=zero(3), load="zero"),
    "zero3_checkpoint": Case(options={**zero(3), "gradient_checkpointing": True}),
}
GREEDY = {"generation_kwargs": {"do_sample": False, "temperature": None}}
HOW: dict[str, dict[str, Any]] = {  # knobs beside those of `ways`
    "neutral": {},
    "base": {"anchor": "base", "keep": 0.05, "blocks": [1]},
    "drift": {},
}


def talkative() -> Any:
    """A tiny Llama whose likeliest completions are of unlike lengths."""
    made = llama()
    made.lm_head.weight.data[1] /= 2  # of the end
    return made


def trainer_of(
    column: str, folder: Path, case: Case, how: str = "neutral", base: Any = None
) -> Any:
    """A trainer of a LoRA; GRPO says the same in every case.

    Args:
        column: Its name in `zoo`.
        folder: Where it writes.
        case: How it trains.
        how: Of `HOW`; whoever compares with the base sees it twice.
        base: The model below the LoRA.
    """
    base = talkative() if base is None else base  # before DeepSpeed's options, which shard it
    options = {**case.shape, **(GREEDY if column == "GRPO" else {})}
    if case.load:
        before = zoo.TRAINERS[column].settings(folder, **options)  # sets the processes up
        base = sharded(base, case.load)
        del before
    options["max_steps"] = 2 if how == "base" else 1
    return make(column, folder, with_lora(base, task_type="CAUSAL_LM"), **options)


def sharded(base: Any, how: str) -> Any:
    """The same model again, sharded while it is loaded from a folder of this process."""
    folder = tempfile.mkdtemp()
    base.config.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in base.state_dict().items()}
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    more: dict[str, Any] = {}
    if how == "fsdp":
        from transformers.distributed import DistributedConfig

        more["distributed_config"] = DistributedConfig(fsdp_size=2)
    return type(base).from_pretrained(folder, dtype=torch.float32, **more)


def regularize(trainer: Any, how: str) -> None:
    """Add the callbacks, with vectors made for the trainer's model."""
    control(trainer, **HOW[how])
    if how == "drift":
        vectors = vector_set(card={"model": identity(trainer.model, tokenizer())})
        watch = {"prompts": PROMPT_FILE, "drift_steps": 1, "blocks": KNOBS["blocks"]}
        trainer.add_callback(DriftCallback(trainer, vectors, **watch))


@contextmanager
def clean() -> Iterator[None]:
    """Leave no layout behind for the next trainer of this process."""
    before = AcceleratorState.__init__
    AcceleratorState.__init__ = fsdp_on_cpu(before)
    try:
        yield
    finally:
        AcceleratorState.__init__ = before
        unset_hf_deepspeed_config()


def fsdp_on_cpu(before: Any) -> Any:
    """Let accelerate choose FSDP on the CPU, which it leaves out of the list of its devices."""

    @wraps(before)
    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        before(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    return init
