"""Which extremes of a logged name wandb's summary keeps beside the last value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

STEP = "train/global_step"
HIGHEST = "max,last"
BOTH = "min,max,last"
SUMMARIES = {  # by names without `emoreg/`; all others keep the last value, as wandb does by itself
    r"(reading|excess)": BOTH,
    r"drift_(structure|agreement)$": "min,last",
    r"drift_(valence|arousal)$": BOTH,
    r"drift_(mean_abs|span|moved|rose|fell)$": HIGHEST,
    r"(top|max|over_margin|penalty|reward)/": HIGHEST,
    r"(keep|loss)$": HIGHEST,
    r"norm": BOTH,
    r"(drift_)?seconds$": "mean,max,last",
}


def summary(name: str) -> str | None:
    """What is kept of a name as wandb has it, ``train/emoreg/…``; None where it is the last value.

    Names of evaluations, ``eval/emoreg/…`` and ``eval/{set}_emoreg/…``, and those of a regularizer
    with a name, ``train/emoreg/{name}/…``, are kept as the plain ones.
    """
    found = re.fullmatch(r"(?:train|eval|test)/(?:.*_)?emoreg/(.+)", name)
    if found is None:
        return None
    bare = found[1]
    for candidate in (bare, bare.partition("/")[2]):
        for beginning, kept in SUMMARIES.items():
            if re.match(beginning, candidate):
                return kept
    return None


def define(run: Any, names: Iterable[str], defined: set[str]) -> None:
    """Tell wandb what to keep of emoreg's names, before the first value that it gets under them.

    Exact names: of several patterns that fit a name wandb takes any, and transformers has defined
    one that fits all.

    Args:
        run: The run.
        names: That are about to be logged.
        defined: Those that it has been told of; the new ones are added.
    """
    for name in names:
        kept = None if name in defined else summary(name)
        if kept is not None:
            escaped = name.replace(".", "\\.")  # a dot would be a path into a nested value
            run.define_metric(escaped, step_metric=STEP, step_sync=True, summary=kept)
            defined.add(name)
