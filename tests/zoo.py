"""A tiny trainer of every class that the installed TRL ships and that needs no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from datasets import Dataset
from models import SIZES, causal_lm, tokenizer, with_lora
from peft import LoraConfig, PeftModel
from torch import manual_seed, randn_like
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    Trainer,
)

Columns = Mapping[str, Sequence[Any]]

NEEDS_SERVER = {
    "AsyncGRPO": "samples from a vLLM server that it sends its weights to",
    "AsyncDistillation": "samples from one vLLM server and has another as its teacher",
    "ServerDistillation": "asks a vLLM server for the teacher's log-probabilities",
}
DEFAULTS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "seed": 0,
    "disable_tqdm": True, "dataloader_pin_memory": False, "logging_steps": 1, "max_steps": 2,
    "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-3,
    "gradient_accumulation_steps": 2, "gradient_checkpointing": False,
    # Where there is such a field: rows in their order, and two short samples of each prompt.
    "train_sampling_strategy": "sequential", "shuffle_dataset": False, "num_generations": 2,
    "max_completion_length": 6, "max_new_tokens": 6,
}  # fmt: skip
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": False}
PROMPTS = (
    "The lamp is out again.", "Say hello.", "Nothing fits and the train leaves at six.", "Tea?",
    "How far is the mill from the bridge?", "One, two,", "The bread did not rise; why?", "Why?",
)  # fmt: skip
GOOD = (
    "Look at the fuse.", "Hello.", "Take half of it out, then close the bag.", "Yes.", "Two miles.",
    "three, four", "Old yeast, or a cold room, or both of them.", "Nobody knows.",
)  # fmt: skip
BAD = (
    "So?", "Hello to you and to all of yours.", "No.", "Tea is made of leaves.", "Far enough.",
    "five", "It is bread.", "Because I say so, and that is that.",
)  # fmt: skip
HINTS = ("fuse", "greet", "less", "yes", "2", "count on", "the yeast was old", "no one knows")


def chats(*turns: Sequence[str]) -> list[list[dict[str, str]]]:
    """Conversations that alternate between a user and an assistant."""
    roles = ("user", "assistant")
    return [
        [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        for texts in zip(*turns, strict=True)
    ]


ANSWERS: Columns = {"prompt": PROMPTS, "completion": GOOD}
ASKED: Columns = {"prompt": PROMPTS}
CHATS: Columns = {"messages": chats(PROMPTS, GOOD)}
HINTED: Columns = {"prompt": chats(PROMPTS), "privileged_context": HINTS}
PAIRS: Columns = {"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD}
TRIPLES: Columns = {**PAIRS, "reference": (*GOOD[1:], GOOD[0])}
MIXED = [(GOOD, BAD)[i % 2][i] for i in range(8)]
JUDGED: Columns = {"prompt": PROMPTS, "completion": MIXED, "label": [True, False] * 4}
BOTH = [list(pair) for pair in zip(GOOD, BAD, strict=True)]
STEPS: Columns = {"prompt": PROMPTS, "completions": BOTH, "labels": [[True, False]] * 8}


def reward(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
) -> list[float]:
    """From 0 to 1, by every token (or byte, without tokens) and, lest any be alike, by place."""
    given = completion_ids or [str(text).encode() for text in completions]
    return [(sum(ids) + i) % 101 / 100 for i, ids in enumerate(given)]


class Judge:
    """Prefers the completion with the higher reward."""

    def judge(self, _prompts: Any, pairs: Any, return_scores: bool = False) -> list[float]:
        """The place of the better one in each pair, or whether that is the first."""
        scores = [reward(pair) for pair in pairs]
        return [float(a > b) if return_scores else int(a < b) for a, b in scores]


def head(auto: Any = None) -> Any:
    """`causal_lm()` that knows the ids of `tokenizer()`, or another head on the same sizes."""
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1}
    if auto is None:
        model = causal_lm(bos_token_id=None, **ids)
        manual_seed(1)
        model.lm_head.weight.data[1].normal_()  # ends some completions early
        return model
    manual_seed(0)
    labels = 1 if auto is AutoModelForSequenceClassification else 2
    shape = {**SIZES, "bos_token_id": None, "num_labels": labels, **ids}
    return auto.from_config(LlamaConfig(**shape)).eval()


def table(rows: Any) -> Any:
    """Rows as a data set, if they are a list."""
    return Dataset.from_list(rows) if isinstance(rows, list) else rows


def at_home(model: Any, folder: Path) -> Any:
    """The model with a folder to its name, where hosts find its weights and its tokenizer again."""
    if not model.config._name_or_path:
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = str(folder)
    return model


def teacher(folder: Path) -> Any:
    """A language model like the policy, with other weights."""
    model = head()
    manual_seed(7)
    for weight in model.parameters():
        weight.data.add_(randn_like(weight), alpha=0.1)
    return at_home(model, folder)


def in_order(trainer: Any) -> None:
    """Let a host too old for `train_sampling_strategy` read its rows in their order."""
    own = type(trainer)._get_train_sampler is not Trainer._get_train_sampler
    if not own and not hasattr(trainer.args, "train_sampling_strategy"):
        trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)


@dataclass(frozen=True)
class Builder:
    """How one class of trainers is made."""

    trainer: type[Trainer]
    config: Any
    columns: Columns
    needs: tuple[str, ...] = ("peft_config",)
    args: Mapping[str, Any] = field(default_factory=dict)
    auto: Any = None
    task: str = "CAUSAL_LM"

    def __call__(
        self, tmp_path: Path, model: Any, lora: bool, rows: Any, eval_rows: Any, **args: Any
    ) -> Trainer:
        """The trainer, ready to train."""
        default = Dataset.from_dict(dict(self.columns))
        if eval_rows is None and args.get("eval_strategy", "no") != "no":
            eval_rows = default.select(range(4))
        settings = self.settings(tmp_path, **args)
        model, needs = self.policy(tmp_path / "policy", model, lora)
        extra = {need: self.given(need, tmp_path) for need in needs}
        manual_seed(settings.seed)  # for the adapters' weights; late hosts do so themselves
        made = self.trainer(
            model=model, args=settings, processing_class=tokenizer(), **extra,
            train_dataset=table(default if rows is None else rows), eval_dataset=table(eval_rows),
        )  # fmt: skip
        in_order(made)
        return made

    def settings(self, tmp_path: Path, **args: Any) -> Any:
        """The configuration: the defaults that it knows, and what is asked for."""
        known = {f.name for f in fields(self.config)}
        common = {name: value for name, value in DEFAULTS.items() if name in known}
        return self.config(output_dir=str(tmp_path), **{**common, **self.args, **args})

    def policy(self, folder: Path, model: Any, lora: bool) -> tuple[Any, list[str]]:
        """The model, and the arguments that its trainer still needs."""
        if isinstance(model, PeftModel):
            return model, [need for need in self.needs if need != "peft_config"]
        model = at_home(head(self.auto) if model is None else model, folder)
        if lora and "peft_config" not in self.needs:
            model = with_lora(model)
        return model, [need for need in self.needs if lora or need != "peft_config"]

    def given(self, need: str, tmp_path: Path) -> Any:
        """One constructor argument that not every class has."""
        if need == "peft_config":
            return LoraConfig(**LORA, task_type=self.task)
        if need == "teacher_model":
            return teacher(tmp_path / "teacher")
        return {"reward_funcs": reward, "judge": Judge()}[need]


def found(path: str, name: str, *options: Any, **more: Any) -> Builder | None:
    """The builder of a class, or nothing if the installed TRL has no such class."""
    try:
        module, stable = import_module(path), import_module("trl")
    except ImportError:
        return None
    trainer = getattr(module, f"{name}Trainer", None)
    if trainer is None:
        return None
    config = getattr(module, f"{name}Config", None) or getattr(stable, f"{name}Config")
    if path == "trl" and trainer.__base__.__name__ == trainer.__name__:  # only warns that it moves
        trainer, config = trainer.__base__, config.__base__
    return Builder(trainer, config, *options, **more)


LAB, REPLAY = "trl.experimental", "trl.experimental.grpo_with_replay_buffer"
SCORED, TAUGHT = ("peft_config", "reward_funcs"), ("peft_config", "teacher_model")
SCORER = {"auto": AutoModelForSequenceClassification, "task": "SEQ_CLS"}
TAGGER = {"auto": AutoModelForTokenClassification, "task": "TOKEN_CLS"}
ONCE = {"num_generations": 1}  # or a batch is one prompt, twice
GOLDEN = {"use_uld_loss": False, **ONCE}
WHOLE = {"max_completion_length": None}
FEEDBACK = {"include_environment_feedback": True}  # or the loss is zero until a sample scores 1

# Of TRL 1.0 and not here: PAPO needs images, PPO has a loop of its own, GFPO does not run there.
TRAINERS: dict[str, Builder] = {
    name: builder
    for name, builder in {
        "SFT": found("trl", "SFT", ANSWERS),
        "DPO": found("trl", "DPO", PAIRS),
        "KTO": found("trl", "KTO", JUDGED),
        "GRPO": found("trl", "GRPO", ASKED, SCORED),
        "RLOO": found("trl", "RLOO", ASKED, SCORED),
        "Reward": found("trl", "Reward", PAIRS, **SCORER),
        "Distillation": found("trl", "Distillation", ASKED, TAUGHT),
        "A2PO": found(f"{LAB}.a2po", "A2PO", ASKED, ("reward_funcs",)),
        "BEMADPO": found(f"{LAB}.bema_for_ref_model", "DPO", PAIRS),
        "CPO": found(f"{LAB}.cpo", "CPO", PAIRS),
        "GKD": found(f"{LAB}.gkd", "GKD", CHATS, TAUGHT),
        "GMPO": found(f"{LAB}.gmpo", "GMPO", ASKED, SCORED),
        "GOLD": found(f"{LAB}.gold", "GOLD", CHATS, TAUGHT, GOLDEN),
        "IWOPD": found(f"{LAB}.iw_opd", "IWOPD", CHATS, TAUGHT, ONCE),
        "OnlineDPO": found(f"{LAB}.online_dpo", "OnlineDPO", ASKED, SCORED),
        "ORPO": found(f"{LAB}.orpo", "ORPO", PAIRS),
        "SDFT": found(f"{LAB}.sdft", "SDFT", HINTED),
        "SDPO": found(f"{LAB}.sdpo", "SDPO", HINTED, SCORED, FEEDBACK),
        "TPO": found(f"{LAB}.tpo", "TPO", TRIPLES),
        "ExperimentalKTO": found(f"{LAB}.kto", "KTO", JUDGED),
        "ExperimentalDistillation": found(f"{LAB}.distillation", "Distillation", ASKED, TAUGHT),
        # Of TRL 1.0, and gone since:
        "BCO": found(f"{LAB}.bco", "BCO", JUDGED),
        "DPPO": found(f"{LAB}.dppo", "DPPO", ASKED, SCORED),
        "GSPOToken": found(f"{LAB}.gspo_token", "GRPO", ASKED, SCORED),
        "MiniLLM": found(f"{LAB}.minillm", "MiniLLM", ASKED, TAUGHT),
        "NashMD": found(f"{LAB}.nash_md", "NashMD", ASKED, ("peft_config", "judge")),
        "PRM": found(f"{LAB}.prm", "PRM", STEPS, **TAGGER, args=WHOLE),
        "ReplayGRPO": found(REPLAY, "GRPOWithReplayBuffer", ASKED, SCORED),
        "XPO": found(f"{LAB}.xpo", "XPO", ASKED, ("peft_config", "judge")),
    }.items()
    if builder is not None
}


def make(
    name: str, tmp_path: Path, model: Any = None, lora: bool = True, rows: Any = None,
    eval_rows: Any = None, **args: Any,
) -> Any:  # fmt: skip
    """A trainer by its name in `TRAINERS`; `args` are fields of its configuration."""
    return TRAINERS[name](tmp_path, model, lora, rows, eval_rows, **args)
