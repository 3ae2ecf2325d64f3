"""One training run of a YAML and flags: what ``emoreg train`` and the scripts in recipes/ do."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import trl
from datasets import Dataset, load_dataset
from transformers import Trainer
from trl.scripts.grpo import GRPOScriptArguments
from trl.scripts.utils import ScriptArguments, TrlParser
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from emoreg.auditing import AuditCallback
from emoreg.callbacks import DriftCallback
from emoreg.config import EmoRegConfig
from emoreg.errors import ConfigError
from emoreg.recipe_file import check_yaml
from emoreg.regularizer import EmotionRegularizer
from emoreg.shipped import located, recipe
from emoreg.vectors import EmotionVectors

METHODS = ("sft", "dpo", "grpo", "kto")


@dataclass
class _Mapped:
    dataset_map: str | None = field(
        default=None,
        metadata={
            "help": "package.module:function that makes a row for the trainer of one of the data "
            "set, whose other columns go."
        },
    )


@dataclass
class Arguments(_Mapped, ScriptArguments):
    """The data."""


@dataclass
class GrpoArguments(_Mapped, GRPOScriptArguments):
    """The data, and what pays."""


class Run(NamedTuple):
    """A parsed run."""

    method: str
    script: Any  # Arguments, or the method's own
    args: Any  # the trainer's configuration
    model: ModelConfig
    emoreg: EmoRegConfig


def main(method: str, argv: Sequence[str] | None = None) -> Trainer:
    """Train as a YAML and flags say, and save the model; returns the trainer.

    Args:
        method: One of `METHODS`.
        argv: ``--config``, a recipe's path or name, and flags that override it; those of the
            process by default.

    Raises:
        ConfigError: A key or flag that is unknown or out of range; vectors that are missing.
        VectorMismatchError: The vectors were made for another model.
    """
    run = parse(method, argv)
    vectors = load_vectors(run)
    trainer = make_trainer(run)
    add_callbacks(trainer, vectors, run.emoreg)
    trainer.train(resume_from_checkpoint=run.args.resume_from_checkpoint)
    trainer.save_model(run.args.output_dir)
    trainer.save_state()
    return trainer


def parse(method: str, argv: Sequence[str] | None = None) -> Run:
    """Read the YAML and the flags.

    Raises:
        ConfigError: No such recipe; a key or flag that is unknown or out of range.
    """
    script = GrpoArguments if method == "grpo" else Arguments
    kinds: Any = (script, _of_trl(method, "Config"), ModelConfig, EmoRegConfig)
    parser, flags = _Parser(kinds), _with_path(argv)
    try:
        if "--config" in flags[:-1]:
            check_yaml(Path(flags[flags.index("--config") + 1]))
        run = Run(method, *parser.parse_args_and_config(flags))
        _locate(run.emoreg)
        return run
    except ConfigError:
        raise
    # Of TRL, about a key or the environment, and of its configurations, about a value.
    except (ValueError, TypeError, OSError) as e:
        raise ConfigError(str(e) or repr(e)) from e


class _Parser(TrlParser):
    """TRL's, which raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. `emoreg train METHOD --help` lists the flags.")


def _with_path(argv: Sequence[str] | None) -> list[str]:
    """The flags, with a recipe's path for its name."""
    found = [part for flag in (sys.argv[1:] if argv is None else argv) for part in _split(flag)]
    if "--config" in found[:-1]:
        at = found.index("--config") + 1
        found[at] = str(recipe(found[at]))
    return found


def _split(flag: str) -> list[str]:
    return flag.split("=", 1) if flag.startswith("--config=") else [flag]


def _locate(config: EmoRegConfig) -> None:
    """Let every path of emoreg's own be found from any folder."""
    for knob in fields(config):
        value = getattr(config, knob.name)
        if isinstance(value, str):
            setattr(config, knob.name, located(value))


def _of_trl(method: str, kind: str) -> Any:
    return getattr(trl, f"{method.upper()}{kind}")


def load_vectors(run: Run) -> EmotionVectors:
    """The vector set of a run.

    Raises:
        ConfigError: None is named, or the folder is missing; the message has the command that
            makes the set.
        VectorFileError: It cannot be read, or be had from the hub.
    """
    name, model = run.emoreg.emoreg_vectors, run.model.model_name_or_path
    if name is None:
        raise ConfigError("emoreg_vectors is missing: name a vector set, by folder or hub name.")
    if name.startswith(("vectors/", ".", "/")) and not Path(name).is_dir():
        raise ConfigError(
            f"There is no vector set in {name}. Make it once, for this model: "
            f"`emoreg extract --model {model} --out {name}`, "
            f"and check it: `emoreg validate --model {model} --vectors {name}`."
        )
    return EmotionVectors.from_pretrained(name)


def make_trainer(run: Run) -> Trainer:
    """The method's trainer on the run's model and data.

    Raises:
        ConfigError: A function that the YAML names cannot be imported.
    """
    evaluated = run.args.eval_strategy != "no"
    run.args.model_init_kwargs = {
        "revision": run.model.model_revision,
        "dtype": run.model.dtype,
        "attn_implementation": run.model.attn_implementation,
        "quantization_config": get_quantization_config(run.model),
        "trust_remote_code": getattr(run.args, "trust_remote_code", False),
        **(run.args.model_init_kwargs or {}),
    }
    trainer: Trainer = _of_trl(run.method, "Trainer")(
        model=located(str(run.model.model_name_or_path)),
        args=run.args,
        train_dataset=load_rows(run.script, run.script.dataset_train_split),
        eval_dataset=load_rows(run.script, run.script.dataset_test_split) if evaluated else None,
        peft_config=get_peft_config(run.model),
        **({"reward_funcs": rewards(run.script)} if run.method == "grpo" else {}),
    )
    return trainer


def load_rows(script: Any, split: str) -> Dataset:
    """A split, or a slice of one as in ``train[:1000]``."""
    rows = load_dataset(
        located(str(script.dataset_name)),
        name=script.dataset_config,
        split=split,
        streaming=script.dataset_streaming,
    )
    if script.dataset_map is None:
        return rows
    return rows.map(function(script.dataset_map), remove_columns=rows.column_names)


def last_turn(row: Mapping[str, Any]) -> dict[str, Any]:
    """A conversation up to its last turn, and that turn: the loss and the terms are on it alone."""
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def rewards(script: GrpoArguments) -> list[Any]:
    """A reward model's name, if there is one, and the reward functions."""
    model = script.reward_model_name_or_path
    return [*([model] if model else []), *map(function, script.reward_funcs or [])]


def function(name: str) -> Any:
    """A function by its name, ``package.module:function``.

    Raises:
        ConfigError: There is none.
    """
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{name!r} cannot be imported ({e}); its folder on PYTHONPATH?") from e
    if not callable(found):
        raise ConfigError(f"{name!r} is a {type(found).__name__}, not a function.")
    return found


def add_callbacks(trainer: Trainer, vectors: EmotionVectors, config: EmoRegConfig) -> None:
    """What emoreg adds to a trainer, in this order."""
    trainer.add_callback(EmotionRegularizer(trainer, vectors, config))
    trainer.add_callback(DriftCallback.of(trainer, vectors, config))
    trainer.add_callback(AuditCallback.of(trainer, vectors, config))
