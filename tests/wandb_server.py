"""A stand-in for wandb's server, as much of it as a run and `wandb sync` ask for."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "k" * 40  # of an account that there is not
PROJECT = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}


class Listener(ThreadingHTTPServer):
    """Takes connections for a server."""

    daemon_threads = True
    server: Server

    def handle_error(self, *_args: Any) -> None:
        """Clients may go away."""


class Server:
    """Keeps what it is sent, and can go away and come back.

    Attributes:
        asked: Name and variables of every GraphQL operation.
        history: Of each run the lines of its history, by their place in the file.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def go(self) -> None:
        """Refuse connections."""
        self._listener.shutdown()
        self._listener.server_close()

    def come_back(self) -> None:
        """Take connections, always at one address."""
        self._listener = Listener(("127.0.0.1", self.port), Handler)
        self._listener.server, self.port = self, self._listener.server_port
        Thread(target=self._listener.serve_forever, daemon=True).start()

    def rows(self, name: str, key: str) -> list[dict[str, Any]]:
        """The lines of a run's history that hold a key, in order."""
        lines = self.history.get(name, {})
        return [lines[i] for i in sorted(lines) if key in lines[i]]

    def answer(self, name: str, given: dict[str, Any]) -> Any:
        """The data of a GraphQL operation."""
        self.asked.append((name, given))
        if name == "Viewer":
            team = {"edges": [{"node": {"name": "me"}}]}
            user = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": team}
            return {"viewer": user}
        if name == "UpsertBucket":
            run = {"id": "1", "name": given["name"], "displayName": "run", "project": PROJECT}
            run |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": run, "inserted": given["name"] not in self.history}}
        if name == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self.known(given["name"])}}
        if name == "ArtifactType":
            return {"project": None}
        if name == "InputFields":  # an older wandb asks what it may say
            fields = [{"name": field} for field in ("clientID", "sequenceClientID", "enableDigest")]
            return {"TypeInfo": {"inputFields": fields}}
        if name == "CreateArtifact":
            made = {"id": given["input"]["artifactCollectionName"], "state": "COMMITTED"}
            made["artifactSequence"] = {"id": "1", "latestArtifact": None}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def known(self, name: str) -> dict[str, Any] | None:
        """How far a run has come."""
        lines = self.history.get(name)
        if lines is None:
            return None
        last = lines[max(lines)]
        tail = json.dumps([json.dumps(last)])
        return {
            "id": "1", "name": name, "summaryMetrics": json.dumps(last), "displayName": "run",
            "historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": tail, "eventsTail": "[]", "config": "{}", "tags": [],
            "wandbConfig": "{\"t\": {}}",
        }  # fmt: skip

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Lines of a run's files."""
        part = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        lines = self.history.setdefault(name, {})
        lines |= {part["offset"] + i: json.loads(line) for i, line in enumerate(part["content"])}


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Listener

    def log_message(self, *_args: Any) -> None:
        """Nothing is said."""

    def body(self) -> bytes:
        found = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(found) if found[:2] == b"\x1f\x8b" else found

    def reply(self, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith("/graphql"):
            sent = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            found = self.server.server.answer(name[1] if name else "", sent.get("variables") or {})
            self.reply({"data": found})
            return
        if stream := re.fullmatch(r"/files/\w+/\w+/(\w+)/file_stream", self.path):
            self.server.server.stream(stream[1], json.loads(body))
        self.reply({})


@contextmanager
def serve() -> Iterator[Server]:
    """A server until the end of the block."""
    server = Server()
    try:
        yield server
    finally:
        server.go()
