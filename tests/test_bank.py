"""A bank is read whole, or refused with the file, the line and what was wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from emoreg.bank import Text, choose, fingerprint, load_bank, load_dosage
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


KINDS = "is not one of story, transcript, deflection, neutral, urgency"
PART = "every message needs a role and a content, both strings"


def row(**changes: object) -> str:
    return json.dumps({**STORY, **changes})


WRONG = {
    "not JSON": ("{'kind': 'story'}", "Expecting property name"),
    "cut off": ('{"kind": "story", "la', "Unterminated string"),
    "no mapping": ("[1, 2]", "list; wanted one JSON object a line"),
    "unknown field": (row(emotion="calm"), "emotion"),
    "no kind": (json.dumps({"text": "x"}), "kind"),
    "unknown kind": (row(kind="poem"), f"kind 'poem' {KINDS}"),
    "unknown split": (row(split="test"), "split 'test' is not one of fit, held-out"),
    "no label": (row(label=""), "a story needs a label"),
    "no text": (row(text=""), "wanted either text or messages"),
    "text and messages": (row(messages=TALK), "wanted either text or messages"),
    "messages that are a text": (row(text="", messages="Hi"), PART),
    "a message without a role": (row(text="", messages=[{"content": "Hi"}]), PART),
    "a message that says a number": (
        row(text="", messages=[{"role": "user", "content": 3}]),
        PART,
    ),
    "a text that is a number": (row(text=3), "label, topic, text and id are strings"),
    "an empty text": (row(text="  "), "wanted either text or messages"),
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
    if line in (WRONG[x][0] for x in ("not JSON", "cut off", "no mapping")):
        assert "anted one JSON object a line" in str(error.value)
    else:
        fields = "['id', 'kind', 'label', 'messages', 'split', 'text', 'topic']"
        assert fields in str(error.value)


def test_a_split_holds_its_own_texts_and_neutral_ones_of_one_split_serve_both() -> None:
    fit, held = (Text("story", "calm", split, text="x") for split in ("fit", "held-out"))
    notes = [Text("neutral", split=split, text="x") for split in ("fit", "held-out")]
    bank = [fit, *notes, held]
    assert choose(bank, "story", "fit") == [fit]
    assert choose(bank, "story", "held-out") == [held]
    assert choose(bank, "transcript", "fit") == []
    assert choose(bank, "neutral", "fit") == notes[:1]
    assert choose(bank, "neutral", "held-out") == notes[1:]
    assert choose(bank[:2], "neutral", "held-out") == notes[:1]


def test_a_folder_is_read_file_by_file_and_an_id_stands_once(tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_text(row(id="a") + "\n" + row(id="b") + "\n")
    (tmp_path / "neutral.jsonl").write_text(json.dumps({"kind": "neutral", "text": "x", "id": "c"}))
    (tmp_path / "notes.jsonl").write_text("not a bank's file")
    found = load_bank(tmp_path)
    assert [t.id for t in found] == ["a", "b", "c"]
    assert found[1].where.endswith("stories.jsonl, line 2")
    (tmp_path / "neutral.jsonl").write_text(row(id="b"))
    with pytest.raises(
        BankError, match=r"neutral.jsonl, line 1: id 'b' stands already in .*line 2"
    ):
        load_bank(tmp_path)


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_a_bank_without_a_text_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path if content is None else tmp_path / "bank.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BankError, match="holds no text; wanted a file of JSON lines, or a folder"):
        load_bank(path)
    with pytest.raises(BankError, match="cannot be read"):
        load_bank(tmp_path / "elsewhere.jsonl")


SWEPT = {"id": "d", "rises": "fear", "template": "I took {x} mg.", "values": [1, 2, 3, 4, 20, 3000]}
NOT_SWEPT = {
    "rises": ({"rises": "joy"}, "'joy' is neither fear nor relief"),
    "template": ({"template": "I took some."}, "lacks {x}"),
    "values": ({"values": [3, 2, 1]}, "at least 6 ascending values"),
    "few values": ({"values": [1, 2, 3]}, "at least 6 ascending values"),
    "values in words": ({"values": ["one"] * 6}, "values are numbers"),
    "field": ({"number": 3}, "number"),
}


def test_a_dosage_template_gives_a_message_for_every_value(tmp_path: Path) -> None:
    assert load_dosage(tmp_path) == []
    (tmp_path / "dosage.jsonl").write_text(json.dumps(SWEPT) + "\n")
    (found,) = load_dosage(tmp_path)
    assert found.prompts()[::3] == ["I took 1 mg.", "I took 4 mg."]
    assert found.prompts()[-1] == "I took 3,000 mg."


@pytest.mark.parametrize(("change", "words"), NOT_SWEPT.values(), ids=NOT_SWEPT)
def test_a_malformed_dosage_line_is_named(change: dict, words: str, tmp_path: Path) -> None:
    path = tmp_path / "dosage.jsonl"
    path.write_text(json.dumps(SWEPT) + "\n" + json.dumps({**SWEPT, **change}) + "\n")
    with pytest.raises(BankError) as error:
        load_dosage(tmp_path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert words in str(error.value)


def test_the_hash_of_a_bank_is_that_of_its_texts_and_not_of_their_order() -> None:
    one, two = Text("story", "calm", text="x", where="here"), Text("story", "sad", text="y")
    assert fingerprint([one, two]) == fingerprint([two, replace(one, where="there")])
    assert fingerprint([one]) != fingerprint([replace(one, text="z")])
