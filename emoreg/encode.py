"""A labelled text as tokens, and which of them count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from emoreg.bank import Text
from emoreg.errors import BankError

log = logging.getLogger(__name__)
# Today's date where a template asks the clock; transformers lets no argument stand in for that.
CLOCK = "strftime_now"
DATE = (
    f"{{%- macro {CLOCK}(format) -%}}"
    "{{- format.replace('%Y', '2024').replace('%m', '07').replace('%d', '26')"
    ".replace('%b', 'Jul').replace('%B', 'July').replace('%A', 'Friday').replace('%a', 'Fri')"
    ".replace('%H', '12').replace('%M', '00').replace('%S', '00') -}}"
    "{%- endmacro -%}"
)
# A thought is another place to read, and today's date another text; other templates ignore both.
TEMPLATE_KNOBS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Encoded:
    """A text, its token ids, and the positions that are read."""

    text: Text
    ids: list[int]
    counted: list[int]  # of a raw text all from the k-th on, else the assistant's and the colons
    colons: list[int]  # the last token before each turn of the assistant
    cut: bool = False  # whether it was longer than the model's context

    def within(self, context: int) -> Encoded:
        """The text up to the end of the context."""
        counted, colons = ([i for i in at if i < context] for at in (self.counted, self.colons))
        return Encoded(self.text, self.ids[:context], counted, colons, True)


def encode(tokenizer: Any, texts: Sequence[Text], skip: int, context: int = 0) -> list[Encoded]:
    """Tokenise texts, shortest first.

    Args:
        tokenizer: With a chat template if any text is a conversation.
        texts: Raw texts are read from token `skip` on; conversations in the chat template.
        skip: At least 1, so that the first token, an attention sink with or without a BOS
            token, never counts.
        context: Most tokens the model can read, 0 for no limit; longer texts are read up to there,
            and a warning says how many those are.

    Raises:
        BankError: No chat template, or a text of which nothing is left to read.
    """
    raw = [t for t in texts if not t.messages]
    ids = tokenizer([t.text for t in raw], verbose=False)["input_ids"] if raw else []
    found = [
        Encoded(text, list(row), list(range(max(skip, 1), len(row))), [])
        for text, row in zip(raw, ids, strict=True)
    ]
    for text in texts:
        if text.messages:
            row, counted, colons = encode_transcript(tokenizer, text.messages)
            found.append(Encoded(text, row, counted, colons))
    if long := [i for i, e in enumerate(found) if context and len(e.ids) > context]:
        for i in long:
            found[i] = found[i].within(context)
        log.warning(
            "%d of %d texts are longer than the model's context of %d tokens and are read up to "
            "there, the first of them %s.",
            len(long),
            len(found),
            context,
            found[long[0]].text.name,
        )
    for item in found:
        _check(item, skip)
    return sorted(found, key=lambda e: len(e.ids))


def _check(item: Encoded, skip: int) -> None:
    text, length = item.text, len(item.ids)
    if not item.counted:
        where = "before the context ends" if item.cut else f"after the first {skip}"
        raise BankError(
            f"{text.kind} {text.name} has {length} tokens, which leaves none to read {where}; "
            "write texts of another length or lower skip_tokens (--skip-tokens)."
        )


def encode_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation up to the assistant's turn; the last one is the colon."""
    ids: list[int] = _render(tokenizer, messages, prompt=True)
    return ids


def _render(tokenizer: Any, messages: Sequence[dict[str, str]], **knobs: Any) -> Any:
    if not getattr(tokenizer, "chat_template", None):
        raise BankError(
            "The tokenizer has no chat template, so conversations cannot be read. Give the one "
            "the model is used with (--chat-template FILE, or tokenizer.chat_template), or fit on "
            "stories alone (--facets stories)."
        )
    prompt = knobs.pop("prompt", False)
    template = tokenizer.chat_template
    if isinstance(template, str) and CLOCK in template:
        knobs["chat_template"] = DATE + template
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=prompt,
            **{"return_dict": False, **TEMPLATE_KNOBS, **knobs},
        )
    except (TemplateError, ValueError, TypeError) as e:
        begins = str(messages[0]["content"])[:48]
        raise BankError(
            f"The chat template refuses the conversation that begins {begins!r}: {e}. Roles should "
            "take turns, from the user on; some templates have no system role."
        ) from e


def encode_transcript(
    tokenizer: Any, messages: Sequence[dict[str, str]]
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a conversation, the positions of the assistant's tokens and colons, the colons.

    A conversation that ends before the assistant's turn gets the generation prompt, whose last
    token is the colon of the turn to come.

    Raises:
        BankError: No chat template, or one in which a turn cannot be found again.
    """
    open_end = messages[-1]["role"] != "assistant"
    whole: list[int] = _render(tokenizer, messages, prompt=open_end)
    spans = _by_prefix(tokenizer, messages, whole)
    if spans is None:
        spans = _by_text(tokenizer, messages, whole)
    if spans is None:
        raise BankError(
            "An assistant's turn cannot be found again in what the chat template makes of the "
            "conversation; leave transcripts out (--facets stories) or change the template."
        )
    colons = [start - 1 for start, _ in spans] + ([len(whole) - 1] if open_end else [])
    turns = {at for start, stop in spans for at in range(start, stop)}
    return whole, sorted(turns | set(colons)), colons


def _by_prefix(
    tokenizer: Any, messages: Sequence[dict[str, str]], whole: list[int]
) -> list[tuple[int, int]] | None:
    """Where turns start and stop, if the template writes them the same when more follow."""
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            turn = _render(tokenizer, messages[:i], prompt=True)
            upto = _render(tokenizer, messages[: i + 1])
            if whole[: len(upto)] != upto:
                return None
            # As far as they agree: a reasoning template opens a thought that past turns lack.
            pairs = zip(turn, whole, strict=False)
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            said = tokenizer.decode(whole[start : len(upto)]).lstrip()
            if start == 0 or not said.startswith(message["content"].strip()):
                return None  # what is new is not the answer alone
            spans.append((start, len(upto)))
    return spans


def _by_text(
    tokenizer: Any, messages: Sequence[dict[str, str]], whole: list[int]
) -> list[tuple[int, int]] | None:
    """Where turns start and stop, by their text: for templates that rewrite earlier turns."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    open_end = messages[-1]["role"] != "assistant"
    text: str = _render(tokenizer, messages, prompt=open_end, tokenize=False)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(coded["input_ids"]) != whole:
        return None
    ends = [stop for _, stop in coded["offset_mapping"]]
    cursor, spans = 0, []
    for message in messages:
        if message["role"] == "system":
            continue  # a template may put it anywhere
        content = message["content"].strip()
        begin = text.find(content, cursor)
        if begin < 0:
            return None
        cursor = begin + len(content)
        if message["role"] == "assistant":
            start = sum(1 for end in ends if end <= begin)
            stop = 1 + sum(1 for end in ends if end < cursor)
            spans.append((start, stop))
    return spans
