"""Where recipes and what they name lie: in a clone, in a wheel, or where the user says."""

from __future__ import annotations

import os
from pathlib import Path

from emoreg.errors import ConfigError

PACKAGE = Path(__file__).parent
WHEEL = "shipped"  # folder of the package in which a wheel has what a clone has beside it
OWN = ("emoreg/", "recipes/", "vectors/", "accelerate_configs/")


def located(name: str) -> str:
    """A path that exists from here, else emoreg's own of that name, else the name: a hub's."""
    if not os.path.exists(name) and name.startswith(OWN):
        for root in (PACKAGE / WHEEL, PACKAGE.parent):
            if os.path.exists(root / name):
                return str(root / name)
    return name


def recipes() -> list[str]:
    """Names of the recipes that come with emoreg, such as ``tiny/sft/emoreg``."""
    folder = Path(located("recipes/tiny")).parent
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def recipe(name: str) -> Path:
    """The YAML of a run, by its path or by its name.

    Raises:
        ConfigError: There is none.
    """
    for path in (Path(name), Path(located(f"recipes/{name}.yaml"))):
        if path.is_file():
            return path
    raise ConfigError(
        f"{name!r} is neither a file nor the name of a recipe; the recipes are:\n  "
        + "\n  ".join(recipes())
    )
