"""The texts that are shown are those that read highest and lowest, token by token."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zoo
from models import vector_set
from oracle import ids_and_labels, read_by_hand
from tokenizers import Tokenizer, decoders, models
from trainers import COMPLETIONS, PROMPTS, make_rows, make_tokenizer, make_trainer, make_vectors
from transformers import PreTrainedTokenizerFast

from emoreg.alerts import Alert
from emoreg.examples import PROMPT, TOKENS, Examples, pieces
from emoreg.identity import identity
from emoreg.journal import Run
from emoreg.regularizer import EmotionRegularizer
from emoreg.tokens import count_tokens

BYTES = {f"<0x{b:02X}>": b for b in range(256)}
ALONE = SimpleNamespace(num_processes=1)


# --- tokens as text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Four miles.", "naïve — 平静 🙂🙃 done", "", "a", "🙂", "  two\n\nlines\t", "לילה טוב"]
)
def test_the_pieces_of_a_text_are_one_a_token_and_together_the_text(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == text
    if not text.isascii():  # control: token by token it would not be
        assert "".join(tokenizer.decode([i]) for i in ids) != text


def test_characters_of_several_tokens_are_whole_wherever_the_context_begins() -> None:
    """A tokenizer that falls back to bytes writes one for each: no context may begin inside."""
    raw = Tokenizer(models.BPE(vocab=BYTES, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    for text in ("ok 😀😁😂 ok", "你好\n你好\n世界 ok", "naïve 🙂"):
        ids = [BYTES[f"<0x{b:02X}>"] for b in text.encode()]
        found = pieces(tokenizer, ids)
        assert len(found) == len(ids)
        assert "".join(found) == text


def test_what_stands_between_two_turns_is_shown_without_readings() -> None:
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer("xabcdef")["input_ids"]])
    labels = torch.tensor([[-100, 1, 1, -100, -100, 1, -100]])
    assert ids.shape == labels.shape
    counted = count_tokens(labels, ("completion",))
    examples = Examples(("calm",))
    examples.add(ids, counted, torch.tensor([[1.0], [2.0], [6.0]]))
    (row,) = examples.extremes(1, tokenizer, ALONE)
    assert row["tokens"] == ["a", "b", "c", "d", "e"]
    assert [r for r in row["readings"] if r == r] == [1.0, 2.0, 6.0]
    assert [r != r for r in row["readings"]] == [False, False, True, True, False]
    assert (row["reading"], row["prompt"]) == (3.0, "x")


# --- which ------------------------------------------------------------------------------------


def kept(lengths: list[int], readings: list[float]) -> Examples:
    """One row for each length: two tokens of a prompt, then letters, each read alike in its row."""
    width = 2 + max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    tokenizer = make_tokenizer()
    for row, length in enumerate(lengths):
        letters = tokenizer("abcdefghijklmnopqrstuvwxyz"[row] * length)["input_ids"]
        assert len(letters) == length
        ids[row, : 2 + length] = torch.tensor([2, 3, *letters])
        mask[row, : 2 + length], labels[row, 2 : 2 + length] = 1, 1
    counted = count_tokens(labels, ("completion",), mask)
    values = torch.tensor([x for x, n in zip(readings, lengths, strict=True) for _ in range(n)])
    examples = Examples(("calm", "desperate"))
    examples.add(ids, counted, torch.stack([-values, values], 1))
    return examples


def test_the_highest_and_the_lowest_mean_reading_of_each_emotion_are_shown() -> None:
    examples = kept([3, 1, 2, 5, 4], [0.5, 3.0, -1.0, 0.1, -2.0])
    rows = examples.extremes(2, make_tokenizer(), ALONE)
    found = [(r["emotion"], r["end"], "".join(r["tokens"]), round(r["reading"], 3)) for r in rows]
    assert found == [
        ("calm", "highest", "eeee", 2.0), ("calm", "highest", "cc", 1.0),
        ("calm", "lowest", "b", -3.0), ("calm", "lowest", "aaa", -0.5),
        ("desperate", "highest", "b", 3.0), ("desperate", "highest", "aaa", 0.5),
        ("desperate", "lowest", "eeee", -2.0), ("desperate", "lowest", "cc", -1.0),
    ]  # fmt: skip
    assert rows[0]["readings"] == [2.0] * 4
    only = examples.extremes(1, make_tokenizer(), ALONE, ["desperate"])
    assert [(r["emotion"], r["end"]) for r in only] == [
        ("desperate", "highest"), ("desperate", "lowest"),
    ]  # fmt: skip


def test_with_few_completions_none_is_both_ends_and_after_clearing_there_is_none() -> None:
    examples = kept([2, 3, 1], [1.0, 2.0, 3.0])
    rows = examples.extremes(3, make_tokenizer(), ALONE, ["desperate"])
    found = [(r["end"], "".join(r["tokens"])) for r in rows]
    assert found == [("highest", "c"), ("highest", "bbb"), ("lowest", "aa")]
    examples.clear()
    assert examples.extremes(3, make_tokenizer(), ALONE) == []


def test_long_completions_are_cut_and_say_so() -> None:
    (row,) = kept([TOKENS + 5], [1.0]).extremes(1, make_tokenizer(), ALONE, ["desperate"])
    assert (len(row["tokens"]), len(row["readings"]), row["cut"]) == (TOKENS, TOKENS, 5)


# --- in a run ---------------------------------------------------------------------------------


def texts_of(folder: Path) -> list[dict[str, Any]]:
    return [row for event in Run.load(folder).texts for row in event["rows"]]


def test_a_run_tells_the_texts_of_its_batch_with_every_tokens_reading(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    model = trainer.model
    wanted = {}
    for (ids, labels), text in zip(ids_and_labels(make_rows()), COMPLETIONS, strict=True):
        first = next(i for i, label in enumerate(labels) if label != -100)
        reading = read_by_hand(model, ids, list(range(first, len(ids))))
        own = [v for (_, e, b), v in reading.items() if (e, b) == ("desperate", 1)]
        wanted[text] = torch.stack(own).mean(0).detach()
    order = sorted(wanted, key=lambda text: float(wanted[text].mean()))
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), log_texts=2))
    trainer.train()
    rows = [r for r in texts_of(tmp_path) if r["emotion"] == "desperate"]
    shown = ["".join(r["tokens"]).removesuffix("<end>") for r in rows]
    assert shown == [order[-1], order[-2], order[0], order[1]]
    for row, text in zip(rows, shown, strict=True):
        assert row["readings"] == pytest.approx(wanted[text].tolist(), rel=1e-3, abs=1e-4)
        assert row["prompt"] == PROMPTS[COMPLETIONS.index(text)][-PROMPT:]
        assert row["side"] is None


def test_sides_are_named_and_texts_are_told_ten_times_in_a_run(tmp_path: Path) -> None:
    trainer = zoo.make("DPO", tmp_path, max_steps=14, logging_steps=1)
    vectors = vector_set(card={"model": identity(trainer.model, trainer.processing_class)})
    trainer.add_callback(EmotionRegularizer(trainer, vectors, check_name=False))
    trainer.train()
    steps = [event["step"] for event in Run.load(tmp_path).texts]
    assert len(steps) == 11  # the first line, and each tenth
    assert (steps[0], steps[-1]) == (1, 14)
    assert {row["side"] for row in texts_of(tmp_path)} == {"chosen", "rejected"}


def test_a_trainer_without_a_tokenizer_tells_no_texts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), penalize={"desperate": 0.1}))
    trainer.processing_class = None
    trainer.train()
    assert texts_of(tmp_path) == []
    assert len(Run.load(tmp_path).logs) > 0


def test_a_knob_that_cannot_be_copied_is_told_as_its_name(tmp_path: Path) -> None:
    class Called:
        lock = threading.Lock()

        def __call__(self, _fired: Any) -> None: ...

    trainer = make_trainer(tmp_path)
    alerts = [Alert("reading/calm", 1e9, action=Called())]
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), alerts=alerts))
    trainer.train()
    assert "Called" in str(Run.load(tmp_path).controls[""]["config"]["emoreg_alerts"])


@pytest.mark.parametrize(("key", "quoted"), [
    ("reading/desperate", "highest"), ("reading_completion/desperate", "highest"),
    ("top/desperate", "highest"), ("max/desperate", None), ("reading_colon/desperate", None),
])  # fmt: skip
def test_an_alert_quotes_a_text_only_if_its_value_is_of_one(
    key: str, quoted: str | None, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    regularizer = EmotionRegularizer(trainer, make_vectors(), alerts={key: -99.0}, name="mine")
    trainer.add_callback(regularizer)
    trainer.train()
    (alert,) = Run.load(tmp_path).alerts
    assert alert["name"] == f"emoreg/mine/{key}"  # its own, not that of another regularizer
    assert (alert["text"] and alert["text"]["end"]) == quoted


def test_no_text_leaves_the_data_if_none_may(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), log_texts=0))
    trainer.train()
    assert texts_of(tmp_path) == []
    written = (tmp_path / "emoreg.jsonl").read_text(encoding="utf-8")
    assert not any(text in written for text in (*PROMPTS[:1], COMPLETIONS[2]))
    assert any(json.loads(line)["event"] == "log" for line in written.splitlines())  # control
