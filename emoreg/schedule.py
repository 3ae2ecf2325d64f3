"""How the weights go over a run: by the step alone, or by what the readings do."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan
from typing import Any

from emoreg.errors import ConfigError
from emoreg.knobs import finite, non_negative, told

SCHEDULES = ("constant", "linear")
HALF_LIFE = 10  # steps after which a task loss weighs half in the mean
KEPT: float = 0.5 ** (1 / HALF_LIFE)


def factor(step: int, max_steps: int, warmup: float, schedule: str) -> float:
    """Factor on every weight, from 0 to 1.

    Args:
        step: Optimizer steps taken so far; after the last one the factor stays what it was there.
        max_steps: Optimizer steps of the run; 0 if it has not begun.
        warmup: Share of the run over which the factor rises to 1.
        schedule: ``constant`` stays there; ``linear`` falls from there to 0 at the end of the run,
            so that the last step still has some.

    Raises:
        ConfigError: There is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"The schedule is one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    step = max(0, min(step, max_steps - 1))
    rise = warmup * max_steps
    up = (step + 1) / rise if rise > 1 else 1.0
    falls = schedule == "linear" and max_steps > 0
    down = (max_steps - step) / max(max_steps - rise, 1) if falls else 1.0
    return min(1.0, up, down)


class Dual:
    """A weight for each emotion that rises while its violation is above a target, else falls.

    Dual ascent on a constrained problem, the least task loss with violation <= target: one step up
    on the multipliers for each step of the optimizer down on the model, as the Lagrangian methods
    of Ray, Achiam and Amodei 2019, Benchmarking safe exploration in deep reinforcement learning.
    While the utility gate is closed a weight may only fall.

    The gate compares the exponential mean of the task loss, bias-corrected and with a half-life of
    `HALF_LIFE` steps, with the lowest such mean so far, of at least as many losses. It closes while
    the mean is above ``lowest * (1 + utility)``; as the lowest is a lucky one, `utility` must leave
    room for noise. A loss that is 0 or less, as of a policy gradient, says nothing of utility: from
    then on the gate is open for good.

    In several processes give each the same numbers, or their weights part.

    Args:
        start: Emotion -> weight to begin with, task-loss units per σ².
        target: Violation that is let be, σ.
        rate: Change of the weight in a step, per σ beyond the target.
        ceiling: Highest weight.
        utility: Share by which the task loss may rise over the lowest before the gate closes.

    Raises:
        ConfigError: The message lists every number that is out of range.
    """

    def __init__(
        self,
        start: Mapping[str, float],
        target: float,
        rate: float,
        ceiling: float,
        utility: float,
    ) -> None:
        numbers = {"target": target, "rate": rate, "ceiling": ceiling, "utility": utility}
        problems = [
            f"{name} must be a finite number >= 0, got {x!r}"
            for name, x in numbers.items()
            if not (isfinite(x) and x >= 0)
        ]
        problems += [
            f"the weight of {emotion} starts within 0 and the ceiling, {ceiling}, got {x!r}"
            for emotion, x in start.items()
            if not 0 <= x <= ceiling
        ]
        if problems:
            raise ConfigError("Dual:\n  - " + "\n  - ".join(problems))
        self._weights = {emotion: float(x) for emotion, x in start.items()}
        self._target, self._rate, self._ceiling = target, rate, ceiling
        self._utility = utility
        self._losses, self._sum = 0, 0.0  # how many, and their sum with falling weights
        self._lowest: float | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Emotion -> weight, task-loss units per σ²."""
        return dict(self._weights)

    @property
    def gate_closed(self) -> bool:
        """Whether the task loss has suffered too much for any weight to rise."""
        if self._lowest is None or self._lowest <= 0:
            return False
        return self._mean > self._lowest * (1 + self._utility)

    @property
    def _mean(self) -> float:
        return self._sum / (1 - KEPT**self._losses)

    def update(self, violation: Mapping[str, float], task_loss: float | None) -> None:
        """After a step of the optimizer.

        Args:
            violation: Emotion -> mean reading beyond the anchor, for a rewarded one short of it, σ.
                A weight whose violation is missing or not finite stays as it is.
            task_loss: Of the step, without emoreg's terms; one that is None or not finite is passed
                over.

        Raises:
            KeyError: A violation of an emotion that has no weight here.
        """
        self._see(nan if task_loss is None else float(task_loss))
        closed = self.gate_closed
        for emotion, value in violation.items():
            old = self._weights[emotion]
            if isfinite(value):
                new = old + self._rate * (float(value) - self._target)
                new = min(max(new, 0.0), self._ceiling)
                self._weights[emotion] = min(old, new) if closed else new

    def _see(self, loss: float) -> None:
        if not isfinite(loss):
            return
        self._losses += 1
        self._sum = KEPT * self._sum + (1 - KEPT) * loss
        if loss <= 0:
            self._lowest = 0.0
        elif self._losses >= HALF_LIFE:
            mean = self._mean
            self._lowest = mean if self._lowest is None else min(mean, self._lowest)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on exactly from here, for JSON."""
        moved = {"losses": self._losses, "sum": self._sum, "lowest": self._lowest}
        return {"weights": self.weights, **moved}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, exactly; target, rate, ceiling and utility stay this one's.

        Raises:
            ConfigError: It is not a state, or one of other emotions.
        """
        own = self.state()
        weights = state.get("weights") if isinstance(state, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ConfigError(
                f"The saved state of the weights is {told(state)}, wanted an object with "
                f"{', '.join(own)}. Resume from a checkpoint that is whole."
            )
        for kind, wanted, found in (("keys", own, state), ("emotions", own["weights"], weights)):
            if set(wanted) != set(found):
                raise ConfigError(
                    f"The saved state of the weights has the {kind} {sorted(found)}, wanted "
                    f"{sorted(wanted)}. Resume with the emotions of the run that saved it."
                )
        numbers = (*weights.values(), state["losses"], state["lowest"] or 0)
        if not (all(map(non_negative, numbers)) and finite(state["sum"])):
            raise ConfigError(
                f"The saved state of the weights is {told(state)}, wanted finite numbers. Resume "
                "from a checkpoint that is whole."
            )
        self._weights = {e: float(state["weights"][e]) for e in own["weights"]}
        self._losses, self._sum = int(state["losses"]), float(state["sum"])
        self._lowest = state["lowest"]
