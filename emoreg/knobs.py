"""What one knob is: a field with its help text, and checks of its value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any


def knob(default: Any, help: str) -> Any:
    """A field with its help text, which is the only description of a knob."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def number(value: Any) -> bool:
    """Whether it is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def non_negative(value: Any) -> bool:
    """Whether it is a finite number from 0 on."""
    return number(value) and math.isfinite(value) and value >= 0


def counts(value: Any) -> bool:
    """Whether it is a whole number from 0 on."""
    return isinstance(value, int) and non_negative(value)


def weights(name: str, value: Any, problems: list[str]) -> dict[str, float]:
    """Emotion -> weight from a mapping, JSON, or nothing; what is wrong is added to `problems`."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            problems.append(f'{name} is not JSON: {value!r}; write it like {{"desperate": 0.1}}')
            return {}
    if not isinstance(value, Mapping):
        problems.append(f"{name} must map emotions to weights, got {value!r}")
        return {}
    bad = {e: w for e, w in value.items() if not non_negative(w)}
    if bad:
        problems.append(f"{name}: weights must be finite numbers >= 0, got {bad}")
    return {str(e): w for e, w in value.items()}
