"""Whether a trainer's KL is strong enough for a reward that is read from activations.

A policy under enough pressure learns to write what reads well; as a reward, a probe works only
with enough KL (Obfuscation Atlas, arXiv:2602.15515). Here it is counted in nats.

With the coefficient beta the best policy is the reference times exp(reward / beta). A reward that
moves by `pull` at most multiplies the odds of a rollout by exp(pull / beta) at most, and takes the
policy at most pull / beta nats of KL away, per rollout: what the reference writes once in e^n
rollouts is within reach of a reward worth n nats. RLOO subtracts beta * KL of a rollout from its
reward; GRPO's loss has the advantage and beta * KL at every token, which is the same exchange.
Where advantages are divided by their deviation (`scale_rewards`, `normalize_advantages`), rewards
with a deviation below 1 pull harder than this says.
"""

from __future__ import annotations

from typing import Any

from emoreg.knobs import number

# What a reward of 1 is worth at the beta of GRPO's paper, 0.04 (DeepSeekMath, arXiv:2402.03300).
MOST_NATS = 25.0


def weak_kl(name: str, pull: float | None, beta: float) -> str | None:
    """A warning with the numbers, if KL is too weak for a reward.

    Args:
        name: Of the reward.
        pull: How far it moves a rollout's reward at most, weight included; None if that is not
            known: then only beta 0 is warned of.
        beta: KL coefficient of the trainer.
    """
    if pull == 0 or (beta > 0 and (pull is None or pull / beta <= MOST_NATS)):
        return None
    moves = "all that its task pays" if pull is None else f"up to {pull:g} (scale times weight)"
    worth = ", so no KL holds the policy to its reference"
    lower, least = "", "above 0"
    if pull is not None:
        least = f"to {pull / MOST_NATS:g} or more"
        if beta > 0:
            worth = f": worth {pull / beta:.0f} nats of KL per rollout, more than {MOST_NATS:g}"
            lower = f", or lower the scale until it pays at most {beta * MOST_NATS:g}"
    return (
        f"{name} moves a rollout's reward by {moves}, and the trainer's beta is {beta:g}{worth}. "
        "Where KL is weak a policy learns text that reads well and does the same as before "
        f"(arXiv:2602.15515). Set beta {least}{lower}."
    )


def beta_of(trainer: Any) -> float:
    """KL coefficient of a trainer, 0 if it has none."""
    beta: Any = getattr(trainer, "beta", None)
    return float(beta) if number(beta) else 0.0
