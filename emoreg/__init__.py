"""emoreg: see and hold a model's emotion readings while it is fine-tuned with TRL."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emoreg.auditing import AuditCallback
    from emoreg.callbacks import DriftCallback
    from emoreg.config import EmoRegConfig
    from emoreg.regularizer import EmotionRegularizer
    from emoreg.rewards import CalmReward, DesperationPenalty, EmotionScreen
    from emoreg.tap import Tap
    from emoreg.terms import EmotionTerms
    from emoreg.vectors import EmotionVectors

# Loaded at first use, so that `import emoreg` stays quick and quiet.
_HOMES = {
    "AuditCallback": "auditing",
    "CalmReward": "rewards",
    "DesperationPenalty": "rewards",
    "DriftCallback": "callbacks",
    "EmoRegConfig": "config",
    "EmotionRegularizer": "regularizer",
    "EmotionScreen": "rewards",
    "EmotionTerms": "terms",
    "EmotionVectors": "vectors",
    "Tap": "tap",
}
__all__ = [
    "AuditCallback",
    "CalmReward",
    "DesperationPenalty",
    "DriftCallback",
    "EmoRegConfig",
    "EmotionRegularizer",
    "EmotionScreen",
    "EmotionTerms",
    "EmotionVectors",
    "Tap",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("emoreg")
    if name in _HOMES:
        return getattr(import_module(f"emoreg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'emoreg' has no attribute {name!r}")
