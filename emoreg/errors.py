"""What can go wrong, each also a builtin so that callers may catch either."""

from __future__ import annotations


class EmoregError(Exception):
    """Base of every error raised by emoreg."""


class ConfigError(EmoregError, ValueError):
    """Knobs that are out of range or contradict each other."""


class BankError(EmoregError, ValueError):
    """A malformed line, or texts from which no direction can be fitted."""


class VectorFileError(EmoregError, ValueError):
    """A vector set that is truncated, foreign, or holds values that are not directions."""


class VectorMismatchError(EmoregError, ValueError):
    """A vector set that was made for another model."""


class UnknownEmotionError(EmoregError, LookupError):
    """An emotion, facet or block that the vector set does not hold."""


class BlocksNotFoundError(EmoregError, LookupError):
    """A model whose decoder blocks cannot be found."""


class TrainerError(EmoregError, TypeError):
    """An object that is not a trainer, or a trainer that the control cannot reach."""


class CaptureError(EmoregError, RuntimeError):
    """A training step without a usable reading: nothing captured, no gradient, nothing counted."""


class GenerationError(EmoregError, RuntimeError):
    """A writer that gives no text: an endpoint that fails, or nothing that keeps the rules."""


class ReportError(EmoregError, ValueError):
    """A run whose files lack what the report needs."""


class MissingExtraError(EmoregError, ModuleNotFoundError):
    """A back-end was asked for and is not installed."""
