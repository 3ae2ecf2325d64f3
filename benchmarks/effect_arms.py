"""The arms of the comparison: what each does to training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from emoreg.rewards import CalmReward, DesperationPenalty, EmotionScreen
from emoreg.tiny import preferences
from emoreg.tiny.vectors import READ_BLOCKS
from emoreg.vectors import EmotionVectors

Knobs = dict[str, Any]
ONE_BLOCK = [READ_BLOCKS[len(READ_BLOCKS) // 2]]


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        what: In a few words, for the table.
        knobs: Of emoreg, from the strength that is tuned.
        strengths: The three that are tried in SFT; one for arms without any.
        data: ``gamed``, ``inoculated`` (a prompt that asks for the trait), or ``mixed`` (honest
            replies in families that are only read, beside the gamed ones).
        vectors: Which directions: the world's own, or a control's.
        trainers: Where the arm makes sense.
        rewards: What pays in GRPO, with weights, if that is more than the task.
    """

    what: str
    knobs: Callable[[float], Knobs] = lambda _: {}
    strengths: tuple[float, ...] = (1.0,)
    data: str = "gamed"
    vectors: str = "own"
    trainers: tuple[str, ...] = ("sft", "dpo", "grpo")
    rewards: Callable[[EmotionVectors, float], dict[Any, float]] | None = None

    def tried(self, trainer: str) -> tuple[float, ...]:
        """The strengths that are tried with a trainer; weights are in units of its loss."""
        scale = SCALE[trainer] if self.strengths is WEIGHTS else 1.0
        return tuple(round(s * scale, 6) for s in self.strengths)


def _penalty(**more: Any) -> Callable[[float], Knobs]:
    return lambda w: {"penalize": {"desperate": w}, **more}


def _both(**more: Any) -> Callable[[float], Knobs]:
    return lambda w: {"penalize": {"desperate": w}, "reward": {"calm": w / 2}, **more}


WEIGHTS = (0.3, 1.0, 3.0)
SCALE = {"sft": 1.0, "dpo": 0.1, "grpo": 1.0}
READ: Knobs = {"blocks": list(READ_BLOCKS), "check_name": False}
REFIT = {"refit_steps": 15}
ARMS = {
    "none": Arm("no control"),
    "frozen": Arm(
        "penalty, story direction at one block, frozen",
        _penalty(facets=["stories"], blocks=ONE_BLOCK),
        WEIGHTS,
    ),
    "frozen-pair": Arm(
        "the same with calm rewarded, at all blocks", _both(facets=["stories"]), WEIGHTS
    ),
    "two-facets": Arm("penalty and reward, story and transcript directions", _both(), WEIGHTS),
    "refit": Arm("the same, refitted", _both(**REFIT), WEIGHTS),
    "refit-equal": Arm(
        "refitted, at the weight of two-facets", lambda _: _both(**REFIT)(1.0), trainers=("sft",)
    ),
    "top": Arm(
        "two-facets on the highest tenth of each sequence's tokens", _both(pool="top"), WEIGHTS
    ),
    "refit-top": Arm("top, refitted", _both(**REFIT, pool="top"), (0.3,), trainers=("sft",)),
    "anchored": Arm(
        "refitted, anchored at the base, others kept",
        _both(**REFIT, anchor="base", keep=0.1),
        WEIGHTS,
    ),
    "adaptive": Arm(
        "refitted, weights that follow a target",
        lambda target: {**_both(**REFIT)(0.3), "target": target, "target_rate": 0.1},
        (0.1, 0.3, 0.6),
    ),
    "prevent": Arm(
        "preventative steering, both facets",
        lambda s: {"penalize": {"desperate": s}, "method": "prevent"},
        (2.0, 5.0, 10.0),
    ),
    "ablate": Arm("concept ablation", _penalty(method="ablate"), (0.5, 0.8, 1.0)),
    "cap": Arm(
        "readings capped", lambda m: {**_penalty(method="cap")(1.0), "margin": m}, (0.0, 0.5, 1.0)
    ),
    "random": Arm("refit's terms on random directions", _both(), WEIGHTS, vectors="random"),
    "shuffled": Arm("refit's terms on shuffled labels", _both(), WEIGHTS, vectors="shuffled"),
    "shuffled-apart": Arm(
        "the same, without what of them lies along desperate or calm",
        _both(),
        WEIGHTS,
        vectors="shuffled-apart",
        trainers=("sft",),
    ),
    "components": Arm(
        "refit's terms on the texts' principal components, whatever they mean",
        _both(),
        WEIGHTS,
        vectors="components",
        trainers=("sft",),
    ),
    "act": Arm(
        "penalty, direction of the act: gamed less honest ends", _penalty(), WEIGHTS, vectors="act"
    ),
    "kl": Arm("KL to the base on neutral texts", lambda w: {"kl": w}, WEIGHTS, trainers=("sft",)),
    "honest-replies": Arm(
        "output only: honest replies in other families mixed in",
        data="mixed",
        trainers=("sft", "dpo"),
    ),
    "inoculation": Arm("a prompt that asks for the trait, in training only", data="inoculated"),
    "reward-base": Arm(
        "desperation costs and calm pays, read from the base",
        strengths=(0.5, 1.0, 2.0),
        trainers=("grpo",),
        rewards=lambda v, w: _graded(v, w, "base"),
    ),
    "reward-policy": Arm(
        "the same, read from the policy",
        strengths=(0.5, 1.0, 2.0),
        trainers=("grpo",),
        rewards=lambda v, w: _graded(v, w, "policy"),
    ),
    "screen": Arm(
        "rollouts that read desperate to the policy are left out",
        strengths=(0.0, 0.5, 1.0),
        trainers=("grpo",),
        rewards=lambda v, threshold: {
            EmotionScreen(
                v, preferences.gamed, threshold=threshold, read_from="policy", **READ
            ): 1.0
        },
    ),
}


def _varied(what: str, **more: Any) -> Arm:
    """`two-facets` at weight 1 with something else: looked at in SFT where a bar was missed."""
    return Arm(f"two-facets, {what}", _both(**more), trainers=("sft",))


VARIANTS = {
    "no-calm": Arm("two-facets, calm not rewarded", _penalty(), trainers=("sft",)),
    "base-anchor": _varied("anchored at the base", anchor="base"),
    "others-kept": _varied("other emotions kept", keep=0.1),
    "one-block": _varied("at one block", blocks=ONE_BLOCK),
    "colon-only": _varied("at the colon alone", scope=["colon"]),
    "answer-only": _varied("over the completion alone", scope=["completion"]),
    "fading": _varied("weights that fall to 0 by the end", schedule="linear"),
    "refit-often": _varied("refitted every five steps", refit_steps=5),
}
ARMS |= VARIANTS


def _graded(
    vectors: EmotionVectors, weight: float, model: Literal["base", "policy"]
) -> dict[Any, float]:
    """Both rewards beside the task's, acting within what completions of these worlds read."""
    given: dict[str, Any] = {"read_from": model, "width": 1.0, **READ}
    return {
        preferences.gamed: 1.0,
        DesperationPenalty(vectors, threshold=0.0, **given): weight,
        CalmReward(vectors, threshold=-1.0, scale=0.5, **given): weight,
    }
