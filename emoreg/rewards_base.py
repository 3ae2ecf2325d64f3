"""What every reward of `emoreg.rewards` does: bind to a trainer, read in σ, answer TRL, log."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from transformers import Trainer

from emoreg.errors import ConfigError, TrainerError, UnknownEmotionError
from emoreg.host import check_trainer, model_of
from emoreg.knobs import number
from emoreg.rewards_kl import beta_of, weak_kl
from emoreg.rewards_reader import Desk, Rollouts, desk_of, pooled
from emoreg.vectors import EmotionVectors

CHOICES = {
    "pool": ("mean", "top", "max"), "read_from": ("base", "policy"),
    "mode": ("progressive", "threshold"),
}  # fmt: skip
Rewards = list[float | None]
log = logging.getLogger(__name__)


@dataclass(eq=False)
class EmotionReward(ABC):
    """What all of them share: a number in σ for each rollout, read by the trainer's own model.

    A reading is the mean over the set's facets and blocks; over the completion's tokens, whose last
    is left out if it is the one that ends it, it is pooled. The neutral texts that make the unit
    have a standard deviation of 1 per token, so a neutral completion reads about 0 with ``mean``,
    and above 0 with ``top`` and ``max``: see what is logged before setting a threshold.

    Every process reads its own rollouts; a sharded model (FSDP 2, ZeRO-3) needs all of them to
    call, as the trainers do. Hooks, modes and ``requires_grad`` are given back after each batch.

    Args:
        vectors: A set made for the trainer's model.
        emotion: One of the set's.
        threshold: In σ, from where the reading counts.
        pool: ``mean`` of all tokens; mean of the ``top`` tenth, at least one; or ``max``. A mean is
            easy to evade (RL-Obfuscation, arXiv:2506.14261).
        read_from: ``base``: adapters off, or the trainer's reference model. It judges the text
            alone, so that what the policy does to its own activations changes nothing (RLFR,
            arXiv:2602.10067, scores rollouts on a frozen copy). ``policy``: the model as it is.
        facets: All of the set by default.
        blocks: Decoder blocks, from 0; those that the set suggests by default.
        check_name: False accepts vectors of a model of another name.
        name: In the trainer's log, ``rewards/{name}/mean``; the class by default, with the emotion
            if that is another than the class has.

    Raises:
        ConfigError: The message lists every knob that is out of range.
        UnknownEmotionError: The set lacks the emotion, a facet or a block.
        VectorFileError: The set holds values that are not directions.
    """

    vectors: EmotionVectors = field(repr=False)
    _: KW_ONLY
    emotion: str
    threshold: float = 1.0
    pool: Literal["mean", "top", "max"] = "top"
    read_from: Literal["base", "policy"] = "base"
    facets: Sequence[str] | None = None
    blocks: Sequence[int] | None = None
    check_name: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        own, kind = type(self).__dict__.get("emotion"), type(self).__name__
        self.__name__ = self.name or (kind if self.emotion == own else f"{kind}_{self.emotion}")
        if problems := list(self._problems()):
            raise ConfigError(f"{self.__name__}:\n  - " + "\n  - ".join(problems))
        self.vectors.verify()
        self.vectors.require([self.emotion])
        self._probe = self.vectors.probe(self.facets, self.blocks)
        if not self._probe.of(self.emotion):
            raise UnknownEmotionError(
                f"None of the facets {self.facets} holds {self.emotion!r}; the set has "
                + "; ".join(f"{f.name}: {', '.join(f.emotions)}" for f in self.vectors.facets)
            )
        self._trainer: Trainer | None = None

    def _problems(self) -> Iterator[str]:
        if not (number(self.threshold) and math.isfinite(self.threshold)):
            yield f"threshold must be a finite number, in σ, got {self.threshold!r}"
        for knob, allowed in CHOICES.items():
            if (value := getattr(self, knob, allowed[0])) not in allowed:
                yield f"{knob} must be one of {', '.join(allowed)}, got {value!r}"

    def bind(self, trainer: Any) -> None:
        """Read the rollouts of this trainer from now on, in the async form too.

        Raises:
            TrainerError: Not a trainer with reward functions.
            ConfigError: Another reward of the trainer has this name, or there is no base.
            VectorMismatchError: The vectors were made for another model.
        """
        if not isinstance(trainer, Trainer) or not hasattr(trainer, "reward_funcs"):
            raise TrainerError(
                f"Wanted a GRPOTrainer or RLOOTrainer, got {type(trainer).__name__}. Build it "
                f"with {self.__name__} among its reward_funcs, then call bind(trainer)."
            )
        model, tokenizer = model_of(check_trainer(trainer)), trainer.processing_class
        self.vectors.check(model, tokenizer, name=self.check_name)
        weight = self._weight(trainer)
        self._desk = desk_of(trainer)
        base = self.read_from == "base"
        self._reader = self._desk.reader(trainer, self.vectors, self._probe, base)
        self._reader.join(self.emotion)
        self._trainer = trainer
        if told := weak_kl(self.__name__, self._pull(weight), beta_of(trainer)):
            log.warning(told)

    def _weight(self, trainer: Any) -> float:
        """How much the trainer makes of it, 1 if something else calls it.

        Raises:
            ConfigError: Another reward function has the same name.
        """
        owners = [getattr(func, "reward", func) for func in trainer.reward_funcs]
        names = [getattr(owner, "__name__", "") for owner in owners]
        if names.count(self.__name__) > 1:
            raise ConfigError(
                f"{names.count(self.__name__)} reward functions are called {self.__name__}, which "
                "the trainer's log would mix; give one of them another name=."
            )
        if self in owners:
            return abs(float(trainer.reward_weights[owners.index(self)]))
        log.warning(
            "%s is not among the reward_funcs of the trainer, which are %s; it acts only if one "
            "of those calls it.",
            self.__name__,
            ", ".join(names),
        )
        return 1.0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Rewards:
        """A reward for each rollout, as TRL asks for it.

        Args:
            prompts: Texts, or lists of messages.
            completions: Alike.
            completion_ids: Their tokens; made from the texts if they are not given.
            columns: The data set's, and the trainer's ``log_metric`` and ``log_extra``, which get
                the readings.

        Returns:
            None where a reward does not apply: a rollout without a token.

        Raises:
            TrainerError: No trainer was bound.
            CaptureError: A reading that is not finite, images in a prompt, or out of memory.
        """
        rollouts = Rollouts(prompts, completions, completion_ids)
        readings, asked = self._read(rollouts), self._ask(rollouts, columns)
        if inspect.iscoroutine(asked):
            asked.close()
            raise ConfigError(
                f"The task of {self.__name__} is async; put its as_async() into reward_funcs."
            )
        return self._settle(readings, asked, columns)

    def as_async(self) -> Callable[..., Coroutine[Any, Any, Rewards]]:
        """The same as an async function, for `reward_funcs`: others go on while the model reads.

        Only one reading at a time uses the model, in the order of `reward_funcs`. Async functions
        of your own must leave the trainer's model alone.
        """

        async def reward(
            prompts: Sequence[Any],
            completions: Sequence[Any],
            completion_ids: Sequence[Sequence[int]] | None = None,
            **columns: Any,
        ) -> Rewards:
            rollouts = Rollouts(prompts, completions, completion_ids)

            async def reading() -> list[float | None]:
                async with self._bound[1].lock:
                    return await asyncio.to_thread(self._read, rollouts)

            asked = self._ask(rollouts, columns)
            readings, given = await asyncio.gather(reading(), _awaited(asked))
            return self._settle(readings, given, columns)

        reward.__name__ = self.__name__
        vars(reward).update(reward=self, bind=self.bind)
        return reward

    @property
    def _bound(self) -> tuple[Trainer, Desk]:
        if self._trainer is None:
            raise TrainerError(
                f"{self.__name__} has no trainer whose model it could read. Keep it in a variable, "
                "and after `trainer = GRPOTrainer(..., reward_funcs=[..., reward])` add the line\n"
                "    reward.bind(trainer)"
            )
        return self._trainer, self._desk

    def _read(self, rollouts: Rollouts) -> list[float | None]:
        """The pooled reading of each rollout, in σ."""
        trainer, _ = self._bound
        found = self._reader.readings(trainer, rollouts, self.emotion, self)
        return [pooled(tokens, self.pool) if len(tokens) else None for tokens in found]

    def _over(self, reading: float | None) -> bool:
        return reading is not None and reading > self.threshold

    def _tell(self, readings: Rewards, share: str, columns: Mapping[str, Any]) -> None:
        """Log what was read, if the trainer takes it."""
        known = [reading for reading in readings if reading is not None]
        metric, extra = columns.get("log_metric"), columns.get("log_extra")
        if metric is not None and known:
            metric(f"emoreg/reward_reading/{self.emotion}", sum(known) / len(known))
            metric(f"emoreg/{share}/{self.emotion}", sum(map(self._over, known)) / len(known))
        if extra is not None:
            extra(f"{self.__name__} (σ)", readings)

    def _ask(self, _rollouts: Rollouts, _columns: Mapping[str, Any]) -> Any:
        """What another reward function says, if one is asked."""
        return None

    @abstractmethod
    def _pull(self, weight: float) -> float | None:
        """The most that it changes a rollout's reward by; None if that is not known."""

    @abstractmethod
    def _settle(self, readings: Rewards, given: Any, columns: Mapping[str, Any]) -> Rewards:
        """The rewards for some readings."""


async def _awaited(asked: Any) -> Any:
    return await asked if inspect.isawaitable(asked) else asked
