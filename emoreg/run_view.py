"""One run as its readers need it: cleaned, in order, under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from emoreg.audited import Audited
from emoreg.journal import Run
from emoreg.measurement import Measurement, number, or_zero, table
from emoreg.printable import cleaned, short, shown

KINDS = ("penalize", "reward")


@dataclass(frozen=True)
class View:
    """One run, cleaned.

    Attributes:
        run: With texts that may be shown.
        title: What readers call it, unlike that of any other run beside it.
    """

    run: Run
    title: str

    @classmethod
    def of(cls, run: Run) -> View:
        """A run that stands alone."""
        return views([run])[0]

    @cached_property
    def _events(self) -> dict[int, Mapping[str, Any]]:
        """Measurements as they were written, by step; of two at one step, the later."""
        found = {int(event["step"]): event for event in self.run.drifts}
        return {step: found[step] for step in sorted(found)}

    @cached_property
    def drifts(self) -> list[Measurement]:
        """Measurements by step."""
        return [Measurement.of(event) for event in self._events.values()]

    @cached_property
    def last(self) -> Measurement | None:
        """The last measurement at the colon in which there is a number."""
        found = map(Measurement.of, reversed(self._events.values()))
        return next((m for m in found if m.known()), None)

    @cached_property
    def audits(self) -> list[Audited]:
        """Audits by step; of two at one step, the later."""
        found = {int(event["step"]): event for event in self.run.audits}
        return [Audited.of(found[step]) for step in sorted(found)]

    @property
    def audit(self) -> Audited | None:
        """The last audit."""
        return self.audits[-1] if self.audits else None

    @property
    def only_start(self) -> bool:
        """Whether nothing was measured but the base against itself."""
        last = self.last
        return last is not None and last.step == 0 and not any(any(r.drift) for r in last.known())

    @cached_property
    def weights(self) -> dict[str, dict[str, float]]:
        """Penalised and rewarded emotions with the largest weight that any regularizer gives."""
        found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
        for control in self.run.controls.values():
            for kind, emotion, weight in weights_of(control):
                found[kind][emotion] = max(weight, found[kind].get(emotion, 0.0))
        return found

    @property
    def pushed(self) -> dict[str, str]:
        """Emotion -> ``penalised`` or ``rewarded``, where a weight is above 0."""
        words = zip(KINDS, ("penalised", "rewarded"), strict=True)
        return {e: word for kind, word in words for e, w in self.weights[kind].items() if w > 0}

    @property
    def controlled(self) -> bool:
        """Whether anything was added to the loss."""
        return bool(self.pushed) or any(keep(c) > 0 for c in self.run.controls.values())

    @property
    def watched(self) -> list[str]:
        """Emotions that have a weight, even of 0."""
        return list(dict.fromkeys(e for kind in KINDS for e in self.weights[kind]))

    @property
    def kinds(self) -> dict[str, int]:
        """How many drift prompts there are of each kind, of kinds that there are."""
        asked = table(self.run.baseline.get("prompts"))
        given = table(asked.get("kinds")) or {k: asked.get(k) for k in ("neutral", "challenging")}
        counts = {str(kind): number(count) for kind, count in given.items()}
        return {kind: int(count) for kind, count in counts.items() if count > 0}

    @property
    def before(self) -> int | None:
        """The step of the measurement that the last one gives its change from."""
        steps = [m.step for m in self.drifts if self.last and m.step < self.last.step]
        return steps[-1] if steps else None

    def leading(self, most: int) -> list[str]:
        """Watched emotions, then the largest movers."""
        if self.last is None:
            return []
        names = [e for e in self.watched if e in self.last.colon]
        names += [row.emotion for row in self.last.by_size() if row.emotion not in names]
        return names[:most]

    def vector_sets(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Each vector set that was used, once, with what for."""
        uses: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
        sources: list[tuple[str, Mapping[str, Any]]] = []
        sources += [("drift", self.run.baseline)] if self.run.baseline else []
        sources += [(control_title(name), c) for name, c in self.run.controls.items()]
        sources += [("audit", self.audit.about)] if self.audit else []
        for use, source in sources:
            vectors = table(source.get("vectors"))
            if vectors:
                uses.setdefault(str(vectors.get("sha256") or "–"), ([], vectors))[0].append(use)
        return [(", ".join(names), vectors) for names, vectors in uses.values()]

    @property
    def own_directions(self) -> bool:
        """Whether drift is read on directions that the loss pushes on."""
        drift = table(self.run.baseline.get("vectors")).get("sha256")
        read = set(self.run.baseline.get("facets") or ())
        return any(
            table(c.get("vectors")).get("sha256") == drift
            and (not read or not c.get("facets") or read & set(c["facets"]))
            for c in self.run.controls.values()
            if pushes(c)
        )

    def series(self, key: str, less: str = "") -> tuple[list[int], list[float]]:
        """Steps and values of a logged scalar, under ``emoreg/`` of any regularizer; the first.

        Args:
            key: Such as ``reading/calm``, or a whole name such as ``loss``.
            less: A scalar of emoreg's that is taken off where it was logged with the key.
        """
        prefixes = [f"emoreg/{name}/" if name else "emoreg/" for name in ("", *self.run.controls)]
        names = [key, *(prefix + key for prefix in prefixes)]
        found: dict[int, float] = {}
        for step, logs in self.run.logs:
            value = next((number(logs[name]) for name in names if name in logs), None)
            if value is not None:
                off = [or_zero(number(logs.get(p + less))) for p in dict.fromkeys(prefixes) if less]
                found[step] = value - sum(off)
        return list(found), list(found.values())


def views(runs: Sequence[Run]) -> list[View]:
    """Runs under names that differ: their own, or else with the folder, or else numbered."""
    clean = [cleaned(run) for run in runs]
    names = [short(shown(run.name)) or "run" for run in clean]
    folders = [short(shown(f"{n} ({r.folder.name})")) for n, r in zip(names, clean, strict=True)]
    if len(set(names)) < len(names):
        names = folders
    if len(set(names)) < len(names):
        names = [f"{name} #{i}" for i, name in enumerate(names, 1)]
    return [View(run, name) for run, name in zip(clean, names, strict=True)]


def control_title(name: str) -> str:
    """What a regularizer is called."""
    return f"control {short(name)}" if name else "control"


def weights_of(control: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Kind, emotion and weight of everything that a regularizer watches."""
    watched = table(control.get("watched"))
    for kind in KINDS:
        for emotion, weight in table(watched.get(kind)).items():
            yield kind, str(emotion), or_zero(number(weight))


def keep(control: Mapping[str, Any]) -> float:
    """The weight with which a regularizer holds all other emotions."""
    knobs = table(control.get("config"))
    return or_zero(number(knobs.get("keep", knobs.get("emoreg_keep"))))


def pushes(control: Mapping[str, Any]) -> bool:
    """Whether a regularizer adds anything to the loss."""
    return keep(control) > 0 or any(weight > 0 for _, _, weight in weights_of(control))
