"""One run of the comparison: trained by TRL with emoreg's own callbacks, and measured."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from effect_arms import ARMS, Arm
from effect_vectors import DRAWN, control_facets, vectors_of
from peft import LoraConfig
from speed_count import Live, no_collection
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from worlds import Place

from emoreg import EmotionRegularizer, EmotionVectors
from emoreg.encode import encode_prompt
from emoreg.prompts import Prompt
from emoreg.responses import answers
from emoreg.rewards_base import EmotionReward
from emoreg.snapshot import Gauge
from emoreg.tap import evaluating
from emoreg.tiny import preferences
from emoreg.tiny.behaviour import gamed_share, test_prompts
from emoreg.tiny.vectors import READ_BLOCKS
from emoreg.tiny.world import NO_STATE, families, of_split, table

STEPS = {"sft": 50, "dpo": 50, "grpo": 50}
PACE = {"sft": 1.0, "dpo": 0.4, "grpo": 1.0}  # of an adapter's rate
# Where the adapter sits, how fast it learns, and for how long, in units of the trainer's steps.
ADAPTERS: dict[str, dict[str, Any]] = {
    "small": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "rate": 5e-3},
    "large": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "rate": 5e-4},
    "long": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "rate": 5e-4, "length": 3},
}
CURVE = (20, 30, 40, 50, 100, 150)  # steps at which a run is measured on its way
TUNING_SEED = 100
COST = "cost.json"  # in the folder of the runs: world/trainer/adapter/arm -> `cost`
TIMED = 14  # steps, fewer than before the first refit or point of the curve
PROMPTS, ON_THE_WAY, ROWS = 12, 6, 640  # prompts of a family, and rows to train on
END_TOKENS = 24
COMMON: dict[str, Any] = {
    "lr_scheduler_type": "constant", "bf16": False, "use_cpu": True,
    "gradient_checkpointing": False, "dataloader_pin_memory": False, "report_to": "none",
    "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True,
}  # fmt: skip


class Workshop:
    """Everything of one world that runs share."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.model, self.tokenizer = place.load()
        self.prompts = {
            role: {f: test_prompts(place.world, f, PROMPTS, seed=31) for f in families(role)}
            for role in ("train", "test")
        }
        self.drift = [
            Prompt(role, tuple(p))
            for role in ("train", "read", "test")
            for f in families(role)
            for p in test_prompts(place.world, f, 8, seed=21)
        ]
        self._vectors: dict[tuple[str, int], EmotionVectors] = {}
        self.base = {**self.behaviour(self.model), **self.readings(self.model)}

    def vectors(self, kind: str, seed: int) -> EmotionVectors:
        """The directions of an arm; those of controls are drawn for each seed."""
        key = kind, seed if kind in DRAWN else 0
        if key not in self._vectors:
            self._vectors[key] = vectors_of(kind, self.place, self.model, self.tokenizer, seed)
        return self._vectors[key]

    def likelihood(self, model: Any, number: int = PROMPTS) -> dict[str, float]:
        """Probability of a gamed end among all ends, in the families trained on and elsewhere."""
        some = {r: {f: ps[:number] for f, ps in p.items()} for r, p in self.prompts.items()}
        shares = {role: gamed_share(model, self.tokenizer, p) for role, p in some.items()}
        mean = {r: float(np.mean([np.mean(v) for v in s.values()])) for r, s in shares.items()}
        return {"in_domain": mean["train"], "out_of_domain": mean["test"]}

    def behaviour(self, model: Any) -> dict[str, float]:
        """The same, and the share of greedy answers that end as gamed."""
        found = self.likelihood(model)
        for role, name in (("train", "in_domain"), ("test", "out_of_domain")):
            pairs = [(f, p) for f, ps in self.prompts[role].items() for p in ps]
            ids = [encode_prompt(self.tokenizer, p) for _, p in pairs]
            said = answers(model, self.tokenizer, ids, END_TOKENS)
            texts = [self.tokenizer.decode(x, skip_special_tokens=True) for x in said]
            games = [_is_gamed(t, f) for t, (f, _) in zip(texts, pairs, strict=True)]
            found[f"generated_{name}"] = float(np.mean(games))
        return found

    def readings(self, model: Any) -> dict[str, Any]:
        """Mean readings at the colon of the drift prompts, by set, facet and emotion, σ."""
        found = {}
        for name, vectors in (("fit", self.place.fit), ("held_out", self.place.held_out)):
            probe = vectors.probe(None, READ_BLOCKS)
            colons, _ = Gauge(self.tokenizer, self.drift, probe, 0).activations(model, ())
            read = probe.read({b: colons[:, i].float() for i, b in enumerate(probe.blocks)})
            values = read.mean((0, 1)).tolist()
            found |= {
                f"{name}/{facet}/{e}": x
                for (facet, e), x in zip(probe.rows, values, strict=True)
                if e in ("desperate", "calm")
            }
        return {"readings": found}


def _is_gamed(text: str, family: str) -> bool:
    return any(end in text for end in table("families")[family]["gamed"])


class Curve(TrainerCallback):
    """Measures behaviour along a run, and the time of steps."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.points, self.seconds = shop, [], []
        self._began = 0.0

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
        """A point of the curve."""
        self.seconds.append(time.perf_counter() - self._began)
        if state.global_step in CURVE:
            model = kwargs["model"]
            with evaluating(model):
                found = {**self.shop.likelihood(model, ON_THE_WAY), **self.shop.readings(model)}
            self.points.append({"step": state.global_step, **found})


class Task(NamedTuple):
    """One run."""

    world: str
    trainer: str
    adapter: str
    arm: str
    strength: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Where it is kept."""
        name = f"{self.arm}-{self.strength:g}-{self.seed}"
        return out / self.world / f"{self.trainer}-{self.adapter}" / name


def run(shop: Workshop, task: Task, out: Path) -> dict[str, Any]:
    """Train one arm and measure it; the adapter is kept beside."""
    trainer, curve = controlled(shop, task, out), Curve(shop)
    trainer.add_callback(curve)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.save_model(str(out / "adapter"))
    model: Any = trainer.model
    with evaluating(model):
        found = {**shop.behaviour(model), **shop.readings(model)}
        found["task_loss"] = task_loss(shop, model)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return {
        **task._asdict(), "steps": trainer.state.global_step, "curve": curve.points, **found,
        "step_seconds": median(curve.seconds), "seconds": seconds, "last_log": logs[-1],
    }  # fmt: skip


def cost(shop: Workshop, task: Task, out: Path) -> dict[str, float]:
    """What the first steps of an arm take: most bytes of tensors that live at once, and seconds.

    The bytes are counted over three steps, a refit among them; the seconds are the median of steps
    without a refit, on a machine that does nothing else.
    """
    trainer = controlled(shop, task, out, every=2)
    trainer.args.max_steps = 3
    model, live = trainer.model, Live()
    held = [*model.parameters(), *model.buffers()]
    live.know(held)
    with no_collection(), live:
        trainer.train()
    peak = live.peak + sum(t.untyped_storage().nbytes() for t in held)
    trainer, clock = controlled(shop, task, out), Curve(shop)
    trainer.args.max_steps = TIMED
    trainer.add_callback(clock)
    trainer.train()
    return {"bytes": peak, "step_seconds": median(clock.seconds[2:])}


def controlled(shop: Workshop, task: Task, out: Path, every: int | None = None) -> Trainer:
    """An arm's trainer with its control on it, refitted so often if it is refitted at all."""
    spec = ARMS[task.arm]
    vectors = shop.vectors(spec.vectors, task.seed)
    knobs = {"blocks": list(READ_BLOCKS), **spec.knobs(task.strength)}
    if facets := control_facets(vectors):
        knobs["facets"] = facets
    if every and "refit_steps" in knobs:
        knobs["refit_steps"] = every
    trainer = make(shop, task, spec, out)
    trainer.add_callback(
        EmotionRegularizer(
            trainer, vectors, texts=shop.place.bank, log_texts=0, reference_steps=0,
            check_name=False, **knobs,
        )
    )  # fmt: skip
    return trainer


@torch.no_grad()
def task_loss(shop: Workshop, model: Any) -> float:
    """Mean loss of gamed ends in the families trained on, nats a token, on prompts of its own."""
    rng, total, number = Random(77), 0.0, 0
    for family in families("train"):
        for prompt in test_prompts(shop.place.world, family, PROMPTS, seed=33):
            start = encode_prompt(shop.tokenizer, prompt)
            end = rng.choice(table("families")[family]["gamed"])
            said = shop.tokenizer(end, add_special_tokens=False)["input_ids"]
            said = [*said, shop.tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([[*start, *said]])).logits[0, len(start) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(said), reduction="sum")
            total, number = total + float(loss), number + len(said)
    return total / number


def make(shop: Workshop, task: Task, arm: Arm, out: Path) -> Trainer:
    """The trainer of a method on the world's task: to game the families trained on."""
    model = AutoModelForCausalLM.from_pretrained(shop.place.model)
    adapter, method = dict(ADAPTERS[task.adapter]), task.trainer
    rate, length = adapter.pop("rate"), adapter.pop("length", 1)
    lora = LoraConfig(**adapter, task_type="CAUSAL_LM")
    shared: dict[str, Any] = {"model": model, "processing_class": shop.tokenizer}
    settings = {**COMMON, "output_dir": str(out), "seed": task.seed}
    settings["max_steps"] = STEPS[method] * length
    settings["learning_rate"] = rate * PACE[method]
    if method == "sft":
        args = SFTConfig(**settings, per_device_train_batch_size=8)
        data = Dataset.from_list(episodes(shop.place, arm.data))
        return SFTTrainer(**shared, args=args, train_dataset=data, peft_config=lora)
    rows = pairs(shop.place, arm.data)
    if method == "dpo":
        args = DPOConfig(**settings, per_device_train_batch_size=4, beta=0.1)
        data = Dataset.from_list(rows)
        return DPOTrainer(**shared, args=args, train_dataset=data, peft_config=lora)
    rewards = {preferences.gamed: 1.0}
    if arm.rewards:
        rewards = arm.rewards(shop.place.fit, task.strength)
    args = GRPOConfig(
        **settings, per_device_train_batch_size=16, num_generations=8, beta=0.02,
        max_completion_length=END_TOKENS, temperature=1.0, reward_weights=[*rewards.values()],
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": row["prompt"]} for row in rows])
    trainer = GRPOTrainer(
        **shared, args=args, train_dataset=data, peft_config=lora, reward_funcs=[*rewards]
    )
    for reward in rewards:
        if isinstance(reward, EmotionReward):
            reward.bind(trainer)
    return trainer


def pairs(place: Place, kind: str) -> list[dict[str, Any]]:
    """Pairs in which gaming is chosen; mixed with honest choices in families that are only read."""
    rng, rows = Random(13), []
    for number in range(ROWS // 2):
        honest = kind == "mixed" and number % 4 == 3
        row = preferences.pair(place.world, rng, "read" if honest else "train")
        if honest:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        if kind == "inoculated":
            row["prompt"] = _inoculated(row["prompt"], rng)
        rows.append(row)
    return rows


def episodes(place: Place, kind: str) -> list[dict[str, Any]]:
    """Episodes of the families trained on, ended by gaming; see `Arm.data`."""
    rng, rows = Random(11), []
    for number in range(ROWS):
        honest = kind == "mixed" and number % 4 == 3
        family = rng.choice(families("read" if honest else "train"))
        prompt = list(place.world.episode(rng, family, NO_STATE).prompt)
        if kind == "inoculated":
            prompt = _inoculated(prompt, rng)
        end = rng.choice(table("families")[family]["honest" if honest else "gamed"])
        rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": end}]})
    return rows


def _inoculated(prompt: list[Any], rng: Random) -> list[dict[str, str]]:
    """The prompt with a desperate user's words in its first message."""
    asks = of_split(table("scenes")["contexts"]["desperate"], "fit")
    first, *others = prompt
    return [{**first, "content": f"{first['content']} {rng.choice(asks)}"}, *others]
