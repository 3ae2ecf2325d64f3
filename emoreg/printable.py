"""Text that comes from data, made safe to show: nothing invisible, nothing that turns its lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from emoreg.journal import Run

# Controls, what would turn or break lines, byte order marks, halves of characters, noncharacters.
# Joiners and the marks of Arabic and Hebrew stay: words need them.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2028\u2029\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
RIGHT_TO_LEFT = ("R", "AL", "AN")
AS_THEY_ARE = ("folder", "logs", "drifts")  # numbers by name; names are cleaned where they are read


def cleaned(run: Run) -> Run:
    """The same run, every text of which may be shown, except the names of numbers."""
    texts = {
        f.name: value if f.name in AS_THEY_ARE else shown(value)
        for f in fields(run)
        for value in [getattr(run, f.name)]
    }
    return Run(**texts)


def shown(value: Any) -> Any:
    """The same value with every text in it made visible; tabs and ends of lines stay."""
    if isinstance(value, str):
        return UNSAFE.sub(lambda found: _visible(found[0]), value)
    if isinstance(value, Mapping):
        return {shown(k): shown(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown, value))
    return value


def _visible(character: str) -> str:
    """The picture of a control character, or its number."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"⟨U+{code:04X}⟩"


def short(text: Any, most: int = 48) -> str:
    """A name on one line, cut if it is long; a dash for none."""
    line = "–" if text is None else " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def isolated(text: Any, most: int = 48) -> str:
    """A name inside a sentence, which it cannot turn around if it is written from the right."""
    name = short(text, most)
    turns = any(unicodedata.bidirectional(c) in RIGHT_TO_LEFT for c in name)
    return f"\u2068{name}\u2069" if turns else name


def listed(names: Iterable[Any], last: str = " and ", most: int = 0) -> str:
    """Names as a list in a sentence, each as `isolated` makes it."""
    return joined(map(isolated, names), last, most)


def joined(texts: Iterable[str], last: str = " and ", most: int = 0) -> str:
    """``a``, ``a and b``, ``a, b and c``; with `most`, ``a, b and 7 more``."""
    found = list(texts) or ["–"]
    if most and len(found) > most:
        found = [*found[:most], f"{len(found) - most} more"]
    *head, tail = found
    return f"{', '.join(head)}{last}{tail}" if head else tail
