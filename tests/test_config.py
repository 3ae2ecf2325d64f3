"""Every knob is checked once, all problems come together, and TRL's parser reads it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from trl import TrlParser

from emoreg.config import PREFIX, EmoRegConfig
from emoreg.errors import ConfigError

BAD: dict[str, tuple[Any, str]] = {
    "penalize": ("desperate: 0.1", "emoreg_penalize is not JSON"),
    "reward": (["calm"], "emoreg_reward must map emotions to weights"),
    "keep": (-1.0, "emoreg_keep must be a finite number >= 0, got -1.0"),
    "blocks": ([-1], "emoreg_blocks"),
    "anchor": ("self", "emoreg_anchor must be one of neutral, base, got 'self'"),
    "margin": (float("nan"), "emoreg_margin must be a finite number >= 0, got nan"),
    "pool": ("max", "emoreg_pool must be one of mean, top, got 'max'"),
    "scope": (
        ["answer"],
        "emoreg_scope must name some of completion, colon, prompt, tool, got ['answer']",
    ),
    "sides": (["winner"], "emoreg_sides must name some of chosen, rejected, reference, desired"),
    "warmup": (1.5, "emoreg_warmup is a share in [0, 1], got 1.5"),
    "drift_steps": (-5, "emoreg_drift_steps must be a whole number >= 0, got -5"),
    "drift_response_tokens": (None, "emoreg_drift_response_tokens must be a whole number >= 0"),
    "drift_on_policy": ("often", "emoreg_drift_on_policy must be one of end, always, never"),
    "reference_steps": (1.5, "emoreg_reference_steps must be a whole number >= 0, got 1.5"),
    "log_texts": (-1, "emoreg_log_texts must be a whole number >= 0, got -1"),
    "alerts": ({"reading/calm": {}}, "emoreg_alerts: alert 'reading/calm' needs `above` or"),
    "method": (
        "steer",
        "emoreg_method must be one of penalty, prevent, ablate, cap, got 'steer'",
    ),
    "kl": (-0.5, "emoreg_kl must be a finite number >= 0, got -0.5"),
    "kl_texts": (0, "emoreg_kl_texts must be a whole number >= 1, got 0"),
    "schedule": ("cosine", "emoreg_schedule must be one of constant, linear, got 'cosine'"),
    "target": (-1.0, "emoreg_target must be a finite number >= 0, got -1.0"),
    "target_rate": ("fast", "emoreg_target_rate must be a finite number >= 0, got 'fast'"),
    "target_ceiling": (float("inf"), "emoreg_target_ceiling must be a finite number >= 0, got inf"),
    "target_utility": (None, "emoreg_target_utility must be a finite number >= 0, got None"),
    "refit_steps": (2.5, "emoreg_refit_steps must be a whole number >= 0, got 2.5"),
    "refit_facets": (0, "emoreg_refit_facets must be a whole number >= 1, got 0"),
    "refit_texts": (True, "emoreg_refit_texts must be a whole number >= 1, got True"),
    "refit_tokens": (-24, "emoreg_refit_tokens must be a whole number >= 0, got -24"),
    "audit_steps": ("end", "emoreg_audit_steps must be a whole number >= 0, got 'end'"),
}
MORE_BAD = [
    ("penalize", {"desperate": -0.1}, "finite numbers >= 0, got {'desperate': -0.1}"),
    ("penalize", '{"desperate": NaN}', "finite numbers >= 0, got {'desperate': nan}"),
    ("penalize", {"desperate": "0.1"}, "finite numbers >= 0, got {'desperate': '0.1'}"),
    ("penalize", {"desperate": True}, "finite numbers >= 0, got {'desperate': True}"),
    ("penalize", "[1]", "must map emotions to weights, got [1]"),
    ("keep", "0.1", "emoreg_keep must be a finite number >= 0, got '0.1'"),
    ("keep", float("inf"), "emoreg_keep"),
    ("warmup", -0.1, "emoreg_warmup"),
    ("scope", [], "emoreg_scope"),
    ("scope", None, "emoreg_scope"),
    ("sides", [], "emoreg_sides"),
    ("blocks", [], "emoreg_blocks"),
    ("blocks", ["3"], "emoreg_blocks"),
    ("drift_steps", "many", "emoreg_drift_steps"),
    ("drift_steps", 2.5, "emoreg_drift_steps"),
    ("method", None, "emoreg_method must be one of"),
    ("kl", float("nan"), "emoreg_kl must"),
    ("kl_texts", 1.5, "emoreg_kl_texts"),
    ("target", "low", "emoreg_target must be a finite number >= 0, got 'low'"),
    ("target", float("inf"), "emoreg_target must"),
    ("target", True, "emoreg_target must"),
    ("refit_steps", None, "emoreg_refit_steps"),
    ("refit_facets", -1, "emoreg_refit_facets"),
    ("refit_tokens", None, "emoreg_refit_tokens"),
    ("audit_steps", -1, "emoreg_audit_steps"),
]
EDIT = {"penalize": {"desperate": 0.5}}
APART: list[tuple[dict[str, Any], list[str]]] = [  # knobs and the problems they make together
    ({"method": m, **EDIT, **given}, [f"{name} goes with emoreg_method: penalty, not with {m}"])
    for m in ("prevent", "ablate", "cap")
    for given, name in (
        ({"keep": 0.1}, "emoreg_keep"),
        ({"target": 0.0}, "emoreg_target"),
        ({"refit_steps": 10}, "emoreg_refit_steps"),
        ({"anchor": "base"}, "emoreg_anchor: base"),
    )
] + [
    ({"method": m, "penalize": {"desperate": 1.5}}, [f"emoreg_method: {m} a weight is a share"])
    for m in ("ablate", "cap")
] + [
    ({"method": "ablate", **EDIT, "reward": {"calm": 0.5}}, ["name them in emoreg_penalize alone"]),
    (
        {"method": "ablate", "penalize": {"desperate": 0.5, "afraid": 0.4}},
        ["emoreg_method: ablate takes the same share out of all emotions it names"],
    ),
    (
        {"method": "cap", "penalize": {"desperate": 2.0}, "keep": 0.1, "target": 1.0},
        ["emoreg_keep goes with", "emoreg_target goes with", "a weight is a share in [0, 1]"],
    ),
]  # fmt: skip


def test_every_bad_knob_is_reported_in_one_error() -> None:
    with pytest.raises(ConfigError) as error:
        EmoRegConfig.of(**{name: value for name, (value, _) in BAD.items()})
    message = str(error.value)
    assert [words for _, words in BAD.values() if words not in message] == []
    assert message.count("\n  - ") == len(BAD)


@pytest.mark.parametrize(
    ("name", "value", "words"), [*((n, v, w) for n, (v, w) in BAD.items()), *MORE_BAD]
)
def test_a_bad_knob_is_refused_with_its_name_and_value(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmoRegConfig.of(**{name: value})
    assert words in str(error.value)
    assert str(error.value).count("\n  - ") == 1


def test_every_knob_that_can_be_bad_is_tried() -> None:
    names = {f.name.removeprefix(PREFIX) for f in fields(EmoRegConfig)}
    free = {"vectors", "facets", "check_name", "drift_prompts", "bank"}  # names, and a flag
    assert names - set(BAD) == free
    assert all(f.metadata["help"] and f.name.startswith(PREFIX) for f in fields(EmoRegConfig))


@pytest.mark.parametrize(("knobs", "problems"), APART)
def test_knobs_that_do_not_go_together_are_refused(
    knobs: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        EmoRegConfig.of(**knobs)
    assert [words for words in problems if words not in str(error.value)] == []
    assert str(error.value).count("\n  - ") == len(problems)
    EmoRegConfig.of(**{**knobs, "method": "penalty"})  # control: with the penalty they do


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "prevent", "penalize": {"desperate": 3.0}, "reward": {"calm": 2.0}},
        {"method": "ablate", "penalize": {"desperate": 1.0, "sad": 0.0, "afraid": 1.0}},
        {"method": "ablate", "penalize": {"desperate": 1.0}, "reward": {"calm": 0.0}},
        {"method": "cap", "penalize": {"desperate": 1.0}, "reward": {"calm": 0.5}, "margin": 2.0},
        {"method": "prevent", "kl": 0.1, "schedule": "linear", "warmup": 0.1, **EDIT},
        {"target": 0.0, "refit_steps": 10, "keep": 0.1, "anchor": "base", "kl": 0.1},
        {"audit_steps": None, "drift_steps": None},
    ],
)
def test_what_goes_together_is_taken(knobs: dict[str, Any]) -> None:
    EmoRegConfig.of(**knobs)


@pytest.mark.parametrize("method", ["ablate", "cap"])
@pytest.mark.parametrize("weight", ["0.1", None, [1]])
def test_a_weight_that_is_no_number_is_told_whatever_the_method(method: str, weight: Any) -> None:
    with pytest.raises(ConfigError) as error:
        EmoRegConfig.of(method=method, penalize={"desperate": weight})
    assert "emoreg_penalize: weights must be finite numbers >= 0" in str(error.value)
    assert str(error.value).count("\n  - ") == 1


@pytest.mark.parametrize("value", [{"sad": 0.1, "afraid": 0}, '{"sad": 0.1, "afraid": 0}'])
def test_weights_are_a_mapping_or_its_json(value: Any) -> None:
    config = EmoRegConfig.of(penalize=value, reward=None)
    assert config.penalize == {"sad": 0.1, "afraid": 0}
    assert config.reward == {}  # the user chose


def test_without_a_choice_desperate_and_calm_are_measured() -> None:
    config = EmoRegConfig()
    assert (config.penalize, config.reward) == ({"desperate": 0.0}, {"calm": 0.0})
    assert not config.active


def test_an_emotion_is_penalised_or_rewarded() -> None:
    with pytest.raises(ConfigError, match="calm: both penalised and rewarded"):
        EmoRegConfig.of(penalize={"calm": 0.1}, reward={"calm": 0.2})


@pytest.mark.parametrize(
    ("name", "one"), [("scope", "colon"), ("facets", "stories"), ("blocks", 3)]
)
def test_one_alone_stands_for_a_list_of_one(name: str, one: Any) -> None:
    assert getattr(EmoRegConfig.of(**{name: one}), PREFIX + name) == [one]


@pytest.mark.parametrize(
    ("knobs", "active", "needs_base"),
    [
        ({}, False, False),
        ({"anchor": "base"}, False, False),
        ({"penalize": {"desperate": 0.1}}, True, False),
        ({"reward": {"calm": 0.1}, "anchor": "base"}, True, True),
        ({"keep": 0.1}, True, True),
        ({"target": 1.0}, True, False),
        ({"target": 1.0, "anchor": "base"}, True, True),
        ({"kl": 0.1, "refit_steps": 5}, False, False),
        ({"method": "cap", "penalize": {"desperate": 0.1}}, True, False),
    ],
)
def test_weight_zero_only_measures_and_the_base_is_read_when_it_is_needed(
    knobs: dict[str, Any], active: bool, needs_base: bool
) -> None:
    config = EmoRegConfig.of(**knobs)
    assert (config.active, config.needs_base) == (active, needs_base)


def test_two_configurations_share_no_default() -> None:
    one, other = EmoRegConfig(), EmoRegConfig()
    one.emoreg_scope.append("prompt")
    assert isinstance(one.emoreg_penalize, dict)
    one.emoreg_penalize["sad"] = 1.0
    assert other == EmoRegConfig() != one


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("penalise", "penalize"), ("emoreg_margin", "margin"), ("warm_up", "warmup")],
)
def test_an_unknown_knob_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown knob '{name}'; nearest: {nearest}"):
        EmoRegConfig.of(**{name: 1})


YAML = """
emoreg_vectors: vectors/tiny
emoreg_penalize:
  desperate: 0.1
emoreg_reward: '{"calm": 0.05}'
emoreg_blocks: [3, 5]
emoreg_anchor: base
emoreg_check_name: false
"""
READ = EmoRegConfig.of(
    vectors="vectors/tiny", penalize={"desperate": 0.1}, reward={"calm": 0.05}, blocks=[3, 5],
    anchor="base", check_name=False,
)  # fmt: skip


def parse(path: Path, text: str, *flags: str) -> EmoRegConfig:
    path.write_text(text)
    (config,) = TrlParser(EmoRegConfig).parse_args_and_config(["--config", str(path), *flags])
    return config


def test_trls_parser_reads_yaml_and_flags_go_before_it(tmp_path: Path) -> None:
    assert parse(tmp_path / "run.yaml", YAML) == READ
    flags = [
        "--emoreg_penalize",
        '{"sad": 0.2}',
        "--emoreg_blocks",
        "1",
        "2",
        "--emoreg_pool",
        "top",
    ]
    changed = parse(tmp_path / "run.yaml", YAML, *flags)
    assert changed.penalize == {"sad": 0.2}
    assert (changed.emoreg_blocks, changed.emoreg_pool) == ([1, 2], "top")
    assert changed.emoreg_anchor == "base"


def test_a_key_that_nobody_knows_and_a_value_out_of_range_are_refused_in_yaml(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="emoreg_penalise"):
        parse(tmp_path / "run.yaml", YAML.replace("penalize", "penalise"))
    with pytest.raises(ConfigError, match="emoreg_anchor"):
        parse(tmp_path / "run.yaml", YAML.replace("base", "self"))
