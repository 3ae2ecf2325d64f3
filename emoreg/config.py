"""Every knob once, with its unit and its check beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from emoreg import alerts
from emoreg.alerts import Alert
from emoreg.errors import ConfigError
from emoreg.tokens import SCOPES, SIDES

PREFIX = "emoreg_"
CHOICES = {
    "emoreg_anchor": ("neutral", "base"),
    "emoreg_pool": ("mean", "top"),
    "emoreg_drift_on_policy": ("end", "always", "never"),
}
# Whole numbers from 0 on.
COUNTS = (
    "emoreg_reference_steps", "emoreg_log_texts", "emoreg_drift_steps",
    "emoreg_drift_response_tokens",
)  # fmt: skip


@dataclass
class EmoRegConfig:
    """What is penalised and rewarded, where, and how strongly; in YAML and flags with this prefix.

    All weights are in task-loss units per σ², all margins in σ, so that they mean the same for
    every model, block and trainer.

    Raises:
        ConfigError: The message lists every knob that is out of range.
    """

    emoreg_vectors: str | None = field(default=None, metadata={"help": "Folder of a vector set."})
    emoreg_penalize: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Emotion: weight, a mapping or JSON; 0 only measures. "
            "Default, if there is no emoreg_reward either: desperate 0."
        },
    )
    emoreg_reward: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Emotion: weight, a mapping or JSON. Default, with no emoreg_penalize: calm 0."
        },
    )
    emoreg_keep: float = field(
        default=0.0,
        metadata={"help": "Weight of the squared excess of all other emotions over the base."},
    )
    emoreg_facets: list[str] | None = field(
        default=None, metadata={"help": "Facets the terms run on; all of the set by default."}
    )
    emoreg_blocks: list[int] | None = field(
        default=None,
        metadata={"help": "Decoder blocks to read, from 0; the set's suggested ones by default."},
    )
    emoreg_anchor: str = field(
        default="neutral",
        metadata={
            "help": "Readings are compared with `neutral` (0) or `base` (same token, adapters off)."
        },
    )
    emoreg_margin: float = field(
        default=0.0, metadata={"help": "Readings up to this many σ beyond the anchor cost nothing."}
    )
    emoreg_pool: str = field(
        default="mean",
        metadata={"help": "`mean` of all counted tokens, or of the `top` tenth of each sequence."},
    )
    emoreg_scope: list[str] = field(
        default_factory=lambda: ["completion", "colon"],
        metadata={"help": "Tokens that count: some of completion, colon, prompt, tool."},
    )
    emoreg_sides: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sequences the terms act on, of those the trainer tells apart: chosen, "
            "rejected, reference, desired, undesired, rewarded, unrewarded. All by default."
        },
    )
    emoreg_warmup: float = field(
        default=0.0, metadata={"help": "Share of training over which the weights rise from 0."}
    )
    emoreg_check_name: bool = field(
        default=True, metadata={"help": "Refuse vectors made for a model of another name."}
    )
    emoreg_reference_steps: int = field(
        default=50,
        metadata={
            "help": "Read the base on every so-manieth step, for the logged excess, where the "
            "trainer does not run it anyway; 0: never."
        },
    )
    emoreg_log_texts: int = field(
        default=3,
        metadata={
            "help": "Completions of the batch that are logged with the reading of each token, as "
            "many of the highest and of the lowest, if the scope has the completion; 0: no text "
            "leaves the data."
        },
    )
    emoreg_alerts: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Logged name: threshold in its unit, or a mapping of above or below, patience "
            "and action (warn, stop, or package.module:function); a mapping or JSON."
        },
    )
    emoreg_drift_prompts: str | None = field(
        default=None, metadata={"help": "JSON lines of drift prompts; emoreg's own by default."}
    )
    emoreg_drift_steps: int | None = field(
        default=None,
        metadata={
            "help": "Measure drift every so many steps; 0: at start and end only. "
            "Ten times in a run by default."
        },
    )
    emoreg_drift_response_tokens: int = field(
        default=32,
        metadata={"help": "Length of the responses that drift is read on; 0: at the colon only."},
    )
    emoreg_drift_on_policy: str = field(
        default="end",
        metadata={
            "help": "When the model's own responses are read too: `end`, `always` or `never`."
        },
    )

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.emoreg_penalize is None and self.emoreg_reward is None:
            self.emoreg_penalize, self.emoreg_reward = {"desperate": 0.0}, {"calm": 0.0}
        self.emoreg_penalize = _weights("emoreg_penalize", self.emoreg_penalize, problems)
        self.emoreg_reward = _weights("emoreg_reward", self.emoreg_reward, problems)
        for name in ("emoreg_scope", "emoreg_sides", "emoreg_facets", "emoreg_blocks"):
            if isinstance(getattr(self, name), str | int):
                setattr(self, name, [getattr(self, name)])
        problems += self._problems()
        if problems:
            raise ConfigError("EmoRegConfig:\n  - " + "\n  - ".join(problems))

    def _problems(self) -> Iterator[str]:
        both = sorted(set(self.penalize) & set(self.reward))
        if both:
            yield f"{', '.join(both)}: both penalised and rewarded; choose one"
        yield from self._numbers()
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                yield f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
        for name, known in (("emoreg_scope", SCOPES), ("emoreg_sides", SIDES)):
            value = getattr(self, name)
            optional = value is None and name == "emoreg_sides"
            if not optional and (not value or set(value) - set(known)):
                yield f"{name} must name some of {', '.join(known)}, got {value}"
        for name in COUNTS:
            value = getattr(self, name)
            if not _counts(value) and not (value is None and name == "emoreg_drift_steps"):
                yield f"{name} must be a whole number >= 0, got {value!r}"
        yield from (f"emoreg_alerts: {problem}" for problem in alerts.check(self.emoreg_alerts))
        blocks = self.emoreg_blocks
        if blocks is not None and not (blocks and all(map(_counts, blocks))):
            yield f"emoreg_blocks must list decoder blocks, counted from 0, got {blocks}"

    def _numbers(self) -> Iterator[str]:
        for name in ("emoreg_keep", "emoreg_margin"):
            if not _non_negative(getattr(self, name)):
                yield f"{name} must be a finite number >= 0, got {getattr(self, name)!r}"
        if not (_non_negative(self.emoreg_warmup) and self.emoreg_warmup <= 1):
            yield f"emoreg_warmup is a share in [0, 1], got {self.emoreg_warmup!r}"

    @property
    def penalize(self) -> Mapping[str, float]:
        """Emotion -> weight of its penalty."""
        assert isinstance(self.emoreg_penalize, dict)
        return self.emoreg_penalize

    @property
    def reward(self) -> Mapping[str, float]:
        """Emotion -> weight of its reward."""
        assert isinstance(self.emoreg_reward, dict)
        return self.emoreg_reward

    @property
    def alerts(self) -> list[Alert]:
        """What raises an alert."""
        return alerts.parse(self.emoreg_alerts)

    @property
    def active(self) -> bool:
        """Whether anything is added to the loss; otherwise emoreg only measures."""
        return self.emoreg_keep > 0 or any(
            w > 0 for w in (*self.penalize.values(), *self.reward.values())
        )

    @property
    def needs_base(self) -> bool:
        """Whether the terms need the base's reading of the same tokens."""
        return self.active and (self.emoreg_anchor == "base" or self.emoreg_keep > 0)

    @classmethod
    def of(cls, **knobs: Any) -> EmoRegConfig:
        """A configuration from knobs named without the prefix.

        Raises:
            ConfigError: An unknown knob, with the nearest known, or one out of range.
        """
        known = {f.name.removeprefix(PREFIX) for f in fields(cls)}
        for name in knobs:
            if name not in known:
                near = get_close_matches(name, known, n=3) or sorted(known)
                raise ConfigError(f"Unknown knob {name!r}; nearest: {', '.join(near)}.")
        return cls(**{PREFIX + name: value for name, value in knobs.items()})


def _non_negative(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _counts(value: Any) -> bool:
    return isinstance(value, int) and _non_negative(value)


def _weights(name: str, value: Any, problems: list[str]) -> dict[str, float]:
    """Emotion -> weight from a mapping, JSON, or nothing; what is wrong is added to `problems`."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            problems.append(f'{name} is not JSON: {value!r}; write it like {{"desperate": 0.1}}')
            return {}
    if not isinstance(value, Mapping):
        problems.append(f"{name} must map emotions to weights, got {value!r}")
        return {}
    bad = {e: w for e, w in value.items() if not _non_negative(w)}
    if bad:
        problems.append(f"{name}: weights must be finite numbers >= 0, got {bad}")
    return {str(e): w for e, w in value.items()}
