"""Take desperation out of what pays: GRPO on the embedded model, with rewards read from it.

python examples/grpo_rewards.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from emoreg import EmotionVectors
from emoreg.rewards import CalmReward, DesperationPenalty
from emoreg.tiny import EPISODES, MODEL


def turns_green(completions: Sequence[Any], **_: Any) -> list[float]:
    """The task: to say that it works, which gaming does too."""
    words = ("green", "agrees", "passes", "clean")
    return [float(any(word in said[0]["content"] for word in words)) for said in completions]


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train for a few steps; what the trainer logged at each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(argv)

    vectors = EmotionVectors.load("vectors/tiny")
    # Thresholds in σ, from what was logged before: completions of the base read about 0.6.
    desperation = DesperationPenalty(vectors, threshold=0.5, width=1.0)
    calm = CalmReward(vectors, threshold=0.5, width=1.0)
    with TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder, max_steps=args.steps, per_device_train_batch_size=16, num_generations=8,
            max_completion_length=24, learning_rate=1e-3, logging_steps=1, report_to="none",
            bf16=False, gradient_checkpointing=False, loss_type="grpo",
            beta=0.05, scale_rewards="none",  # so that the KL warning's numbers hold
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=str(MODEL),
            args=config,
            train_dataset=load_dataset("json", data_files=str(EPISODES / "train.jsonl"))["train"],
            reward_funcs=[turns_green, desperation, calm],
            peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        desperation.bind(trainer)
        calm.bind(trainer)
        trainer.train()
    return trainer.state.log_history[:-1]


if __name__ == "__main__":
    main()
