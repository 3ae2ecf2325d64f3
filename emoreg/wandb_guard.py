"""Keeps whatever goes wrong with wandb out of training, and says so once."""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from transformers import Trainer
from transformers.integrations.integration_utils import WandbCallback, rewrite_logs

from emoreg.host import Around, Loan
from emoreg.journal import Journal
from emoreg.wandb_metrics import define

ROOM = 1 << 16  # bytes that must be free: wandb writes blocks of half of this, and loses them else
SLOW = 10.0  # seconds for a file: a server that does not answer
PATIENCE = 2.0  # seconds for a connection
EVERY = 60.0  # seconds between two looks at the server while nothing but scalars is sent

log = logging.getLogger(__name__)


class Guard:
    """Stands between training and one run of wandb.

    Scalars are always handed on: wandb keeps them on the disk while its server is away. Files are
    not, once one has failed: each could hold up training until wandb gives up.

    Args:
        run: The run that is open.
        journal: Where a failure is noted.
        step: Tells the trainer's step.
    """

    def __init__(self, run: Any, journal: Journal, step: Callable[[], int]) -> None:
        self.run, self.journal, self.step = run, journal, step
        self.failed = False  # whether anything has, and it was said
        self.lost = False  # whether files are no longer sent
        self._loan = Loan()
        self.defined: set[str] = set()
        self._looked = time.monotonic()

    def protect(self, trainer: Trainer) -> None:
        """Go around what the trainer does with wandb, until `give_back`."""
        import wandb

        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, WandbCallback):
                self._loan.go_around(callback, "on_log", self._logging)
                for name in ("on_log", "on_save", "on_predict", "on_train_end"):
                    self._loan.go_around(callback, name, self._safely)
        # Trainers of TRL log tables of completions with it, past the callback.
        self._loan.go_around(wandb, "log", self._sending)

    def give_back(self) -> None:
        """Give back everything that was borrowed."""
        self._loan.give_back()

    def attempt(self, do: Callable[[], object]) -> bool:
        """Do something with wandb; whether it worked."""
        try:
            do()
        # wandb has no common error: a service that died, a disk, a server and a login each raise
        # their own, some of them plain `Exception`. None is worth a training run.
        except Exception as e:
            self.fail(f"{type(e).__name__}: {e}")
            return False
        return True

    def send(self, do: Callable[[], object]) -> bool:
        """Do something that sends files; whether it worked, False at once if files are lost."""
        if self.lost or not self.reachable():
            return False
        began = time.monotonic()
        done = self.attempt(do)
        took = time.monotonic() - began
        slow = not self.run.offline and took > SLOW
        if slow:
            self.fail(f"it took {took:.0f} s over a file")
        self.lost = slow or not done
        return done

    def look(self) -> None:
        """At every line of the log: see whether wandb can still write and send."""
        folder = self.run.settings.wandb_dir
        try:
            free = shutil.disk_usage(folder).free
        except OSError as e:
            self.fail(f"{folder}: {e.strerror or e}")
            return
        if free < ROOM:
            self.fail(f"no space left on the disk of {folder}")
        elif not self.failed and time.monotonic() - self._looked > EVERY:
            self.reachable()

    def reachable(self) -> bool:
        """Whether the server takes connections; always so offline."""
        self._looked = time.monotonic()
        if self.run.offline:
            return True
        host, port = _address(self.run.settings)
        try:
            socket.create_connection((host, port), PATIENCE).close()
        except OSError as e:
            self.fail(f"{host}:{port} cannot be reached: {e.strerror or e}")
            return False
        return True

    def fail(self, why: str) -> None:
        """Say once what happened, and what is not lost."""
        if self.failed:
            return
        self.failed = True
        text = (
            f"wandb failed at step {self.step()} ({' '.join(why.split())}). Training goes on. From "
            "here on the run may be incomplete in wandb; every scalar is in the trainer's "
            f"log_history and, with everything else, in {self.journal.path.name} in the output "
            "folder."
        )
        log.warning(text)
        self.journal.add("note", self.step(), text=text)

    def _safely(self, method: Around, *args: Any, **kwargs: Any) -> Any:
        """An event of the trainer's own WandbCallback."""
        found: list[Any] = []
        self.attempt(lambda: found.append(method(*args, **kwargs)))
        return found[0] if found else None

    def _logging(self, on_log: Around, *args: Any, **kwargs: Any) -> Any:
        """`WandbCallback.on_log`, before which wandb is told what it is going to get."""
        logs = rewrite_logs(kwargs.get("logs") or {})
        self.attempt(lambda: define(self.run, logs, self.defined))
        return on_log(*args, **kwargs)

    def _sending(self, method: Around, *args: Any, **kwargs: Any) -> Any:
        """`wandb.log`; here a mistake of the caller's must still be one."""
        from wandb.errors import CommError

        step = kwargs.get("step")
        if isinstance(step, int) and step < self.run.step:  # emoreg's own rows moved the count
            kwargs["step"] = None
        try:
            return method(*args, **kwargs)
        except (OSError, EOFError, CommError) as e:
            self.fail(f"{type(e).__name__}: {e}")
            return None


def _address(settings: Any) -> tuple[str, int]:
    """Where a request to an address connects to: its host, or a proxy."""
    parts = urlsplit(str(settings.base_url))
    own = getattr(settings, f"{parts.scheme}_proxy", None)
    proxy = own or getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
