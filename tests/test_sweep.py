"""Texts through a model: however they are batched, whatever goes wrong on the way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from models import causal_lm, counting, hooks, tokenizer

from emoreg import extract as module_of_extract
from emoreg import sweep as module
from emoreg.bank import Text
from emoreg.encode import encode
from emoreg.errors import CaptureError
from emoreg.extract import Choices, extract
from emoreg.progress import Progress
from emoreg.sweep import batches, counted_means, sweep, text_means
from emoreg.vectors import EmotionVectors

LENGTHS = (5, 9, 9, 14, 30, 31)


def model(**changes: Any) -> Any:
    return causal_lm(vocab_size=512, max_position_embeddings=256, **changes)


def texts() -> list[Text]:
    return [Text("neutral", text="abcdefghij"[i:] * n, id=f"n{i}") for i, n in enumerate(LENGTHS)]


def encoded() -> Any:
    return encode(tokenizer(), texts(), 2)


def bank() -> list[Text]:
    draw = torch.Generator().manual_seed(0)

    def text(letters: str) -> str:
        at = torch.randint(len(letters), (40,), generator=draw).tolist()
        return "".join(letters[i] for i in at)

    signs = {"calm": "abc", "desperate": "def", "happy": "ghi"}
    stories = [Text("story", e, text=text(s)) for e, s in signs.items() for _ in range(6)]
    return stories + [Text("neutral", text=text("abcdefghi")) for _ in range(6)]


def test_batches_hold_the_asked_tokens_or_one_text() -> None:
    items = encoded()
    lengths = [len(e.ids) for e in items]
    for limit in (1, 100, 10**6):
        groups = list(batches(items, limit))
        assert [e for g in groups for e in g] == items
        assert all(len(g) == 1 or len(g) * len(g[-1].ids) <= limit for g in groups)
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_on_either_side(side: str) -> None:
    tok, lm = tokenizer(), model()
    tok.padding_side = side
    together = dict(text_means_by_id(lm, encode(tok, texts(), 2), 10**6))
    for item in encode(tok, texts(), 2):
        with torch.no_grad():
            states = lm(torch.tensor([item.ids]), output_hidden_states=True).hidden_states
        alone = torch.stack([states[b + 1][0, item.counted].double().mean(0) for b in (0, 1)])
        torch.testing.assert_close(together[item.text.id], alone, atol=1e-5, rtol=0)
    assert tok.padding_side == side


def text_means_by_id(lm: Any, items: Any, batch: int) -> Any:
    return ((e.text.id, mean) for e, mean in text_means(lm, items, [0, 1], batch))


def test_sums_are_float64_even_in_bfloat16() -> None:
    lm = model().bfloat16()
    ((item, mean),) = list(text_means(lm, encoded()[-1:], [0], 10**6))
    with torch.no_grad():
        state = lm(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[1]
    assert mean.dtype == torch.float64
    exact = state[0, item.counted].double().mean(0)
    torch.testing.assert_close(mean[0], exact, atol=1e-12, rtol=0)
    rough = state[0, item.counted].mean(0).double()
    assert (rough - exact).abs().max() > 1e-6  # control: bfloat16 sums would be seen


# --- memory ---------------------------------------------------------------------------------


def starve(monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception) -> list[int]:
    """Let `read` fail above so many padded tokens; returns the sizes that were tried."""
    tried: list[int] = []
    real = module.read

    def read(lm: Any, blocks: Any, **inputs: Any) -> Any:
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > limit:
            raise error
        return real(lm, blocks, **inputs)

    monkeypatch.setattr(module, "read", read)
    return tried


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
]


@pytest.mark.parametrize("error", OUT, ids=["cuda", "cpu", "mps"])
def test_out_of_memory_halves_the_batch_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm, items = model(), encoded()
    calm = {e.text.id: m for e, m in text_means(lm, items, [0], 10**6)}
    tried = starve(monkeypatch, 400, error)
    with caplog.at_level(logging.WARNING):
        found = {e.text.id: m for e, m in text_means(lm, items, [0], 10**6)}
    assert max(tried) > 400  # control: it did run out
    assert "Out of memory: going on with batches of" in caplog.text
    assert list(found) == list(calm)
    for name, mean in found.items():
        torch.testing.assert_close(mean, calm[name], atol=1e-6, rtol=0)


def test_out_of_memory_on_one_text_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, 60, OUT[0])
    with pytest.raises(CaptureError, match=r"one text of \d+ tokens, n\d"):
        list(text_means(model(), encoded(), [0], 10**6))


def test_another_error_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(text_means(model(), encoded(), [0], 10**6))


# --- activations that are not finite ----------------------------------------------------------


def test_nan_names_the_block_and_the_text() -> None:
    lm, items = model(), encoded()
    before = hooks(lm)
    with torch.no_grad():
        lm.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(CaptureError) as error:
        list(text_means(lm, items, [0, 1, 2], 10**6))
    assert "Block 1 gives NaN or infinite activations on neutral n" in str(error.value)
    assert "bfloat16 or float32" in str(error.value)
    assert hooks(lm) == before


# --- going on ---------------------------------------------------------------------------------


def same(one: EmotionVectors, other: EmotionVectors) -> bool:
    pairs = zip(one.facets, other.facets, strict=True)
    return torch.equal(one.mu, other.mu) and all(
        torch.equal(a.directions, b.directions) and torch.equal(a.sigma, b.sigma) for a, b in pairs
    )


def interrupted(lm: Any, file: Path, after: int) -> None:
    """An extraction that is stopped once it has read some batches."""
    calls = 0

    def stop(*_: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, tokenizer(), bank(), None, CHOICES, stop, file)


CHOICES = Choices(skip_tokens=2, batch_tokens=100)


def test_an_interrupted_extraction_goes_on_to_the_same_vectors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm, file = model(), tmp_path / "set" / ".progress"
    whole = extract(lm, tokenizer(), bank(), None, CHOICES)
    interrupted(lm, file, 4)
    assert file.exists()
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING):
        again = extract(lm, tokenizer(), bank(), None, CHOICES, lambda *at: told.append(at), file)
    assert "Going on after" in caplog.text
    assert told[0][0] > 0  # control: what was read is not read again
    assert same(again, whole)


def test_a_batch_that_was_added_in_part_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, file, real, calls = model(), tmp_path / "p", module_of_extract._add, []
    whole = extract(lm, tokenizer(), bank(), None, CHOICES)

    def stopped(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(module_of_extract, "_add", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(lm, tokenizer(), bank(), None, CHOICES, None, file)
    monkeypatch.undo()
    assert same(extract(lm, tokenizer(), bank(), None, CHOICES, None, file), whole)


@pytest.mark.parametrize("change", ["bank", "choices", "blocks", "weights", "broken"])
def test_another_jobs_progress_is_not_continued(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm, file = model(), tmp_path / ".progress"
    interrupted(lm, file, 4)
    texts_, choices, blocks = bank(), CHOICES, None
    if change == "bank":
        texts_ = texts_[1:]
    elif change == "choices":
        choices = Choices(skip_tokens=3, batch_tokens=100)
    elif change == "blocks":
        blocks = [1]
    elif change == "weights":
        with torch.no_grad():
            lm.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    else:
        file.write_bytes(b"not safetensors")
    whole = extract(lm, tokenizer(), texts_, blocks, choices)
    with caplog.at_level(logging.WARNING):
        again = extract(lm, tokenizer(), texts_, blocks, choices, None, file)
    assert "starting from the first" in caplog.text
    assert same(again, whole)


def test_progress_is_written_now_and_then_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "p"
    sums = Progress(file, "job")
    sums.kind("story").add("calm", torch.ones(2, 3, dtype=torch.float64))
    sums.neutral.add(torch.ones(2, 3, dtype=torch.float64))
    sums.done = 7
    sums.save()
    assert not file.exists()  # not yet
    sums.save(at_once=True)
    held = Progress(file, "job")
    assert held.done == 7
    assert torch.equal(held.kind("story").of("calm"), sums.kind("story").of("calm"))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_reduce_sees_every_text_once_and_in_order() -> None:
    items = encoded()
    groups = [g for g, _ in sweep(model(), items, [0], 60, counted_means)]
    assert [e for g in groups for e in g] == items
    assert len(groups) > 2


def test_the_deepest_asked_block_is_the_last_that_runs() -> None:
    lm = model()
    with counting([*lm.model.layers, lm.lm_head]) as calls:
        list(text_means(lm, encoded(), [0, 1], 10**6))
    assert calls == [1, 1, 0, 0]
