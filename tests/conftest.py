"""Offline and quiet before anything is imported; the network is out of bounds."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from works_with import Cell, marked, merged, read, versions, write

pytest_plugins = ("pytester",)
PAGES = ("test_boards", "test_compare", "test_demo", "test_readme", "test_report", "test_wandb")
HOSTS = ("transformers", "trl", "peft", "accelerate")

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
)


def is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine: a path, or a loopback address."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Any:
    """A test that tries to leave this machine fails; `Failed` passes every `except Exception`."""

    def guarded(original: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            address = args[at]
            if not is_local(address if at else (address,)):
                pytest.fail(f"A test tried to reach {address!r}; tests run without a network.")
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), 1))
        patch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, 0))
        yield


class Cells:
    """What the collected tests mark in the works-with tables, and how they went."""

    def __init__(self, config: pytest.Config) -> None:
        self.file: Path | None = config.getoption("--cells")
        roots = {config.rootpath, *(config.rootpath / p for p in config.getini("testpaths"))}
        given = {config.invocation_params.dir / arg for arg in config.args}
        narrowed = any(config.getoption(name, None) for name in ("lf", "ignore", "ignore_glob"))
        self.asked = bool(given & roots) and not narrowed  # for the whole suite
        self.whole = False  # whether no test is missing from the marks
        self.marks: dict[str, list[tuple[Cell, str]]] = {}  # node id -> cells and what passing says
        self.phases: dict[str, list[str]] = {}  # node id -> outcomes of setup, call and teardown

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.asked &= report.passed

    @pytest.hookimpl(tryfirst=True)  # before any test is deselected
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            try:
                cells = [marked(*m.args, **m.kwargs) for m in item.iter_markers("cell")]
            except (TypeError, ValueError) as error:
                raise pytest.UsageError(f"{item.nodeid}: pytest.mark.cell: {error}") from error
            if cells:
                self.marks[item.nodeid] = cells
        self.whole = self.asked

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self.marks:
            outcome = "failed" if hasattr(report, "wasxfail") else report.outcome
            self.phases.setdefault(report.nodeid, []).append(outcome)

    def pytest_sessionfinish(self) -> None:
        if self.file is not None:
            marks = set(self.words()) if self.whole else None
            write(self.file, merged(read(self.file), self.outcomes(), versions(), marks))

    def words(self) -> dict[Cell, set[str]]:
        """Every marked cell, and what its tests say of it if they pass."""
        found: dict[Cell, set[str]] = {}
        for cells in self.marks.values():
            for cell, word in cells:
                found.setdefault(cell, set()).add(word)
        return found

    def outcomes(self) -> dict[Cell, str | None]:
        """The cells that this run decides: None if one failed, no entry if one did not run."""
        found: dict[Cell, str | None] = {}
        for cell, words in self.words().items():
            tests = [t for t, cells in self.marks.items() if cell in dict(cells)]
            phases = [self.phases.get(test, []) for test in tests]
            if len(words) > 1 or any("failed" in phase for phase in phases):
                found[cell] = None
            elif all(phase == ["passed"] * 3 for phase in phases):
                found[cell] = words.pop()
        return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cells",
        type=lambda text: Path(text).absolute(),
        metavar="PATH",
        help="bring works-with cells in this file up to date (write --cells=PATH, with the sign)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Cells(config), "works-with")


class Deprecations(logging.Handler):
    """Warns of what a host's logger calls deprecated if our code called that host."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.inside = {"logging", "accelerate", host}  # accelerate has loggers for others too

    def emit(self, record: logging.LogRecord) -> None:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals["__name__"].split(".")[0] in self.inside:
            frame = frame.f_back
        module, text = frame.f_globals["__name__"], record.getMessage()
        if module.split(".")[0] == "emoreg" and "deprecated" in text:
            where = (frame.f_code.co_filename, frame.f_lineno, module)
            warnings.warn_explicit(text, FutureWarning, *where)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a test reads of a base is not kept where the user's own is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMOREG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _few_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training ends with a page, which takes a second to draw: only where it is looked at."""
    if not request.module.__name__.startswith(PAGES):
        monkeypatch.setattr("emoreg.reporting.write_runs", lambda _runs, path: path)


@pytest.fixture(autouse=True, scope="session")
def _logged_deprecations() -> Any:
    """Hosts log some deprecations instead of warning; both are for the filters of warnings."""
    handlers = {logging.getLogger(host): Deprecations(host) for host in HOSTS}
    for logger, handler in handlers.items():
        logger.addHandler(handler)
    yield
    for logger, handler in handlers.items():
        logger.removeHandler(handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Old hosts are excused from what they cannot do by themselves."""
    from floor import excuse  # once the environment is set

    excuse(items)
