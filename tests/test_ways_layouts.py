"""However rows become batches, the terms are those of the texts, tokenized here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from datasets import Dataset
from models import TEMPLATE, tokenizer
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from ways import Row, Step, apart, by_hand, cells, columns_of, llama, places, step, trained

Spoken = tuple[str, bool]  # a piece of a text, and whether it is learned
MARKED = TEMPLATE.replace(
    "{{ m.content }}<|end|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}",
)
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("clock", "map")]
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + TEMPLATE.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}",
)
ANSWER_FORM = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>", "close_pattern": r"</tool_call>\s*", "repeats": True,
            "content": "json", "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}  # fmt: skip
ASK = "<|user|>\n{}<|end|><|assistant|>\n"
ENDED = [text + "<|end|>" for text in zoo.GOOD], [text + "<|end|>" for text in zoo.BAD]


def row_of(spoken: Sequence[Spoken]) -> Row:
    """A text as a row that counts at what is learned and just before it."""
    ids, learned = [], []
    for text, own in spoken:
        found = tokenizer()(text)["input_ids"]
        ids += found
        learned += [own] * len(found)
    return Row(torch.tensor(ids), places(learned))


def answered(found: Step, ask: str = "{}") -> list[Row]:
    """The rows of a column's data, in any order: each prompt with its answers, or its samples."""
    column = type(found.trainer).__name__.removesuffix("Trainer")
    asked = [ask.format(text) for text in zoo.PROMPTS]
    if column == "GRPO":
        assert set(prompts(found)) <= set(asked)
        samples = (
            ids[mask.bool()]
            for batch in found.batches
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        )
        return [sampled(text, ids) for text, ids in zip(prompts(found), samples, strict=True)]
    sides = ENDED if column == "DPO" else ENDED[:1]
    return [
        row_of([(text, False), (answer, True)])
        for side in sides
        for text, answer in zip(asked, side, strict=True)
    ]


def prompts(found: Step) -> list[str]:
    """The text of every prompt of a rollout."""
    return [
        tokenizer().decode(ids[mask.bool()])
        for batch in found.batches
        for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]


def sampled(prompt: str, ids: Tensor) -> Row:
    """A prompt and what was sampled after it."""
    asked = row_of([(prompt, False)])
    learned = [False] * len(asked.ids) + [True] * len(ids)
    return Row(torch.cat([asked.ids, ids]), places(learned))


def left_padded(collate: Any) -> Any:
    """The same collator, with the padding of every row moved to its left."""

    def collated(rows: Any) -> dict[str, Tensor]:
        batch = collate(rows)
        shift = (batch["attention_mask"] == 0).sum(1)
        return {
            k: torch.stack([row.roll(int(s)) for row, s in zip(v, shift, strict=True)])
            for k, v in batch.items()
        }

    return collated


def pads(found: Step, at: int) -> int:
    """How many rows have padding at one end."""
    key = "attention_mask"
    if "prompt_mask" in found.batches[0]:
        key = "prompt_mask" if at == 0 else "completion_mask"
    return sum(int((batch[key][:, at] == 0).sum()) for batch in found.batches)


# --- padding --------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), cells(["padded right", "padded left"]))
def test_padding_on_either_side_changes_nothing(row: str, column: str, tmp_path: Path) -> None:
    more = {}
    if row == "padded left" and column != "GRPO":  # GRPO pads prompts left, completions right
        kind = {"SFT": DataCollatorForLanguageModeling, "DPO": DataCollatorForPreference}[column]
        more = {"data_collator": left_padded(kind(pad_token_id=0))}
    found = step(trained(column, tmp_path, more=more))
    assert apart(found.grads, by_hand(found, answered(found))) < 1e-5
    assert pads(found, 0 if row == "padded left" else -1) >= 3  # control: it is padded there
    if column != "GRPO":
        assert pads(found, -1 if row == "padded left" else 0) == 0


LAYOUTS: dict[str, dict[str, Any]] = {
    "padding-free": {"padding_free": True, "max_length": None},
    "packing bfd": {"packing": True, "max_length": 96},
    "packing wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 50},
}


@pytest.mark.parametrize("scope", ["completion", "prompt"])
@pytest.mark.parametrize("anchor", ["neutral", "base"])
@pytest.mark.parametrize(("row", "column"), cells(["padding-free", "packing bfd"], ["SFT"]))
def test_sequences_that_share_a_row_stay_apart(
    row: str, column: str, anchor: str, scope: str, tmp_path: Path
) -> None:
    asked = {"scope": ["prompt"]} if scope == "prompt" else {}
    found = step(trained(column, tmp_path, **LAYOUTS[row]), anchor=anchor, **asked)
    rows = answered(found)
    if asked:  # but for the first token of each
        rows = [Row(r.ids, list(range(1, r.at[0] + 1))) for r in rows]
    assert apart(found.grads, by_hand(found, rows, anchor)) < 1e-5
    joined = [batch["input_ids"] for batch in found.batches]
    assert sum(len(ids) for ids in joined) < len(rows)  # control: rows were joined
    assert sum(ids.numel() for ids in joined) == sum(len(r.ids) for r in rows)
    assert "attention_mask" not in found.batches[0]
    learned = [((batch["labels"][0] != -100) != bool(asked)).tolist() for batch in found.batches]
    one = [Row(ids[0], places(own)) for ids, own in zip(joined, learned, strict=True)]
    assert apart(found.grads, by_hand(found, one, anchor)) > 1e-2  # control: apart, not as one


@pytest.mark.parametrize(("row", "column"), cells(["packing wrapped"], ["SFT"]))
def test_wrapped_rows_are_read_as_the_model_sees_them(
    row: str, column: str, tmp_path: Path
) -> None:
    """A wrapped row may begin inside a text and hold several, which attend to each other."""
    found = step(trained(column, tmp_path, **LAYOUTS[row]))
    both = chain(*zip(zoo.PROMPTS, ENDED[0], strict=True))
    pieces = [tokenizer()(text)["input_ids"] for text in both]
    ids = torch.tensor(list(chain(*pieces)))
    learned = [i % 2 == 1 for i, piece in enumerate(pieces) for _ in piece]
    cuts = range(0, len(ids), 50)
    rows = [Row(ids[i : i + 50], places(learned[i : i + 50])) for i in cuts]
    taken = sum(len(batch["input_ids"]) for batch in found.batches)
    assert apart(found.grads, by_hand(found, rows[:taken])) < 1e-5
    assert taken == len(rows)
    assert apart(found.grads, by_hand(found, answered(found))) > 1e-2  # control: they are cut


# --- what is learned ------------------------------------------------------------------------


@pytest.mark.parametrize("column", columns_of("completion-only loss", ["SFT"]))
def test_the_completion_is_what_the_host_learns(column: str, tmp_path: Path) -> None:
    whole = [
        row_of([(prompt + answer, True)])
        for prompt, answer in zip(zoo.PROMPTS, ENDED[0], strict=True)
    ]
    for only in (True, False):
        found = step(trained(column, tmp_path, completion_only_loss=only))
        assert apart(found.grads, by_hand(found, answered(found) if only else whole)) < 1e-5
        other = whole if only else answered(found)
        assert apart(found.grads, by_hand(found, other)) > 1e-2  # control: it makes a difference


def turns() -> list[list[Spoken]]:
    """Conversations of two turns each, of which the answers are learned."""
    found = []
    for i in range(8):
        spoken: list[Spoken] = []
        for asked, told in ((i, i), ((i + 3) % 8, (i + 5) % 8)):
            spoken += [(f"<|user|>\n{zoo.PROMPTS[asked]}<|end|><|assistant|>\n", False)]
            spoken += [(zoo.GOOD[told] + "<|end|>", True)]
        found.append(spoken)
    return found


@pytest.mark.parametrize("column", columns_of("assistant-only loss", ["SFT"]))
def test_every_turn_of_the_assistant_counts_with_the_token_before_it(
    column: str, tmp_path: Path
) -> None:
    asked, told = zoo.PROMPTS, zoo.GOOD
    chats = zoo.chats(
        asked, told, [asked[(i + 3) % 8] for i in range(8)], [told[(i + 5) % 8] for i in range(8)]
    )
    rows, tok = Dataset.from_dict({"messages": chats}), tokenizer(template=MARKED)
    found = step(trained(column, tmp_path, rows=rows, tok=tok, assistant_only_loss=True))
    assert apart(found.grads, by_hand(found, [row_of(turn) for turn in turns()])) < 1e-5
    every = [row_of([(text, True) for text, _ in turn]) for turn in turns()]
    assert apart(found.grads, by_hand(found, every)) > 1e-2  # control: not all is learned


def conversational(column: str) -> dict[str, Any]:
    """The rows of a column as conversations."""
    columns: dict[str, Any] = {"prompt": zoo.chats(zoo.PROMPTS)}
    sides = {"SFT": {"completion": zoo.GOOD}, "DPO": {"chosen": zoo.GOOD, "rejected": zoo.BAD}}
    for name, texts in sides.get(column, {}).items():
        columns[name] = [[{"role": "assistant", "content": text}] for text in texts]
    return columns


@pytest.mark.parametrize("column", columns_of("conversational data"))
def test_conversations_are_read_through_the_chat_template(column: str, tmp_path: Path) -> None:
    rows = Dataset.from_dict(conversational(column))
    found = step(trained(column, tmp_path, rows=rows))
    assert apart(found.grads, by_hand(found, answered(found, ASK))) < 1e-5
    if column != "GRPO":
        assert apart(found.grads, by_hand(found, answered(found))) > 1e-2  # control: the template


# --- tools ----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", columns_of("tools", ["SFT", "DPO"]))
def test_tools_of_a_row_are_part_of_its_prompt(column: str, tmp_path: Path) -> None:
    columns = {**conversational(column), "tools": [json.dumps(TOOLS)] * 8}
    tok = tokenizer(template=WITH_TOOLS)
    found = step(trained(column, tmp_path, rows=Dataset.from_dict(columns), tok=tok))
    assert apart(found.grads, by_hand(found, answered(found, "[clock][map]" + ASK))) < 1e-5
    assert apart(found.grads, by_hand(found, answered(found, ASK))) > 1e-2  # control: they count


def clock(place: str) -> str:
    """The time.

    Args:
        place: Where.
    """
    return f"It is nine in {place}."


CALL = '<tool_call>{"name": "clock", "arguments": {"place": "Rome"}}</tool_call><|end|>'
TOLD = "<|tool|>\nIt is nine in Rome.<|end|><|assistant|>\n"


def scripted(trainer: Any) -> None:
    """Let every sample ask the clock and then answer, in words of our own."""

    def generate(asked: Any, *_args: Any, **_kwargs: Any) -> Any:
        texts = [tokenizer().decode(ids) for ids in asked]
        found = [CALL if "Rome" not in text else answer(text) for text in texts]
        return [tokenizer()(text)["input_ids"] for text in found], None

    trainer._generate_single_turn = generate


def answer(text: str) -> str:
    """The last answer, by the prompt that the text begins with."""
    return ENDED[0][next(i for i, prompt in enumerate(zoo.PROMPTS) if prompt in text)]


@pytest.mark.parametrize("column", columns_of("tools", ["GRPO"]))
def test_what_a_tool_puts_out_is_no_completion(column: str, tmp_path: Path) -> None:
    tok = tokenizer(template=WITH_TOOLS)
    tok.response_template = ANSWER_FORM
    trainer = trained(
        column, tmp_path, llama(max_position_embeddings=512), tok=tok, more={"tools": [clock]},
        rows=Dataset.from_dict(conversational(column)), max_completion_length=256,
    )  # fmt: skip
    scripted(trainer)
    found = step(trainer)

    def rows(tool_is_own: bool) -> list[Row]:
        return [
            row_of([(text, False), (CALL, True), (TOLD, tool_is_own), (answer(text), True)])
            for text in prompts(found)
        ]

    assert all(text.startswith("[clock]<|user|>") for text in prompts(found))
    assert apart(found.grads, by_hand(found, rows(False))) < 1e-5
    assert apart(found.grads, by_hand(found, rows(True))) > 1e-2  # control: it was put out
