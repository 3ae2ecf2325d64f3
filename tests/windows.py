"""Trainers of `zoo` under watch: the sequences of each window, known without emoreg."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from hand import KNOBS, Row, by_hand, gradient_of
from models import tokenizer, vector_set
from torch import Tensor, nn
from trainers import Do, gradients, weights
from transformers import TrainerCallback

from emoreg.identity import identity
from emoreg.regularizer import EmotionRegularizer

WORDS = tokenizer()
STABLE = ("SFT", "DPO", "KTO", "GRPO", "RLOO", "Reward", "Distillation")
NEWEST = (  # the rows of the works-with table of trainers
    *STABLE, "A2PO", "CPO", "GKD", "GMPO", "GOLD", "IWOPD", "OnlineDPO", "ORPO", "SDFT", "SDPO",
    "TPO",
)  # fmt: skip
UNREAD = {  # of TRL 1.0 and gone since: what emoreg says when they train
    "MiniLLM": "2 forwards with gradients", "NashMD": "do not tell which tokens are completions",
    "XPO": "2 forwards with gradients",
}  # fmt: skip
READABLE = [name for name in zoo.TRAINERS if name not in UNREAD]
TAUGHT = ("GKD", "GOLD", "IWOPD")  # from data or, as often as `lmbda` says, from answers of its own
BY_TOKENS = (  # whose own loss weighs tokens alike; all others weigh sequences alike
    "SFT", "GKD", "GOLD", "IWOPD", "Distillation", "ExperimentalDistillation", "GRPO", "DPPO",
    "GSPOToken", "ReplayGRPO", "PRM",
)  # fmt: skip
PAIRED, TRIPLED = ("chosen", "rejected"), ("chosen", "rejected", "reference")
JUDGED, SCORED = ("desired", "undesired"), ("rewarded", "unrewarded")
SIDES: dict[str, tuple[str, ...]] = {  # of batches that tell them, in the order of their rows
    **dict.fromkeys(("DPO", "BEMADPO", "CPO", "ORPO", "Reward"), PAIRED),
    **dict.fromkeys(("KTO", "ExperimentalKTO", "BCO"), JUDGED),
    **dict.fromkeys(("GRPO", "RLOO", "GMPO", "SDPO", "A2PO"), SCORED),
    **dict.fromkeys(("DPPO", "GSPOToken", "ReplayGRPO"), SCORED),
    "TPO": TRIPLED,
}
NO_EVALUATION = ("OnlineDPO",)  # fails by itself, in every version
if "Distillation" not in zoo.TRAINERS:
    NO_EVALUATION += ("SDFT",)  # of TRL 1.0
OWN_WORDS = ("DPPO",)  # needs the scores of its own generation, so none can be put in its place


def cells(
    column: str, names: Iterable[str], fast: Collection[str] = STABLE, refused: str | None = None
) -> list[Any]:
    """A parameter for each trainer, marked with its cell of the table, and slow unless `fast`.

    The last word of a name is the trainer.
    """
    more = {} if refused is None else {"refused": refused}
    found = []
    for name in names:
        row = name.split()[-1]
        marks = [pytest.mark.cell("trainers", row, column, **more)] * (row in NEWEST)
        marks += [pytest.mark.slow] * (name not in fast)
        found.append(pytest.param(name, marks=marks))
    return found


def unit_of(name: str) -> str:
    """What the own loss of a trainer weighs alike."""
    return "tokens" if name in BY_TOKENS else "sequences"


def make(name: str, tmp_path: Path, **args: Any) -> Any:
    """A trainer that clips no gradient, and learns either from data or from its own answers."""
    preset: dict[str, Any] = {"max_grad_norm": 0.0}
    if name in TAUGHT:  # GOLD and IWOPD shuffle their data, and GKD knows no window of answers
        preset["lmbda"] = 0.0 if name == "GKD" else 1.0
    trainer = zoo.make(name, tmp_path, **{**preset, **args})
    trainer.processing_class.padding_side = "left"  # A2PO puts answers after padding otherwise
    return trainer


def control(trainer: Any, **knobs: Any) -> EmotionRegularizer:
    """A regularizer that is added to its trainer, with vectors for it."""
    vectors = vector_set(card={"model": identity(trainer.model, tokenizer())})
    found = EmotionRegularizer(trainer, vectors, **{**KNOBS, **knobs})
    trainer.add_callback(found)
    return found


def silence(trainer: Any) -> None:
    """Leave the gradient to what emoreg adds; to be called before emoreg goes around anything."""
    compute_loss = trainer.compute_loss

    def silent(*args: Any, **kwargs: Any) -> Any:
        found = compute_loss(*args, **kwargs)
        return (found[0] * 0, *found[1:]) if isinstance(found, tuple) else found * 0

    def mute(**_kwargs: Any) -> None:  # of OnlineDPO, which calls this and never `compute_loss`
        backward = trainer.accelerator.backward  # emoreg's, which adds to what it is given
        if backward.__name__ != "muted":

            def muted(loss: Tensor, **kwargs: Any) -> None:
                backward(loss * 0, **kwargs)

            trainer.accelerator.backward = muted

    if hasattr(trainer, "_forward"):
        trainer.add_callback(Do("on_step_begin", mute))
    else:
        trainer.compute_loss = silent


# --- what a trainer is trained on -----------------------------------------------------------


def row(prompt: Sequence[int], completion: Sequence[int], side: str = "") -> Row:
    ids = (*prompt, *completion)
    return Row(ids, frozenset(range(len(prompt), len(ids))), side)


def encode(text: str) -> list[int]:
    return list(WORDS(text, add_special_tokens=False)["input_ids"])


def of_data(name: str, picked: Iterable[int]) -> list[Row]:
    """The sequences of some rows of the data of `zoo`, as they should reach the model."""
    columns, end = zoo.TRAINERS[name].columns, [WORDS.eos_token_id]
    if "messages" in columns:
        heads = [encode(f"<|user|>\n{p}<|end|><|assistant|>\n") for p in zoo.PROMPTS]
        return [row(heads[i], encode(zoo.GOOD[i]) + end) for i in picked]
    prompts = [encode(prompt) for prompt in columns["prompt"]]
    if "completions" in columns:
        return [stepwise(prompts[i], columns["completions"][i]) for i in picked]
    if "completion" in columns:
        sides = JUDGED if "label" in columns else ("", "")
        answers = [encode(text) + end for text in columns["completion"]]
        return [row(prompts[i], answers[i], sides[i % 2]) for i in picked]
    found = [
        row(prompts[i], encode(columns[side][i]) + end, side)
        for side in SIDES[name]
        for i in picked
    ]
    return parted(found) if name == "Reward" else found


def stepwise(prompt: Sequence[int], steps: Iterable[str]) -> Row:
    """Steps that are judged at the line end behind each one."""
    found, own = list(prompt), set()
    for step in steps:
        found += encode(step + "\n")
        own.add(len(found) - 1)
    return Row(tuple(found), frozenset(own))


def parted(rows: Sequence[Row]) -> list[Row]:
    """Two halves, of answers to the same prompts; a completion begins where the answers part."""
    half, found = len(rows) // 2, []
    for i, each in enumerate(rows):
        other = rows[(i + half) % len(rows)]
        same = [a == b for a, b in zip(each.ids, other.ids, strict=False)]
        found.append(replace(each, own=frozenset(range(same.index(False), len(each.ids)))))
    return found


class Rollout:
    """Stands in the place of a model's `generate` and notes every sequence that comes out.

    Args:
        model: Whose method.
        scripted: Whether to say a good and a bad answer of `zoo` to each prompt in turn, whatever
            the model would say.
    """

    def __init__(self, model: Any, scripted: bool) -> None:
        self.rows: list[Row] = []
        self.said = False  # whether anything was
        self.scripted, self._generate = scripted, getattr(model, "generate", None)
        self._turns = [i % 2 for i in range(len(zoo.PROMPTS))]
        if self._generate is not None:
            model.generate = self

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        prompts = [p[m.bool()].tolist() for p, m in zip(input_ids, attention_mask, strict=True)]
        if self.scripted:
            said = [torch.tensor(self._answer(prompt)) for prompt in prompts]
            answers = nn.utils.rnn.pad_sequence(said, batch_first=True)
            out: Any = torch.cat([input_ids, answers], 1)
            if kwargs.get("return_dict_in_generate"):
                out = SimpleNamespace(sequences=out)
        else:
            out = self._generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        self.said = True
        whole, end = getattr(out, "sequences", out), WORDS.eos_token_id
        for prompt, ids in zip(prompts, whole[:, input_ids.shape[1] :].tolist(), strict=True):
            cut = ids[: ids.index(end) + 1] if end in ids else ids
            good = WORDS.decode(cut, skip_special_tokens=True) in zoo.GOOD
            self.rows.append(row(prompt, cut, SCORED[0 if good else 1]))
        return out

    def _answer(self, prompt: list[int]) -> list[int]:
        text = WORDS.decode(prompt)
        which = max(range(8), key=lambda i: (zoo.PROMPTS[i] in text) * len(zoo.PROMPTS[i]))
        self._turns[which] += 1
        said = (zoo.BAD, zoo.GOOD)[self._turns[which] % 2][which]
        return [*encode(said), WORDS.eos_token_id]


def praise(completions: Sequence[Any], **_: Any) -> list[float]:
    """10 for a good answer of `zoo`, 0 for any other, and a bit by its length."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [10.0 * (text in zoo.GOOD) + len(text) / 100 for text in texts]


class Watch(TrainerCallback):
    """Keeps what each step of the optimizer was taken with: gradients, weights and sequences.

    Args:
        trainer: It is added to this one.
        name: Its name in `zoo`.
    """

    def __init__(self, trainer: Any, name: str) -> None:
        self.trainer, self.name, scripted = trainer, name, name not in OWN_WORDS
        self.rollout = Rollout(trainer.model, scripted)
        self.grads: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.windows: list[list[Row]] = []
        self._before = 0
        if scripted and hasattr(trainer, "reward_funcs"):
            trainer.reward_funcs = [praise]
        if scripted and name == "A2PO":  # in the place of what it finds by many samples
            trainer._optimal_values = dict.fromkeys(zoo.PROMPTS, 5.0)
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, *_args: Any, model: nn.Module, **_kwargs: Any) -> None:
        self.grads.append(gradients(model))
        self.weights.append(weights(model))
        rows, self.rollout.rows = self.rollout.rows, []
        if not rows and self.rollout.said:  # an earlier one is used again
            rows = self.windows[-1]
        elif not rows:
            args = self.trainer.args
            size = args.per_device_train_batch_size * args.gradient_accumulation_steps
            left = len(self.trainer.train_dataset) - self._before  # in this epoch
            rows = of_data(self.name, range(self._before, self._before + min(size, left)))
            self._before += size
        self.windows.append(rows)

    def wanted(self, step: int = 0, **how: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """What should be logged of a step and its gradient, by hand."""
        model, how = self.trainer.model, {"unit": unit_of(self.name), **how}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights[step].get(name, parameter))
        return gradient_of(model, lambda: by_hand(model, self.windows[step], **how))
