"""A model and its tokenizer by name, as the commands take them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.errors import ConfigError

DTYPES = {"auto": "auto", "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    model: str  # a folder or a name on the hub
    revision: str | None = None
    dtype: str = "auto"  # one of `DTYPES`
    device: str | None = None  # a GPU if there is one
    chat_template: Path | None = None  # a file, for a tokenizer without one

    def load(self) -> tuple[Any, Any]:
        """The model in evaluation mode, and its tokenizer.

        Raises:
            ConfigError: It cannot be loaded; the message has the reason.
        """
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model, revision=self.revision)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.model, revision=self.revision, dtype=DTYPES[self.dtype]
            )
            if self.chat_template is not None:
                tokenizer.chat_template = self.chat_template.read_text(encoding="utf-8")
            model.to(device)
            return model.eval(), tokenizer
        except (OSError, ValueError, RuntimeError, ImportError, AssertionError) as e:
            reason = str(e).strip().splitlines()[0]
            raise ConfigError(f"{self.model} cannot be loaded: {reason}") from e
