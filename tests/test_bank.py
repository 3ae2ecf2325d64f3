"""A bank is read whole, or refused with the file, the line and what was wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emoreg.bank import Text, choose, load_bank
from emoreg.errors import BankError

TALK = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"})
STORY = {"kind": "story", "label": "calm", "text": "The lake lay still."}


def test_every_text_of_a_file_comes_back(tmp_path: Path) -> None:
    texts = [
        Text("story", "calm", "held-out", "lake", text="Sitting\u2028quietly, \x85 平静"),
        Text("transcript", "desperate", messages=TALK),
        Text("neutral", text="Ten grams of salt."),
    ]
    rows = [json.dumps({k: v for k, v in vars(t).items() if v}, ensure_ascii=False) for t in texts]
    path = tmp_path / "bank.jsonl"
    path.write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    assert load_bank(path) == texts


KINDS, PART = "is not one of story, transcript, neutral", "every message needs a role and a content"


def row(**changes: object) -> str:
    return json.dumps({**STORY, **changes})


WRONG = {
    "not JSON": ("{'kind': 'story'}", "Expecting property name"),
    "cut off": ('{"kind": "story", "la', "Unterminated string"),
    "no mapping": ("[1, 2]", "Wanted JSON with"),
    "unknown field": (row(emotion="calm"), "emotion"),
    "no kind": (json.dumps({"text": "x"}), "kind"),
    "unknown kind": (row(kind="poem"), f"kind 'poem' {KINDS}"),
    "unknown split": (row(split="test"), "split 'test' is not one of fit, held-out"),
    "no label": (row(label=""), "a story needs a label"),
    "no text": (row(text=""), "wanted either text or messages"),
    "text and messages": (row(messages=TALK), "wanted either text or messages"),
    "messages that are a text": (row(text="", messages="Hi"), PART),
    "a message without a role": (row(text="", messages=[{"content": "Hi"}]), PART),
    "two at once": (row(kind="poem", split="test"), f"{KINDS}; split 'test'"),
}


@pytest.mark.parametrize(("line", "words"), WRONG.values(), ids=WRONG)
def test_a_malformed_line_is_named_with_its_file_and_number(
    line: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "bank.jsonl"
    path.write_text(json.dumps(STORY) + "\n\n")
    assert len(load_bank(path)) == 1  # control: without the line it is read
    path.write_text(json.dumps(STORY) + "\n\n" + line + "\n")
    with pytest.raises(BankError) as error:
        load_bank(path)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert words in str(error.value)
    assert "['kind', 'label', 'messages', 'split', 'text', 'topic']" in str(error.value)


def test_a_split_holds_its_own_texts_and_every_neutral_one() -> None:
    fit, held = (Text("story", "calm", split, text="x") for split in ("fit", "held-out"))
    notes = [Text("neutral", split=split, text="x") for split in ("fit", "held-out")]
    bank = [fit, *notes, held]
    assert choose(bank, "story", "fit") == [fit]
    assert choose(bank, "story", "held-out") == [held]
    assert choose(bank, "transcript", "fit") == []
    assert choose(bank, "neutral", "fit") == choose(bank, "neutral", "held-out") == notes
