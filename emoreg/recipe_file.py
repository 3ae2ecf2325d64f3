"""A recipe's YAML before it is read: plain, and no larger in memory than it looks."""

from __future__ import annotations

from pathlib import Path

import yaml

from emoreg.errors import ConfigError
from emoreg.files import DEEPEST

MISTAGGED = (TypeError, KeyError, IndexError, AttributeError)  # PyYAML, of `!!timestamp x`
MOST_ALIASES = 20  # each may hold all those before it as often as it likes


def check_yaml(path: Path) -> None:
    """Check that a YAML can be read: nothing in it is built, run or repeated.

    Raises:
        ConfigError: It is no YAML, is nested too deeply, repeats itself too often, or has a key
            that is no text; the message names the place.
    """
    depth = aliases = 0
    try:
        for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > DEEPEST or aliases > MOST_ALIASES:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise ConfigError(
                    f"{path}, line {line}: more than {DEEPEST} levels or "
                    f"{MOST_ALIASES} aliases (*name). Write the recipe out."
                )
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError, *MISTAGGED) as e:
        raise ConfigError(f"{path} cannot be read as a recipe: {e}. Wanted plain YAML.") from e
    odd = [key for key in keys if not isinstance(key, str)] if isinstance(keys, dict) else []
    if odd:
        raise ConfigError(f"{path}: the keys {odd!r:.99} are no texts; wanted names of knobs.")
