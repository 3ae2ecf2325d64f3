"""Errors are also builtins, importing costs nothing, and a test cannot reach the network."""

from __future__ import annotations

import builtins
import socket
import subprocess
import sys
from typing import Any

import pytest

from emoreg import errors
from emoreg.errors import EmoregError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and c is not EmoregError]


def test_errors_were_found() -> None:
    assert len(CLASSES) >= 10


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_ours_and_also_a_builtin(error: type) -> None:
    assert issubclass(error, EmoregError)
    also = [c for c in error.__mro__ if c.__module__ == builtins.__name__]
    assert also[0] not in (Exception, BaseException, object)
    assert error.__doc__
    with pytest.raises(also[0], match="found and wanted"):
        raise error("found and wanted")


QUIET = """
import logging, os, sys, threading
before = dict(os.environ), logging.root.level, threading.active_count()
import emoreg
loaded = {m.partition(".")[0] for m in sys.modules}
assert not loaded & {"wandb", "torch", "transformers", "trl", "peft", "accelerate", "numpy"}, loaded
assert (dict(os.environ), logging.root.level, threading.active_count()) == before
assert not logging.root.handlers
assert not [n for n in logging.root.manager.loggerDict if n.startswith("emoreg")]
emoreg.EmoRegConfig  # control: what is asked for is loaded
assert "torch" in sys.modules
"""


def test_importing_emoreg_loads_sets_and_configures_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_can_be_had_and_no_other() -> None:
    import emoreg

    assert [n for n in emoreg.__all__ if not isinstance(getattr(emoreg, n), type)] == []
    with pytest.raises(AttributeError, match="no attribute 'Emotions'"):
        _ = emoreg.Emotions


def connect(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect((host, port))


def resolve(host: str, port: int) -> None:
    socket.getaddrinfo(host, port)


@pytest.mark.parametrize("reach", [connect, resolve])
@pytest.mark.parametrize("host", ["192.0.2.1", "huggingface.co"])
def test_a_test_that_tries_to_reach_the_network_fails(reach: Any, host: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=host):
        reach(host, 443)


def test_this_machine_can_be_reached() -> None:
    resolve("localhost", 80)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect(*server.getsockname())
