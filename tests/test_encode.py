"""Which tokens of a text count, whatever the chat template does."""

from __future__ import annotations

import pytest
from models import TEMPLATE, tokenizer

from emoreg.bank import Text
from emoreg.encode import encode, encode_prompt, encode_transcript
from emoreg.errors import BankError

TALK = [
    {"role": "user", "content": "hi there"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "and then"},
    {"role": "assistant", "content": "second answer"},
]
# As reasoning templates do: a thought stands before the last answer and is cut from earlier ones.
REWRITING = TEMPLATE.replace(
    "{{ m.content }}",
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
)
OPENED = REWRITING.replace(
    "<|assistant|>\n{% endif", "<|assistant|>\n<think>\n\n</think>\n\n{% endif"
)
TRIMMING = TEMPLATE.replace("{{ m.content }}", "{{ m.content | trim }}")


def read(template: str, talk: list[dict[str, str]]) -> list[str]:
    """What the counted tokens say, in runs."""
    tok = tokenizer(template=template)
    ids, counted, _ = encode_transcript(tok, talk)
    runs: list[list[int]] = []
    for at in counted:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return [tok.decode([ids[at] for at in run]) for run in runs]


@pytest.mark.parametrize("template", [REWRITING, OPENED], ids=["cut off", "opened by the prompt"])
def test_turns_are_found_where_a_template_rewrites_earlier_ones(template: str) -> None:
    assert read(template, TALK) == ["\nfirst answer", "\nsecond answer"]
    plain = read(TEMPLATE, TALK)  # control: else the end of a turn counts as well
    assert plain == ["\nfirst answer<|end|>", "\nsecond answer<|end|>"]


def test_what_a_user_says_is_never_taken_for_the_answer() -> None:
    """As templates do that put the system's words into the user's last turn."""
    late = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.s = m.content %}{% elif m.role == 'user' %}<|user|>"
        "{% if loop.last or messages[loop.index:] | selectattr('role', 'equalto', 'user') | list"
        " | length == 0 %}{{ ns.s }} {% endif %}{{ m.content }}<|assistant|>"
        "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    talk = [{"role": "system", "content": "be brief"}, *TALK]
    assert [t.removeprefix("<|assistant|>") for t in read(late, talk)] == [
        "first answer",
        "second answer",
    ]


def test_the_colon_of_a_turn_is_the_token_before_it() -> None:
    for template in (TEMPLATE, REWRITING, OPENED):
        tok = tokenizer(template=template)
        ids, counted, colons = encode_transcript(tok, TALK)
        assert [tok.decode([ids[at]]) for at in colons] == ["\n", "\n"]
        assert set(colons) < set(counted)


def test_an_answer_is_found_without_the_space_around_it() -> None:
    talk = [{**m, "content": f"  {m['content']} \n"} for m in TALK]
    assert read(TRIMMING, talk) == ["\nfirst answer<|end|>", "\nsecond answer<|end|>"]
    both = TRIMMING.replace("{{ m.content | trim }}", "{{ loop.last }}{{ m.content | trim }}")
    assert read(both, talk) == ["efirst answer", "esecond answer"]


def test_a_turn_that_the_template_leaves_out_is_an_error() -> None:
    silent = TEMPLATE.replace(
        "{{ m.content }}", "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}"
    )
    with pytest.raises(BankError, match="cannot be found again"):
        read(silent, TALK)


def test_without_a_chat_template_conversations_are_refused_and_stories_read() -> None:
    tok = tokenizer()
    tok.chat_template = None
    story = Text("story", "calm", text="abcdef")
    assert encode(tok, [story], 2)[0].counted == [2, 3, 4, 5]
    with pytest.raises(BankError, match="--chat-template FILE"):
        encode(tok, [story, Text("transcript", "calm", messages=tuple(TALK))], 2)
    with pytest.raises(BankError, match="no chat template"):
        encode_prompt(tok, TALK[:1])


@pytest.mark.parametrize("skip", [0, 1])
def test_the_first_token_never_counts_with_or_without_a_bos(skip: int) -> None:
    tok = tokenizer()
    assert encode(tok, [Text("neutral", text="abc")], skip)[0].counted == [1, 2]


def test_the_knob_for_thinking_reaches_the_template() -> None:
    asked = "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}" + TEMPLATE
    tok = tokenizer(template=asked)
    assert tok.decode(encode_prompt(tok, TALK[:1])).startswith("off")


def test_a_text_longer_than_the_context_is_read_up_to_there_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tok = tokenizer()
    texts = [Text("neutral", text="a" * n, id=f"n{n}", where="bank, line 3") for n in (8, 20)]
    assert [e.cut for e in encode(tok, texts, 1, context=20)] == [False, False]
    assert caplog.text == ""
    short, long = encode(tok, texts, 1, context=19)
    assert (short.cut, long.cut) == (False, True)
    assert (len(long.ids), long.counted[-1]) == (19, 18)
    assert "1 of 2 texts are longer than the model's context of 19 tokens" in caplog.text
    assert "n20 (bank, line 3)" in caplog.text
    talk = Text("transcript", "calm", messages=tuple(TALK))
    whole = encode(tok, [talk], 1)[0]
    part = encode(tok, [talk], 1, context=whole.colons[1] + 1)[0]
    assert part.colons == whole.colons
    assert part.counted == [at for at in whole.counted if at <= whole.colons[1]]
    with pytest.raises(BankError, match="none to read before the context ends"):
        encode(tok, [talk], 1, context=4)


# A conversation by its turns, and its tokens: those in brackets count.
SAID = {"u": "user hi", "a": "assistant yes", "b": "assistant no", "s": "system x"}
WRITTEN = {
    "ua": "<|user|>\nhi<|end|><|assistant|>[\nyes<|end|>]",
    "u": "<|user|>\nhi<|end|><|assistant|>[\n]",
    "uau": "<|user|>\nhi<|end|><|assistant|>[\nyes<|end|>]<|user|>\nhi<|end|><|assistant|>[\n]",
    "suaub": "<|system|>\nx<|end|><|user|>\nhi<|end|><|assistant|>[\nyes<|end|>]"
    "<|user|>\nhi<|end|><|assistant|>[\nno<|end|>]",
    "us": "<|user|>\nhi<|end|><|system|>\nx<|end|><|assistant|>[\n]",
    "uab": "<|user|>\nhi<|end|><|assistant|>[\nyes<|end|>]<|assistant|>[\nno<|end|>]",
}
THINKING = TEMPLATE.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif")


def conversation(turns: str) -> list[dict[str, str]]:
    return [dict(zip(("role", "content"), SAID[t].split(), strict=True)) for t in turns]


@pytest.mark.parametrize("template", [TEMPLATE, THINKING], ids=["plain", "thinking"])
@pytest.mark.parametrize(("turns", "written"), WRITTEN.items())
def test_exactly_the_assistants_tokens_and_colons_count(
    turns: str, written: str, template: str
) -> None:
    tok = tokenizer(template=template)
    if template == THINKING and not turns.endswith(("a", "b")):
        head, _, tail = written.rpartition("[\n]")
        written = f"{head}\n<think>[\n]{tail}"  # the turn to come begins behind the opened thought
    ids: list[int] = []
    wanted: list[int] = []
    for i, part in enumerate(written.replace("]", "[").split("[")):
        more = tok(part)["input_ids"]
        wanted += range(len(ids), len(ids) + len(more)) if i % 2 else []
        ids += more
    assert encode_transcript(tok, conversation(turns))[:2] == (ids, wanted)
