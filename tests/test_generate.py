"""A model writes what is missing; what breaks a rule is not kept; nothing is written twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.bank import load_bank
from emoreg.catalogue import CATALOGUE
from emoreg.cli import main
from emoreg.errors import ConfigError, GenerationError
from emoreg.generate import Outcome, Task, generate, load_topics, tasks
from emoreg.tiny import MODEL
from emoreg.writers import EndpointWriter, LocalWriter

TOPICS = [("a borrowed ladder", "fit"), ("the last tram", "held-out")]
SYLLABLES = "ba ce di fo gu ha ke li mo nu pa re si to vu wa ze".split()  # noqa: SIM905


def prose(seed: int, words: int = 80) -> str:
    rng = Random(seed)
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(words))


def good(_prompt: str, seed: int) -> str:
    return prose(seed)


def wanted(*emotions: str, number: int = 1) -> list[Task]:
    return list(tasks(emotions or ("desperate", "calm"), TOPICS, number))


def test_every_emotion_gets_every_topic_with_its_split(tmp_path: Path) -> None:
    out = tmp_path / "new" / "stories.jsonl"
    assert generate(good, wanted(number=2), out) == Outcome(kept=8)
    texts = load_bank(out)
    assert len({(t.label, t.topic, t.id) for t in texts}) == 8
    assert {(t.topic, t.split) for t in texts} == set(TOPICS)
    assert {t.kind for t in texts} == {"story"}


def test_the_prompt_names_topic_emotion_person_and_what_is_banned() -> None:
    asked = [t.prompt() for t in wanted(number=8)]
    for task, prompt in zip(wanted(number=8), asked, strict=True):
        assert task.topic in prompt
        assert f"is {task.emotion}." in prompt
        for word in CATALOGUE.entry(task.emotion).banned:
            assert word.rstrip("*") in prompt
    assert {p.split("Tell it in the ")[1].split()[0] for p in asked} == {"first", "third"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (prose(1) + " desperately", "names an emotion: desperately"),
        (prose(1, 20), "20 words; wanted 60 to 120"),
        (prose(1, 200), "200 words; wanted 60 to 120"),
        ("", "no text"),
    ],
)
def test_a_story_that_breaks_a_rule_is_written_again_and_then_given_up(
    text: str, reason: str, tmp_path: Path
) -> None:
    out, seeds, told = tmp_path / "s.jsonl", [], []

    def stubborn(_prompt: str, seed: int) -> str:
        seeds.append(seed)
        return text

    found = generate(
        stubborn, wanted("desperate")[:1], out, attempts=3, progress=lambda *a: told.append(a)
    )
    assert found == Outcome(given_up=1)
    assert len(set(seeds)) == 3
    assert told == [(1, 1, reason)]
    assert out.read_text() == ""

    def learning(_prompt: str, seed: int) -> str:
        return prose(seed) if len(seeds) == 5 or seeds.append(seed) else text

    assert generate(learning, wanted("desperate")[:1], out, attempts=3) == Outcome(kept=1)


def test_a_near_duplicate_is_not_kept(tmp_path: Path) -> None:
    found = generate(lambda _p, _s: prose(3), wanted(), tmp_path / "s.jsonl", attempts=2)
    assert found == Outcome(kept=1, given_up=3)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out, whole, calls = tmp_path / "s.jsonl", tmp_path / "whole.jsonl", []

    def failing(prompt: str, seed: int) -> str:
        calls.append(prompt)
        if len(calls) == 3:
            raise GenerationError("the endpoint is gone")
        return good(prompt, seed)

    with pytest.raises(GenerationError):
        generate(failing, wanted(), out)
    assert len(load_bank(out)) == 2
    assert generate(good, wanted(), out) == Outcome(kept=2, already=2)
    generate(good, wanted(), whole)
    assert out.read_text() == whole.read_text()
    assert generate(good, wanted(), out) == Outcome(already=4)


@pytest.mark.parametrize("cut", [1, 30])
def test_a_last_line_that_was_cut_off_is_written_again(cut: int, tmp_path: Path) -> None:
    out, whole = tmp_path / "s.jsonl", tmp_path / "whole.jsonl"
    for path in (out, whole):
        generate(good, wanted(), path)
    out.write_text(out.read_text()[:-cut])
    generate(good, wanted(), out)
    assert out.read_text() == whole.read_text()


def test_topics_come_from_a_file_or_from_the_bank(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("one\n\ntwo\none\nthree\n four \n")
    splits = [("one", "fit"), ("two", "fit"), ("three", "held-out"), ("four", "fit")]
    assert load_topics(path, []) == splits
    own = load_topics(None, load_bank())
    assert len(own) == 48
    assert sum(split == "held-out" for _, split in own) == 16
    path.write_text("\n")
    with pytest.raises(ConfigError, match="No topics"):
        load_topics(path, [])


# --- an endpoint on loopback --------------------------------------------------------------------


class Stub(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; `answers` decides how."""

    asked: list[dict[str, Any]]
    answers: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        status, answer = self.answers(body, len(self.asked))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture(name="stub")
def _stub() -> Iterator[tuple[str, type[Stub]]]:
    kind = type("One", (Stub,), {"asked": [], "answers": None})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", kind
    server.shutdown()
    server.server_close()


def test_an_endpoint_writes_all_171_emotions(
    stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = stub
    kind.answers = staticmethod(lambda body, _n: (200, completion(prose(body["seed"]))))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    (tmp_path / "topics.txt").write_text("a borrowed ladder\n")
    out = tmp_path / "all.jsonl"
    flags = ["--model", "writer-1", "--endpoint", url, "--out", str(out)]
    main(["generate", *flags, "--topics", str(tmp_path / "topics.txt")])
    assert {t.label for t in load_bank(out)} == set(CATALOGUE.words)
    first = kind.asked[0]
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer sk-test")
    assert first["model"] == "writer-1"
    assert first["messages"][0]["role"] == "user"


def test_a_busy_endpoint_is_asked_again(stub: Any) -> None:
    url, kind = stub
    kind.answers = staticmethod(
        lambda _b, n: (429, {"error": "busy"}) if n < 3 else (200, completion("done"))
    )
    assert EndpointWriter(url, "m", patience=0.01)("hello", 1) == "done"
    assert len(kind.asked) == 3


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (401, {"error": "no key"}, "gave no answer: .*401"),
        (503, {"error": "down"}, "gave no answer: .*503"),
        (200, {"choices": []}, "something else than a chat completion"),
        (200, b"<html>", "something else than a chat completion"),
        (200, [1], "something else than a chat completion"),
    ],
)
def test_an_endpoint_that_fails_is_an_error(
    stub: Any, status: int, answer: Any, words: str
) -> None:
    url, kind = stub
    kind.answers = staticmethod(lambda *_: (status, answer))
    with pytest.raises(GenerationError, match=words):
        EndpointWriter(url, "m", patience=0.01)("hello", 1)


def test_an_endpoint_that_is_not_there_is_an_error(capsys: Any, tmp_path: Path) -> None:
    flags = ["--model", "m", "--endpoint", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as stop:
        main(["generate", *flags, "--emotions", "calm"])
    assert stop.value.code == 1
    assert "http://127.0.0.1:9/v1 gave no answer" in capsys.readouterr().err


# --- a local model --------------------------------------------------------------------------------


def test_the_embedded_model_writes_the_same_for_the_same_seed_and_leaves_no_trace() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL).train()
    write = LocalWriter(model, AutoTokenizer.from_pretrained(MODEL))
    state = torch.random.get_rng_state()
    one, two, other = write("Tell a story.", 1), write("Tell a story.", 1), write("Tell it.", 2)
    assert one == two != other
    assert one.strip()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


def test_a_model_that_cannot_write_keeps_nothing_and_says_so(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("a borrowed ladder\n")
    flags = ["--model", str(MODEL), "--out", str(tmp_path / "x"), "--emotions", "calm"]
    with pytest.raises(SystemExit):
        main(["generate", *flags, "--topics", str(tmp_path / "topics.txt"), "--attempts", "1"])
    assert "No story kept the rules" in capsys.readouterr().err
