"""The measurements of one run: from the base, since step 0, and since the one before."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from emoreg import kept
from emoreg.drift import Drift, Move, scalars
from emoreg.errors import ConfigError
from emoreg.processes import first_process, shared
from emoreg.shape import statistics
from emoreg.snapshot import Gauge, Snapshot

BASE = "emoreg-base.safetensors"  # in a run's output folder: what its base reads
EARLIER = "emoreg-readings.safetensors"  # in a checkpoint: what the run had read until then

log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """One measurement: at the colon, as the journal keeps it, and as the trainer logs it."""

    drift: Drift
    event: dict[str, Any]
    scalars: dict[str, float]


class Series:
    """Measures one model again and again.

    Args:
        gauge: What it is read with.
        base: What the base reads.
        earlier: ``start`` and ``previous``, if the run goes on from a checkpoint.
    """

    def __init__(
        self, gauge: Gauge, base: Snapshot, earlier: Mapping[str, Snapshot] | None = None
    ) -> None:
        self.gauge, self.base = gauge, base
        self.earlier = dict(earlier or {})
        self._at, self._before = -1, self.earlier.get("previous")
        self._kept: Path | None = None

    def measure(self, model: nn.Module, step: int, own: bool = False) -> Measured:
        """Read the model as it stands, and compare.

        Args:
            model: Its mode, settings and random state are left as they were.
            step: Of the run.
            own: Whether its own responses are read too.
        """
        now = self.gauge.now(model, self.base, own)
        if step == self._at:  # once more, as at the end: what was before stays before
            self._put("previous", self._before)
        self._at, self._before = step, self.earlier.get("previous")
        gauge, probe = self.gauge, self.gauge.probe
        earlier = (self.earlier.get(name) for name in ("previous", "start"))
        move = Move(gauge.emotions, probe.blocks, gauge.kinds, self.base, now, *earlier)
        stats = statistics(move, probe)
        event = {"prompts": len(gauge.prompts), "places": move.event(), "stats": stats}
        if step == 0:
            self.earlier["start"] = now
        self.earlier["previous"] = now
        return Measured(move.places["colon"], event, scalars(move.places, stats))

    def _put(self, name: str, found: Snapshot | None) -> None:
        self.earlier.pop(name, None)
        if found is not None:
            self.earlier[name] = found

    def keep_base(self, folder: Path) -> None:
        """Write the base's readings into the output folder; a failure is a warning."""
        _keep(folder / BASE, {"base": self.base}, self.gauge.identity)

    def keep(self, checkpoint: Path) -> None:
        """Write into a checkpoint, once, what the run needs to go on from there."""
        if checkpoint.is_dir() and self._kept != checkpoint:
            about = {**self.gauge.identity, "base": kept.digest(self.base)}
            _keep(checkpoint / EARLIER, self.earlier, about)
            self._kept = checkpoint


def resumed(gauge: Gauge, base: Snapshot | None, output: Path, checkpoint: Path) -> Series:
    """The series of a run that goes on from a checkpoint; every process must call it.

    Args:
        gauge: What is read.
        base: What the base reads; None if that must be had from the output folder.
        output: The trainer's output folder.
        checkpoint: The folder that training goes on from.

    Raises:
        ConfigError: There is no such base any more, or it is of another run.
    """
    stored = _stored(gauge, base, output, checkpoint) if first_process() else None
    found, problem = shared(stored or ({}, ""))
    if problem:
        raise ConfigError(
            f"Training resumes from {checkpoint.name} without adapters to switch off, so drift is "
            f"measured from what was read at step 0, and {problem}. Copy {BASE} from the output "
            f"folder of the run that is resumed to {output} (with the same vectors, facets, "
            "blocks, prompts, response length and precision), or start at step 0."
        )
    base = base or found.pop("base")
    return Series(gauge, base, found)


def _stored(
    gauge: Gauge, base: Snapshot | None, output: Path, checkpoint: Path
) -> tuple[dict[str, Snapshot], str]:
    """What the files hold, and what is wrong with them that nothing can make up for."""
    found: dict[str, Snapshot] = {}
    about = dict(gauge.identity)
    if base is None:
        try:
            found = kept.read(output / BASE, about)
        except FileNotFoundError:
            return {}, f"{output / BASE} is missing"
        except kept.NotThese as e:
            return {}, f"{output / BASE} cannot be used: {e}"
        about["base"] = kept.digest(found["base"])
    path = checkpoint / EARLIER
    try:
        found |= kept.read(path, about)
    except FileNotFoundError:
        log.warning("%s is missing: change since earlier measurements is not known.", path)
    except kept.NotThese as e:
        if base is None and "base" in e.unlike:
            return {}, f"{output / BASE} is not of the run that {checkpoint} belongs to"
        log.warning("%s: %s. Change since earlier measurements is not known.", path, e)
    return found, ""


def _keep(path: Path, found: Mapping[str, Snapshot], about: Mapping[str, Any]) -> None:
    if not first_process():
        return
    try:
        kept.write(path, found, about)
    except OSError as e:
        log.warning(
            "%s cannot be written (%s). Training goes on; a resumed run will lack what it holds.",
            path,
            e.strerror or e,
        )
