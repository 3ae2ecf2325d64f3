"""The drift prompts: their file, and their tokens in a model's chat template."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoreg.bank import OWN_BANK
from emoreg.encode import encode_prompt
from emoreg.errors import BankError
from emoreg.files import parse_json

OWN_PROMPTS = OWN_BANK / "drift.jsonl"
log = logging.getLogger(__name__)
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Prompt:
    """What a user said, up to the assistant's turn."""

    kind: str  # neutral or challenging
    messages: tuple[dict[str, Any], ...]


def load_prompts(path: str | Path | None = None) -> list[Prompt]:
    """Read drift prompts: JSON lines with ``kind`` and either ``prompt`` or ``messages``.

    Args:
        path: A file; the bank's 128 prompts if None.

    Raises:
        BankError: No such file, a malformed line, or fewer than two prompts; the message names file
            and line.
    """
    path = Path(path or OWN_PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise BankError(f"{path} cannot be read ({e}); wanted JSON lines of prompts.") from e
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            kind = row.get("kind", "neutral")
            if not isinstance(kind, str):
                raise ValueError(f"kind is {kind!r:.99}, wanted a text")
            prompts.append(Prompt(kind, _checked(messages)))
        except (ValueError, KeyError, AttributeError) as e:
            raise BankError(
                f"{path}, line {number}: {e!r}. "
                'Wanted JSON like {"kind": "neutral", "prompt": "..."}.'
            ) from e
    if 2 <= len(prompts) != len(set(map(repr, prompts))):
        different = len(set(map(repr, prompts)))
        log.warning(
            "%s has %d prompts, %d of them different: intervals take them for as many.",
            path,
            len(prompts),
            different,
        )
    if len(prompts) < 2:
        raise BankError(f"{path} has {len(prompts)} prompts; wanted at least two, for an interval.")
    return prompts


def _checked(messages: Any) -> tuple[dict[str, Any], ...]:
    """The messages, if they are a conversation in which it is the assistant's turn.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError("messages are a list of objects with role and content")
    for m in messages:
        if m.get("role") not in ROLES:
            raise ValueError(f"role {m.get('role')!r} is not one of {', '.join(ROLES)}")
        if not isinstance(m.get("content"), str) or not m["content"].strip():
            raise ValueError(f"the {m['role']}'s content is {m.get('content')!r}, wanted a text")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the last turn is the {messages[-1]['role']}'s, wanted the user's")
    return tuple(dict(m) for m in messages)


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """A short hash of the prompts in their order."""
    rows = [[p.kind, *p.messages] for p in prompts]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt up to the assistant's first token; the last one is the colon.

    Args:
        tokenizer: A tokenizer or processor with a chat template.
        prompts: In any order.

    Raises:
        BankError: There is no chat template, it refuses a prompt, or it leaves the text out.
    """
    tokenizer = with_template(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise BankError(
            "The tokenizer has no chat template, so there is no colon to read drift at. Set "
            "tokenizer.chat_template to the one the model is used with (a command: "
            "--chat-template FILE)."
        )
    plain = [list(p.messages) for p in prompts]
    try:
        ids = [encode_prompt(tokenizer, messages) for messages in plain]
        if _told_apart(ids, prompts):
            return ids
        refusal = None
    except BankError as e:
        refusal = e
    try:
        ids = [encode_prompt(tokenizer, [_in_parts(m) for m in said]) for said in plain]
        if _told_apart(ids, prompts):
            return ids
    except BankError as e:
        refusal = refusal or e
    raise refusal or BankError(
        "The chat template makes the same tokens of different prompts, so it leaves out what the "
        "user says. Use a template that writes messages whose content is a text."
    )


def _told_apart(ids: Sequence[list[int]], prompts: Sequence[Prompt]) -> bool:
    """Whether unlike prompts have unlike tokens."""
    unlike = {" ".join(" ".join(m["content"] for m in p.messages).split()) for p in prompts}
    return len(set(map(tuple, ids))) >= len(unlike)


def with_template(tokenizer: Any) -> Any:
    """The tokenizer of a processor, with the processor's chat template if it has none itself."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    if inner is not tokenizer and template and not getattr(inner, "chat_template", None):
        inner = copy.copy(inner)  # the user's stays as it is
        inner.chat_template = template
    return inner


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The same message as templates of multimodal models want it, which skip a bare text."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
