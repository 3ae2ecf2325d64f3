"""Offline and quiet before anything is imported; the network is out of bounds."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

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
