"""What one knob is: a field with its help text, and checks of its value."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import field
from reprlib import Repr
from typing import Any, TypeGuard

from emoreg.files import parse_json

QUOTES = Repr()
QUOTES.maxlevel, QUOTES.maxdict, QUOTES.maxlist = 3, 8, 8
QUOTES.maxstring = QUOTES.maxother = QUOTES.maxlong = 200


def knob(default: Any, help: str) -> Any:
    """A field with its help text, which is the only description of a knob."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def number(value: Any) -> bool:
    """Whether it is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold, neither infinite nor NaN."""
    return number(value) and abs(value) <= sys.float_info.max


def non_negative(value: Any) -> bool:
    """Whether it is a finite number from 0 on."""
    return finite(value) and value >= 0


def told(value: Any) -> str:
    """A value that was found, in part if it is long; one that holds itself many times is short."""
    try:
        return QUOTES.repr(value)
    except ValueError:  # more digits than Python writes
        return f"a {type(value).__name__} too long to write"


def counts(value: Any) -> bool:
    """Whether it is a whole number from 0 on."""
    return isinstance(value, int) and non_negative(value)


def weights(name: str, value: Any, problems: list[str]) -> dict[str, float]:
    """Emotion -> weight from a mapping, JSON, or nothing; what is wrong is added to `problems`."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            problems.append(f'{name} is not JSON: {told(value)}; wanted like {{"desperate": 0.1}}')
            return {}
    if not isinstance(value, Mapping):
        problems.append(f"{name} must map emotions to weights, got {told(value)}")
        return {}
    bad = {e: w for e, w in value.items() if not non_negative(w)}
    if bad:
        problems.append(f"{name}: weights must be finite numbers >= 0, got {told(bad)}")
    return {str(e): w for e, w in value.items()}
