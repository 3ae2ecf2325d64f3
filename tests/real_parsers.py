"""Commands of a page, parsed by what would run them; nothing is trained or written."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser
from markdown_pages import ROOT

from emoreg import cli, training
from emoreg.errors import ConfigError
from emoreg.recipe_file import check_yaml

COMMANDS: dict[str, argparse.ArgumentParser] = next(
    action.choices
    for action in cli.parser()._actions
    if isinstance(action, argparse._SubParsersAction)
)
CPU = ("--use_cpu", "true", "--bf16", "false")  # no GPU is looked for


class Parsed(Exception):
    """Flags were read; nothing further is to be run."""


class Wrong(Exception):
    """What a parser says of a command."""


def wrong(words: Sequence[str]) -> str | None:
    """Why a command cannot be run, by its own parser; None if it can be."""
    kinds = {"emoreg": emoreg, "python": script, "accelerate": accelerate, "make": make, "pip": pip}
    if words[0] not in kinds:
        return None  # wandb, git: not ours
    said = StringIO()
    try:
        with redirect_stderr(said):
            kinds[words[0]](words[1:])
    except (Wrong, ConfigError) as e:
        return str(e)
    except SystemExit as e:  # of argparse
        return said.getvalue() or repr(e)
    return None


def emoreg(words: Sequence[str]) -> None:
    """A command of emoreg, with the recipe's own parser for `train`."""
    if len(words) == 1 and words[0] in COMMANDS:
        return  # a command that is only named
    flags = cli.parser().parse_args(words)
    if words[0] == "train" and "--help" not in flags.flags:
        recipe(flags.method, flags.flags)


def recipe(method: str, flags: Sequence[str]) -> None:
    """The flags of a training, in an environment that is given back."""
    with patch.dict(os.environ):
        training.parse(method, [*flags, *CPU])


def accelerate(words: Sequence[str]) -> None:
    """`accelerate launch`, and the recipe's script behind it."""
    if words[0] != "launch":
        raise Wrong(f"no check for accelerate {words[0]}")
    flags = launch_command_parser().parse_args(words[1:])
    check_yaml(existing(flags.config_file))
    found = existing(flags.training_script)
    if found.parent.name != "recipes":
        raise Wrong(f"{found} is no script of recipes/")
    recipe(found.stem, flags.training_script_args)


def script(words: Sequence[str]) -> None:
    """A script with its own parser, which is stopped when it has read the flags."""
    own = argparse.ArgumentParser.parse_args

    def stop(parser: Any, *args: Any, **kwargs: Any) -> NoReturn:
        own(parser, *args, **kwargs)
        raise Parsed

    path = existing(words[0])
    with (
        patch.object(sys, "argv", [str(path), *words[1:]]),
        patch.object(sys, "path", [str(path.parent), *sys.path]),
        patch.dict(os.environ),
        patch.object(argparse.ArgumentParser, "parse_args", stop),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Parsed:
            return
    raise Wrong(f"{path} parses no flags")


def make(words: Sequence[str]) -> None:
    """A target of the Makefile."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for word in words:
        if "=" not in word and word not in targets:
            raise Wrong(f"no target {word}")


def pip(words: Sequence[str]) -> None:
    """An install of this project, with extras that there are."""
    text = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]\n")[2]
    extras = re.findall(r"^(\w+) = \[", text.partition("\n[")[0], flags=re.M)
    named = re.fullmatch(r"install -e \.(?:\[([\w,]+)\])?", " ".join(words))
    if named is None:
        raise Wrong("wanted pip install -e . with or without extras")
    if unknown := {*(named[1] or "").split(",")} - {*extras, ""}:
        raise Wrong(f"no extra {', '.join(sorted(unknown))}")


def existing(name: str) -> Path:
    """A file of the repository."""
    if not (ROOT / name).is_file():
        raise Wrong(f"no file {name}")
    return ROOT / name
