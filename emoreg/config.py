"""Every knob once, with its unit and its check beside it."""
# ruff: noqa: RUF009 - a knob is a dataclass field

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from emoreg import alerts
from emoreg.alerts import Alert
from emoreg.errors import ConfigError
from emoreg.knobs import counts, knob, non_negative, told, weights
from emoreg.schedule import SCHEDULES
from emoreg.tokens import SCOPES, SIDES

PREFIX = "emoreg_"
CHOICES = {
    "emoreg_method": ("penalty", "prevent", "ablate", "cap"),
    "emoreg_schedule": SCHEDULES,
    "emoreg_anchor": ("neutral", "base"),
    "emoreg_pool": ("mean", "top"),
    "emoreg_drift_on_policy": ("end", "always", "never"),
}
# Whole numbers from 0 on.
COUNTS = (
    "emoreg_reference_steps", "emoreg_log_texts", "emoreg_drift_steps", "emoreg_audit_steps",
    "emoreg_drift_response_tokens", "emoreg_refit_steps", "emoreg_refit_tokens",
)  # fmt: skip
OPTIONAL = ("emoreg_drift_steps", "emoreg_audit_steps")  # null is a value of these counts
# Whole numbers above 0, and finite numbers from 0 on.
POSITIVE = ("emoreg_kl_texts", "emoreg_refit_facets", "emoreg_refit_texts")
NUMBERS = (
    "emoreg_keep", "emoreg_margin", "emoreg_kl", "emoreg_target_rate", "emoreg_target_ceiling",
    "emoreg_target_utility",
)  # fmt: skip

PATHS = ("emoreg_vectors", "emoreg_bank", "emoreg_drift_prompts")


def _listed(value: Any, kind: Callable[[Any], bool] = lambda x: isinstance(x, str)) -> bool:
    return isinstance(value, list | tuple) and all(map(kind, value))


@dataclass
class EmoRegConfig:
    """What is penalised and rewarded, where, and how strongly; in YAML and flags with this prefix.

    All weights are in task-loss units per σ², all margins in σ, so that they mean the same for
    every model, block and trainer.

    Raises:
        ConfigError: The message lists every knob that is out of range.
    """

    emoreg_vectors: str | None = knob(None, "Folder of a vector set, or its name on the hub.")
    emoreg_penalize: dict[str, float] | str | None = knob(
        None,
        "Emotion: weight, a mapping or JSON; 0 only measures. "
        "Default, if there is no emoreg_reward either: desperate 0.",
    )
    emoreg_reward: dict[str, float] | str | None = knob(
        None, "Emotion: weight, a mapping or JSON. Default, with no emoreg_penalize: calm 0."
    )
    emoreg_method: str = knob(
        "penalty",
        "`penalty` adds terms to the loss. The others edit the blocks' outputs in training: "
        "`prevent` adds a weight of σ along the direction (takes it away for rewarded emotions), "
        "`ablate` takes out a weight's share, up to 1, of what lies along it, `cap` clips readings "
        "at the margin.",
    )
    emoreg_keep: float = knob(
        0.0, "Weight of the squared excess of all other emotions over the base."
    )
    emoreg_kl: float = knob(
        0.0, "Weight of the KL divergence, nats, from the base on the bank's neutral texts."
    )
    emoreg_kl_texts: int = knob(4, "Neutral texts in each micro-batch, for emoreg_kl.")
    emoreg_facets: list[str] | None = knob(
        None, "Facets the terms run on; all of the set by default."
    )
    emoreg_blocks: list[int] | None = knob(
        None, "Decoder blocks to read, from 0; the set's suggested ones by default."
    )
    emoreg_anchor: str = knob(
        "neutral",
        "Readings are compared with `neutral` (0) or `base` (same token, adapters off).",
    )
    emoreg_margin: float = knob(0.0, "Readings up to this many σ beyond the anchor cost nothing.")
    emoreg_pool: str = knob(
        "mean", "`mean` of all counted tokens, or of the `top` tenth of each sequence."
    )
    emoreg_scope: list[str] = knob(
        ["completion", "colon"], "Tokens that count: some of completion, colon, prompt, tool."
    )
    emoreg_sides: list[str] | None = knob(
        None,
        "Sequences the terms act on, of those the trainer tells apart: chosen, "
        "rejected, reference, desired, undesired, rewarded, unrewarded. All by default.",
    )
    emoreg_warmup: float = knob(0.0, "Share of training over which the weights rise from 0.")
    emoreg_schedule: str = knob(
        "constant", "After the warm-up the weights stay `constant`, or fall `linear` to 0."
    )
    emoreg_target: float | None = knob(
        None,
        "Adaptive weights: each rises while its mean reading is more than this many σ beyond the "
        "anchor, and falls below; the weights given are where they begin.",
    )
    emoreg_target_rate: float = knob(0.05, "Weight gained in a step for each σ beyond the target.")
    emoreg_target_ceiling: float = knob(10.0, "An adaptive weight rises no higher.")
    emoreg_target_utility: float = knob(
        0.1, "Adaptive weights rise no more while the task loss is by this share above its best."
    )
    emoreg_refit_steps: int = knob(
        0, "Fit directions again on the current model every so many steps; 0: never."
    )
    emoreg_refit_facets: int = knob(
        4, "Facets of an emotion at most, with those of the set; the least useful refits go."
    )
    emoreg_refit_texts: int = knob(
        64, "Transcripts that a refit reads, equally many of each state of the bank."
    )
    emoreg_refit_tokens: int = knob(
        24, "Length of the model's own responses that a refit reads too; 0: none."
    )
    emoreg_bank: str | None = knob(
        None, "Labelled texts for refits, emoreg_kl and the audit; emoreg's own by default."
    )
    emoreg_check_name: bool = knob(True, "Refuse vectors made for a model of another name.")
    emoreg_reference_steps: int = knob(
        50,
        "Read the base on every so-manieth step, for the logged excess, where the "
        "trainer does not run it anyway; 0: never.",
    )
    emoreg_log_texts: int = knob(
        3,
        "Completions of the batch that are logged with the reading of each token, as "
        "many of the highest and of the lowest, if the scope has the completion; 0: no text "
        "leaves the data.",
    )
    emoreg_alerts: dict[str, Any] | str | None = knob(
        None,
        "Logged name: threshold in its unit, or a mapping of above or below, patience "
        "and action (warn, stop, or package.module:function); a mapping or JSON.",
    )
    emoreg_drift_prompts: str | None = knob(
        None, "JSON lines of drift prompts; emoreg's own by default."
    )
    emoreg_drift_steps: int | None = knob(
        None,
        "Measure drift every so many steps; 0: at start and end only. "
        "Ten times in a run by default.",
    )
    emoreg_drift_response_tokens: int = knob(
        32, "Length of the responses that drift is read on; 0: at the colon only."
    )
    emoreg_drift_on_policy: str = knob(
        "end", "When the model's own responses are read too: `end`, `always` or `never`."
    )
    emoreg_audit_steps: int | None = knob(
        0, "Audit the control every so many steps; 0: at the end only; null: ten times in a run."
    )

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.emoreg_penalize is None and self.emoreg_reward is None:
            self.emoreg_penalize, self.emoreg_reward = {"desperate": 0.0}, {"calm": 0.0}
        self.emoreg_penalize = weights("emoreg_penalize", self.emoreg_penalize, problems)
        self.emoreg_reward = weights("emoreg_reward", self.emoreg_reward, problems)
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
                yield f"{name} must be one of {', '.join(allowed)}, got {told(getattr(self, name))}"
        for name, known in (("emoreg_scope", SCOPES), ("emoreg_sides", SIDES)):
            value = getattr(self, name)
            optional = value is None and name == "emoreg_sides"
            if not optional and not (value and _listed(value) and {*value} <= {*known}):
                yield f"{name} must name some of {', '.join(known)}, got {told(value)}"
        for part in (self._counts, self._together, self._names):
            yield from part()
        yield from (f"emoreg_alerts: {problem}" for problem in alerts.check(self.emoreg_alerts))

    def _names(self) -> Iterator[str]:
        blocks = self.emoreg_blocks
        if blocks is not None and not (_listed(blocks, counts) and blocks):
            yield f"emoreg_blocks must list decoder blocks, counted from 0, got {told(blocks)}"
        if self.emoreg_facets is not None and not _listed(self.emoreg_facets):
            yield f"emoreg_facets must list names, got {told(self.emoreg_facets)}"
        for name in PATHS:
            if not isinstance(getattr(self, name), str | None):
                yield f"{name} must be a path or a name, got {told(getattr(self, name))}"
        if not isinstance(self.emoreg_check_name, bool):
            yield f"emoreg_check_name is true or false, got {told(self.emoreg_check_name)}"

    def _counts(self) -> Iterator[str]:
        for name in COUNTS:
            value = getattr(self, name)
            if not counts(value) and not (value is None and name in OPTIONAL):
                yield f"{name} must be a whole number >= 0, got {told(value)}"
        for name in POSITIVE:
            if not counts(getattr(self, name)) or not getattr(self, name):
                yield f"{name} must be a whole number >= 1, got {told(getattr(self, name))}"

    def _numbers(self) -> Iterator[str]:
        for name in NUMBERS:
            if not non_negative(getattr(self, name)):
                yield f"{name} must be a finite number >= 0, got {told(getattr(self, name))}"
        if not (non_negative(self.emoreg_warmup) and self.emoreg_warmup <= 1):
            yield f"emoreg_warmup is a share in [0, 1], got {told(self.emoreg_warmup)}"

    def _together(self) -> Iterator[str]:
        """What does not go together."""
        refits, method = self.emoreg_refit_steps, self.emoreg_method
        target = self.emoreg_target
        if target is not None and not non_negative(target):
            yield f"emoreg_target must be a finite number >= 0, got {told(target)}"
        if method not in CHOICES["emoreg_method"][1:]:
            return
        only = {
            "emoreg_keep": self.emoreg_keep != 0, "emoreg_target": target is not None,
            "emoreg_refit_steps": refits != 0, "emoreg_anchor: base": self.emoreg_anchor == "base",
        }  # fmt: skip
        for name, given in only.items():
            if given:
                yield f"{name} goes with emoreg_method: penalty, not with {method}"
        if not all(map(non_negative, self._weights())):
            return  # told already
        if method != "prevent" and any(w > 1 for w in self._weights()):
            yield f"with emoreg_method: {method} a weight is a share in [0, 1]"
        if method == "ablate" and any(w > 0 for w in self.reward.values()):
            yield "emoreg_method: ablate takes emotions out: name them in emoreg_penalize alone"
        if method == "ablate" and len({w for w in self.penalize.values() if w > 0}) > 1:
            yield "emoreg_method: ablate takes the same share out of all emotions it names"

    def _weights(self) -> tuple[float, ...]:
        return (*self.penalize.values(), *self.reward.values())

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
        """Whether readings are acted on in training; otherwise they are only measured."""
        return self.emoreg_keep > 0 or any(w > 0 for w in self._weights()) or self.adaptive

    @property
    def adaptive(self) -> bool:
        """Whether weights follow a target."""
        return self.emoreg_target is not None

    @property
    def adds(self) -> bool:
        """Whether terms of the readings are added to the loss."""
        return self.active and self.emoreg_method == "penalty"

    @property
    def needs_base(self) -> bool:
        """Whether the terms need the base's reading of the same tokens."""
        return self.adds and (self.emoreg_anchor == "base" or self.emoreg_keep > 0)

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
