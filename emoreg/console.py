"""What a terminal shows of a log line: with many emotions all of it would be pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

from emoreg.host import Loan

# By the part of a name before its emotion; those of an emotion only if it is watched.
SHOWN = re.compile(
    r"loss|keep|seconds|(penalty|reward|reading|excess)/(?P<watched>[^/]+)"
    r"|drift_(mean_abs|structure|rose|fell)|drift/(?P<moved>[^/]+)"
    r"|audit_verdict|audit/(held_out|refit|lean)"
)


def shorten(trainer: Trainer, loan: Loan, watched: Callable[[], set[str]]) -> None:
    """Let the trainer's terminal callbacks show a part of what emoreg logs; others get all.

    Args:
        trainer: The trainer.
        loan: Gives the callbacks' methods back.
        watched: The emotions that are shown.
    """

    def shortened(on_log: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logs = kwargs.get("logs")
        if logs is None:
            return on_log(*args, **kwargs)
        shown = short(logs, watched())
        before = set(shown)
        result = on_log(*args, **{**kwargs, "logs": shown})
        for name in before - set(shown):  # a printer takes values out that later callbacks miss
            logs.pop(name, None)
        return result

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, PrinterCallback | ProgressCallback):
            loan.go_around(callback, "on_log", shortened)


def short(logs: Mapping[str, Any], watched: set[str]) -> dict[str, Any]:
    """The values of a log line that a terminal shows: all that are not emoreg's, and the main."""
    return {name: value for name, value in logs.items() if _shown(name, watched)}


def _shown(name: str, watched: set[str]) -> bool:
    _, ours, rest = name.partition("emoreg/")
    if not ours:
        return True
    for part in (rest, rest.partition("/")[2]):  # a regularizer may have a name
        if found := SHOWN.fullmatch(part):
            emotion = found["watched"] or found["moved"]
            return emotion is None or emotion in watched
    return False
