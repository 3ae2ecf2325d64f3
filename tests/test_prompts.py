"""Drift prompts are read whole or refused, and any chat template writes what the user says."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from trainers import PROMPT_FILE, make_tokenizer

from emoreg.errors import BankError
from emoreg.prompts import Prompt, encode_prompts, fingerprint, load_prompts

PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}"
    "<end>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = PARTS.replace("{% for m", "{{ messages[0].content[0].type.upper()[:0] }}{% for m", 1)


def test_the_own_prompts_are_of_both_kinds() -> None:
    kinds = [p.kind for p in load_prompts()]
    assert len(kinds) == 128
    assert set(kinds) == {"neutral", "challenging"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt":', "line 2"),
        ('{"prompt": "a"}\n{"kind": "neutral"}', "line 2.*prompt"),
        ('["a"]\n', "line 1"),
        ('{"prompt": "a"}\n', "has 1 prompts; wanted at least two"),
        ("", "has 0 prompts"),
        ('{"prompt": 3}', "line 1.*content is 3, wanted a text"),
        ('{"prompt": "a"}\n\n{"messages": "a"}', "line 3.*list of objects"),
        ('{"messages": [{"role": "human", "content": "a"}]}', "role 'human' is not one of system"),
        ('{"messages": [{"role": "user"}]}', "user's content is None"),
        ('{"messages": [{"role": "user", "content": " "}]}', "wanted a text"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
            '"content": "b"}]}',
            "last turn is the assistant's, wanted the user's",
        ),
    ],
)
def test_a_prompt_file_that_cannot_serve_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BankError, match=f"(?s)prompts.jsonl.*{message}"):
        load_prompts(path)


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(BankError, match=r"prompts.jsonl cannot be read"):
        load_prompts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BankError, match=r"prompts.jsonl cannot be read"):
        load_prompts(path)


def test_blank_lines_and_every_unicode_character_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"prompt": "a\u2028b"}\r\n\n{"prompt": "c"}\n\n', encoding="utf-8")
    assert [p.messages[0]["content"] for p in load_prompts(path)] == ["a\u2028b", "c"]


def test_the_hash_is_of_what_is_said_of_its_kind_and_of_the_order() -> None:
    prompts = load_prompts(PROMPT_FILE)
    other = [Prompt("challenging", prompts[0].messages), *prompts[1:]]
    hashes = {fingerprint(p) for p in (prompts, prompts[::-1], other, prompts[:3])}
    assert len(hashes) == 4
    assert fingerprint(load_prompts(PROMPT_FILE)) in hashes


@pytest.mark.parametrize("template", [PARTS, STRICT])
def test_templates_that_want_parts_get_parts_and_say_what_the_user_says(template: str) -> None:
    """The first passes over a bare text without a word, the second fails on it."""
    tokenizer, prompts = copy.copy(make_tokenizer()), load_prompts(PROMPT_FILE)
    wanted = encode_prompts(tokenizer, prompts)
    tokenizer.chat_template = template
    assert encode_prompts(tokenizer, prompts) == wanted


def test_a_processors_own_template_serves_and_its_tokenizer_stays_as_it_is() -> None:
    inner, prompts = copy.copy(make_tokenizer()), load_prompts(PROMPT_FILE)
    processor = SimpleNamespace(tokenizer=inner, chat_template=inner.chat_template)
    inner.chat_template = None
    assert encode_prompts(processor, prompts) == encode_prompts(make_tokenizer(), prompts)
    assert inner.chat_template is None


def test_without_a_template_or_with_one_that_swallows_the_prompt_there_is_no_drift() -> None:
    tokenizer, prompts = copy.copy(make_tokenizer()), load_prompts(PROMPT_FILE)
    tokenizer.chat_template = None
    with pytest.raises(BankError, match=r"no chat template, so there is no colon .*tokenizer\.ch"):
        encode_prompts(tokenizer, prompts)
    tokenizer.chat_template = "Hello.<|assistant|>"
    with pytest.raises(BankError, match="leaves out what the user says"):
        encode_prompts(tokenizer, prompts)
