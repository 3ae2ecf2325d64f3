"""Whatever happens to wandb, training goes on, says so once, and loses no number of its own."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launch import launch
from trainers import PROMPT_FILE, Do, control, make_trainer, make_vectors
from transformers.integrations.integration_utils import WandbCallback
from wandb_files import Stored, opened
from wandb_server import KEY, Server, serve

from emoreg import wandb_guard
from emoreg.callbacks import DriftCallback
from emoreg.host import Loan
from emoreg.journal import Journal, Run
from emoreg.wandb_guard import Guard

wandb = pytest.importorskip("wandb")
STEPS = 4


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page takes long to draw, and others look at it."""
    monkeypatch.setattr(
        "emoreg.reporting.write_runs", lambda _runs, path: path.write_text("the report")
    )


def prepared(folder: Path, at: int, fault: Any) -> Any:
    """A trainer of a few steps with both callbacks, and with a fault at one of them."""
    trainer = make_trainer(folder, max_steps=STEPS, report_to=["wandb"])
    control(trainer)
    trainer.add_callback(DriftCallback(trainer, make_vectors(), PROMPT_FILE, drift_steps=1))

    def strike(**_kwargs: Any) -> None:
        if trainer.state.global_step == at:
            fault()

    trainer.add_callback(Do("on_step_begin", strike))
    return trainer


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r for r in caplog.records if r.name.startswith("emoreg.") and "wandb" in r.message]
    assert all(r.levelno == logging.WARNING for r in found)
    return [r.message for r in found]


def is_whole(trainer: Any, folder: Path) -> Run:
    """Every scalar is in the trainer's history and in the journal."""
    run, history = Run.load(folder), trainer.state.log_history
    wanted = [{k: v for k, v in row.items() if k not in ("step", "total_flos")} for row in history]
    assert [logs for _, logs in run.logs] == wanted
    assert sum("emoreg/loss" in row for row in wanted) == STEPS
    assert [d["step"] for d in run.drifts] == list(range(STEPS + 1))
    assert run.end["step"] == STEPS
    return run


def given_back(trainer: Any) -> bool:
    hosts = [c for c in trainer.callback_handler.callbacks if isinstance(c, WandbCallback)]
    assert hosts
    return not any(name.startswith("on_") for host in hosts for name in vars(host))


def test_a_service_that_is_killed_costs_one_warning(tmp_path: Path) -> None:
    said = launch("wandb_worker.py", str(tmp_path), minutes=2)
    assert (tmp_path / "found.0.json").exists(), said
    found = json.loads((tmp_path / "found.0.json").read_text())
    assert (found["killed"], found["steps"], found["lent"]) == ([1], 4, [])
    (warning,) = found["warnings"]
    assert "wandb failed at step 3" in warning
    assert "emoreg.jsonl" in warning
    run = Run.load(tmp_path)
    assert [note["text"] for note in run.notes] == [warning]
    history = [row for row in found["history"] if "emoreg/loss" in row]
    assert [row["emoreg/loss"] for row in history] == [
        logs["emoreg/loss"] for _, logs in run.logs if "emoreg/loss" in logs
    ]
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert (len(run.drifts), run.end["step"]) == (5, 4)
    assert found["mistake"] in (
        "TypeError",
        "ValueError",
    )  # a user's own mistake with wandb is still one


def test_a_disk_that_takes_no_file_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as (run, stored):

        def fill() -> None:  # a file in the place of a folder: every write below it fails
            media = Path(run.dir) / "media"
            shutil.rmtree(media)
            media.write_text("")

        trainer = prepared(tmp_path, 2, fill)
        trainer.train()
    (warning,) = warnings(caplog)
    assert "wandb failed at step 3" in warning
    found = is_whole(trainer, tmp_path)
    assert [note["text"] for note in found.notes] == [warning]
    assert given_back(trainer)
    steps = [row["train/global_step"] for row in stored.rows("train/emoreg/loss")]
    assert steps == [1, 2, 3, 4]  # scalars still go there
    assert stored.rows("emoreg/wheel")[-1]["train/global_step"] == 2


def test_a_disk_that_is_full_costs_one_warning_though_wandb_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill() -> None:
        found = SimpleNamespace(total=10**6, used=10**6, free=0)
        monkeypatch.setattr(wandb_guard.shutil, "disk_usage", lambda _path: found)

    with opened(tmp_path):
        trainer = prepared(tmp_path, 2, fill)
        trainer.train()
    (warning,) = warnings(caplog)
    assert "no space left" in warning
    assert [note["text"] for note in is_whole(trainer, tmp_path).notes] == [warning]


def test_files_that_could_not_be_sent_are_sent_at_the_end(tmp_path: Path) -> None:
    with opened(tmp_path) as (run, stored):
        media, away = Path(run.dir) / "media", tmp_path / "away"

        def fill() -> None:
            media.rename(away)
            media.write_text("")

        def free(**_kwargs: Any) -> None:
            media.unlink()
            away.rename(media)

        trainer = prepared(tmp_path, 2, fill)
        trainer.add_callback(Do("on_train_end", free))
        trainer.callback_handler.callbacks.insert(0, trainer.callback_handler.callbacks.pop())
        trainer.train()
    rows = stored.rows("emoreg/drift_table")
    assert [row["train/global_step"] for row in rows] == [0, 1, 2, 4]
    last = json.loads(stored.file(rows[-1], "emoreg/drift_table"))["data"]
    assert {row[0] for row in last} == {0, 1, 2, 3, 4}  # nothing is missing in it
    assert "report.html" in stored.contents("emoreg-report")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and wandb as a process finds it that is told of it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve() as found:
        wandb.teardown()
        for name, value in {"BASE_URL": found.url, "API_KEY": KEY, "MODE": "online"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        yield found
        wandb.teardown()


@pytest.mark.skipif(
    tuple(int(part) for part in wandb.__version__.split(".")[:2]) < (0, 30),
    reason="the stand-in for a server does not say all that an older wandb asks",
)
def test_a_server_that_goes_away_costs_one_warning_and_little_time(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, mode="online") as (run, _):
        trainer = prepared(tmp_path, 2, server.go)
        began = time.monotonic()
        trainer.train()
        took = time.monotonic() - began
        server.come_back()
    (warning,) = warnings(caplog)
    assert "cannot be reached" in warning
    assert [note["text"] for note in is_whole(trainer, tmp_path).notes] == [warning]
    assert took < 15
    assert given_back(trainer)
    rows = server.rows(run.id, "train/emoreg/loss")
    steps = [row["train/global_step"] for row in rows]
    assert steps == [1, 2, 3, 4]  # wandb kept them, and sent them when it could
    assert "emoreg/wheel" in {key for row in server.rows(run.id, "emoreg/wheel") for key in row}
    used = [given["input"] for name, given in server.asked if name == "UseArtifact"]
    assert [given["artifactID"] for given in used] == ["emotion-vectors"]


class FakeRun(SimpleNamespace):
    """A run of wandb without one."""

    settings = SimpleNamespace(base_url="http://127.0.0.1:9", wandb_dir="/")
    offline = True


def guard(folder: Path, **fields: Any) -> Guard:
    journal = Journal(folder)
    journal.begin(0)
    return Guard(FakeRun(**fields), journal, lambda: 3)


def test_a_server_that_is_slow_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_guard, "SLOW", 0.05)
    found, asked = guard(tmp_path), []
    found.run = SimpleNamespace(offline=False, settings=found.run.settings)
    monkeypatch.setattr(found, "reachable", lambda: True)

    def slow() -> None:
        asked.append(1)
        time.sleep(0.1)

    assert found.send(lambda: None)  # control
    assert found.send(slow)
    assert not found.send(slow)
    assert asked == [1]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), EOFError(), RuntimeError("x")])
def test_an_event_of_the_hosts_callback_that_fails_is_passed_over(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_save() -> str:
        if calls.append(1) or len(calls) > 1:
            raise error
        return "fine"

    calls: list[int] = []
    found, loan, host = guard(tmp_path), Loan(), SimpleNamespace(on_save=on_save)
    loan.go_around(host, "on_save", found._safely)
    assert host.on_save() == "fine"
    assert [host.on_save(), host.on_save()] == [None, None]
    assert len(warnings(caplog)) == 1
    loan.give_back()
    with pytest.raises(type(error)):
        host.on_save()


def test_an_interrupt_is_one(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard(tmp_path).attempt(interrupt)


@pytest.mark.parametrize(
    ("url", "proxies", "wanted"),
    [
        ("https://api.wandb.ai", {}, ("api.wandb.ai", 443)),
        ("http://localhost:8080/x", {}, ("localhost", 8080)),
        ("https://api.wandb.ai", {"https_proxy": "http://proxy:3128"}, ("proxy", 3128)),
        ("https://api.wandb.ai", {"https_proxy": "proxy:3128"}, ("proxy", 3128)),
        ("https://api.wandb.ai", {"http_proxy": "http://proxy:3128"}, ("api.wandb.ai", 443)),
        ("https://a.b", {"https_proxy": "http://p:1", "no_proxy": "a.b"}, ("a.b", 443)),
    ],
)
def test_what_is_looked_for_is_what_wandb_connects_to(
    url: str, proxies: dict[str, str], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    assert wandb_guard._address(SimpleNamespace(base_url=url)) == wanted
    if proxies == {}:  # wandb's own settings go before the environment
        own = {f"{url.split(':')[0]}_proxy": "http://own:9"}
        assert wandb_guard._address(SimpleNamespace(base_url=url, **own)) == ("own", 9)


@pytest.mark.slow  # two processes
def test_of_two_processes_one_writes(tmp_path: Path) -> None:
    said = launch("wandb_worker.py", str(tmp_path), processes=2, minutes=5)
    assert (tmp_path / "found.1.json").exists(), said
    found = [json.loads((tmp_path / f"found.{rank}.json").read_text()) for rank in (0, 1)]
    assert [f["processes"] for f in found] == [2, 2]
    assert [f["open"] for f in found] == [True, False]
    assert [f["warnings"] for f in found] == [[], []]
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    stored = Stored(next(folder.glob("*.wandb")))
    stored.wait()
    assert [row["train/global_step"] for row in stored.rows("emoreg/wheel")] == [0, 1, 2, 3, 4]
    run = Run.load(tmp_path)
    assert run.header["args"]["processes"] == 2
    assert sum("emoreg/loss" in logs for _, logs in run.logs) == 4
    assert (len(run.drifts), run.end["step"], run.notes) == (5, 4, [])
    assert len((tmp_path / "emoreg.jsonl").read_text().splitlines()) == len(run.logs) + 5 + 4 + len(
        run.texts
    )


@pytest.mark.parametrize(("step", "sent"), [(3, None), (5, 5), (9, 9)])
def test_a_users_row_is_not_lost_because_emoregs_rows_went_ahead_of_its_step(
    step: int, sent: int | None, tmp_path: Path
) -> None:
    """wandb drops a row of a step that is over, and every row of ours ends one."""
    found, rows = guard(tmp_path), []
    found.run = SimpleNamespace(step=5)
    found._sending(lambda *_args, **kwargs: rows.append(kwargs), {"mine": 1.0}, step=step)
    assert rows == [{"step": sent}]
