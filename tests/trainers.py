"""A small model, its tokenizer, random vectors and trainers, for the tests of what trains."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from emoreg.identity import identity
from emoreg.probe import Facet
from emoreg.regularizer import EmotionRegularizer
from emoreg.vectors import EmotionVectors

gc.freeze()  # every train() collects garbage, and the modules imported so far are none

WIDTH, BLOCKS = 32, 3
EMOTIONS = ("afraid", "calm", "desperate", "happy")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPTS = (
    "The tests fail again.", "Say hello.", "Nothing works and the boss waits.", "What is tea?",
    "How far is it from the harbour to the hill?", "Two.", "The boat is late; what now?",
    "Why rain?",
)  # fmt: skip
COMPLETIONS = (
    "Look at the log.", "Hi.", "Breathe; then one step after another until it runs.", "Leaves.",
    "Four miles.", "Two and two are four.", "Wait for the next one.", "Clouds are heavy today.",
)  # fmt: skip
PROMPT_FILE = Path(__file__).parent / "prompts.jsonl"
EVERYTHING: dict[str, Any] = {
    "penalize": {"desperate": 0.1, "afraid": 0.05}, "reward": {"calm": 0.05}, "blocks": [0, 1],
}  # fmt: skip


@cache
def make_tokenizer() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*PROMPTS, *COMPLETIONS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    return fast


def make_base(seed: int = 0, blocks: int = BLOCKS, width: int = WIDTH) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_model(seed: int = 0, awake: bool = True, **lora: Any) -> PeftModel:
    """A LoRA model; unless `awake` its B are zero, as at the start of any training."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.0}
    base = make_base(seed)
    model = get_peft_model(base, LoraConfig(**{**settings, **lora}))
    if awake:
        wake(model)
    return model


def wake(model: nn.Module) -> None:
    """Fill every LoRA B, so that A has a gradient too and the model is not the base."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def make_prompted() -> Any:
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return get_peft_model(make_base(), config)


@cache
def make_vectors(emotions: tuple[str, ...] = EMOTIONS) -> EmotionVectors:
    """Random directions: every emotion in the first facet, two of them in a second."""
    generator = torch.Generator().manual_seed(2)
    blocks = tuple(range(BLOCKS))

    def unit(count: int) -> Tensor:
        found = torch.randn(count, BLOCKS, WIDTH, generator=generator)
        return found / found.norm(dim=-1, keepdim=True)

    def scales(count: int) -> Tensor:
        return 0.5 + torch.rand(count, BLOCKS, generator=generator)

    first, some = unit(len(emotions)), [e for e in ("calm", "desperate") if e in emotions]
    along = first[[emotions.index(e) for e in some]]
    second = unit(len(some))
    second = second - (second * along).sum(-1, keepdim=True) * along
    second = second / second.norm(dim=-1, keepdim=True)
    facets = (
        Facet("stories", emotions, first, scales(len(emotions))),
        Facet("transcripts", tuple(some), second, scales(len(some))),
    )
    mu = 0.1 * torch.randn(BLOCKS, WIDTH, generator=generator)
    with torch.random.fork_rng(devices=[]):  # the caller may have seeded its own
        card = {"model": identity(make_base(), make_tokenizer()), "suggested_blocks": [1]}
    return EmotionVectors(facets, blocks, mu, card)


def make_rows(count: int = 8, equal: bool = False) -> Dataset:
    """Prompt-completion rows of ragged lengths, or all alike in length."""
    pairs = list(zip(PROMPTS, COMPLETIONS, strict=True))[:count]
    if equal:
        pairs = [("Say " + c, "So: " + c) for c in "abcdefgh"[:count]]
    return Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})


def make_config(folder: Path, **changes: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "save_strategy": "no", "dataloader_pin_memory": False, "disable_tqdm": True,
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 1,
        "logging_steps": 1, "max_grad_norm": 0.0, "learning_rate": 1e-2, "max_length": None,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return SFTConfig(**{**settings, **changes})


class InOrder(SFTTrainer):
    """An SFTTrainer that reads its rows in their order."""

    def _get_train_sampler(self, *_args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def make_trainer(
    folder: Path, model: nn.Module | None = None, rows: Dataset | None = None,
    eval_rows: Any = None, kind: type[SFTTrainer] = InOrder, **changes: Any,
) -> SFTTrainer:  # fmt: skip
    return kind(
        model=make_model() if model is None else model,
        args=make_config(folder, **changes),
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=make_tokenizer(),
    )


def control(trainer: Any, vectors: Any = None, **knobs: Any) -> EmotionRegularizer:
    """A regularizer that is added to its trainer."""
    found = EmotionRegularizer(trainer, vectors or make_vectors(), **{**EVERYTHING, **knobs})
    trainer.add_callback(found)
    return found


class Recorder(TrainerCallback):
    """Keeps the gradient of every trained parameter just before each optimizer step."""

    def __init__(self) -> None:
        self.grads: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_args: Any, model: nn.Module, **_kwargs: Any) -> None:
        self.grads.append(gradients(model))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every trainable parameter, zero where there is none."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in model.named_parameters()
        if p.requires_grad
    }


class Do(TrainerCallback):
    """Calls a function at one event of a trainer."""

    def __init__(self, event: str, do: Callable[..., Any]) -> None:
        def at(*_args: Any, **kwargs: Any) -> None:
            do(**kwargs)

        setattr(self, event, at)


def silence(trainer: SFTTrainer) -> None:
    """Multiply the trainer's own loss by zero, so that gradients are those of the terms alone."""
    before = trainer.compute_loss

    def silent(*args: Any, **kwargs: Any) -> Tensor:
        return before(*args, **kwargs) * 0

    trainer.compute_loss = silent


def logged(trainer: SFTTrainer, key: str) -> list[float]:
    """Every value of a key in the trainer's log, in order."""
    return [row[key] for row in trainer.state.log_history if key in row]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def hooks(model: nn.Module) -> list[tuple[str, str, int]]:
    """Every hook of every module, by identity."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, kind, key)
        for name, module in model.named_modules()
        for kind in kinds
        for key in getattr(module, kind)
    ]


def assert_same(
    found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    assert found.keys() == wanted.keys()
    assert sum(float(g.abs().sum()) for g in wanted.values()) > 1e-3  # control: there is something
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=rtol, atol=atol)
