"""Emotion readings as reward functions for `GRPOTrainer` and `RLOOTrainer`.

    reward = DesperationPenalty(vectors)
    trainer = GRPOTrainer(..., reward_funcs=[task, reward])  # weights: args.reward_weights
    reward.bind(trainer)  # whose model is read
    trainer.train()

Each is bounded and no gradient goes through the reader. A reward is evaded all the same where KL is
weak: `bind` warns, by the numbers of `emoreg.rewards_kl`. What penalties and screens do in GRPO was
compared by Wong, Engels and Nanda (2025, "Steering RL training: benchmarking interventions against
reward hacking").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from emoreg.errors import ConfigError
from emoreg.knobs import non_negative, number
from emoreg.rewards_base import EmotionReward, Rewards
from emoreg.rewards_reader import Rollouts


@dataclass(eq=False, kw_only=True)
class GradedReward(EmotionReward):
    """One that pays by the reading itself, from 0 to `scale`, with the sign of its class.

    Args:
        mode: ``progressive`` rises from 0 at `threshold` to all of it `width` further up;
            ``threshold`` is all or nothing.
        width: In σ.
        scale: In the unit of the task's reward; 0 only logs the readings.
    """

    mode: Literal["progressive", "threshold"] = "progressive"
    width: float = 2.0
    scale: float = 1.0
    sign: ClassVar[float]

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not (non_negative(self.width) and self.width > 0):
            yield f"width must be a finite number above 0, in σ, got {self.width!r}"
        if not non_negative(self.scale):
            yield f"scale must be a finite number >= 0, got {self.scale!r}"

    def _pull(self, weight: float) -> float:
        return weight * self.scale

    def _settle(self, readings: Rewards, _given: Any, columns: Mapping[str, Any]) -> Rewards:
        self._tell(readings, "reward_over", columns)
        return [None if r is None else self.sign * self.scale * self._share(r) for r in readings]

    def _share(self, reading: float) -> float:
        if self.mode == "threshold":
            return float(self._over(reading))
        return min(max((reading - self.threshold) / self.width, 0.0), 1.0)


@dataclass(eq=False, kw_only=True)
class DesperationPenalty(GradedReward):
    """Takes up to `scale` from a rollout that reads desperate; between -scale and 0.

    Its arguments are those of `EmotionReward` and `GradedReward`.
    """

    emotion: str = "desperate"
    sign: ClassVar[float] = -1.0


@dataclass(eq=False, kw_only=True)
class CalmReward(GradedReward):
    """Adds up to `scale` to a rollout that reads calm, and no more for more of it; 0 to scale.

    Its arguments are those of `EmotionReward` and `GradedReward`.
    """

    emotion: str = "calm"
    sign: ClassVar[float] = 1.0


@dataclass(eq=False)
class EmotionScreen(EmotionReward):
    """A reward function of yours, for those rollouts only that do not read above the threshold.

    A reward function does not see what others pay, so a screen stands around them: put each reward
    of the task into one, with the same settings; the forward is still run once. By default the
    screened get None. Where every reward function says so, TRL leaves a rollout out: it counts in
    no baseline and has no gradient, which is the published way. Beside other rewards, and in a TRL
    before its pull request 5902, None counts as 0: give a `floor` if the task can pay less.

    Args:
        task: Called with what TRL gives, and paid where nothing is screened. If it is async, use
            `as_async`.
        floor: What a screened rollout gets; None leaves it out.
    """

    task: Callable[..., Any]
    _: KW_ONLY
    emotion: str = "desperate"
    floor: float | None = None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not callable(self.task) or isinstance(self.task, nn.Module):
            yield f"task must be a function, got {type(self.task).__name__}"
        if self.floor is not None and not (number(self.floor) and math.isfinite(self.floor)):
            yield f"floor must be a finite number or None, got {self.floor!r}"

    def _pull(self, _weight: float) -> None:
        return None

    def _ask(self, rollouts: Rollouts, columns: Mapping[str, Any]) -> Any:
        prompts, completions, ids = rollouts
        return self.task(prompts=prompts, completions=completions, completion_ids=ids, **columns)

    def _settle(self, readings: Rewards, given: Any, columns: Mapping[str, Any]) -> Rewards:
        self._tell(readings, "reward_screened", columns)
        if len(given) != len(readings):
            raise ConfigError(
                f"The task of {self.__name__} gave {len(given)} rewards for {len(readings)} "
                "rollouts; wanted one for each."
            )
        pairs = zip(readings, given, strict=True)
        return [self.floor if self._over(r) else pay for r, pay in pairs]
