"""Where labels stand beside their marks: none lies on another, and none beside a foreign mark.

Everything is in pixels, y upwards. A label that stands off its mark is led to it by a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.path import Path
from matplotlib.transforms import Bbox

Line = tuple[tuple[float, float], tuple[float, float]]
RINGS = (3.0, 8.0, 14.0, 22.0, 32.0, 44.0, 60.0)  # from the edge of a mark; the first needs no line
AROUND = 24  # directions that are tried on each ring
ROUNDS = 200  # of pushing marks apart
GOLDEN = 2.4  # radians
CLEAR = 3.0  # pixels that a label without a line is nearer to its mark than to any other


class Mark(NamedTuple):
    """A disc."""

    x: float
    y: float
    radius: float


class Area(NamedTuple):
    """A rectangle."""

    left: float
    low: float
    right: float
    high: float


class Spot(NamedTuple):
    """Where a label stands, and the two ends of its line, from the mark, if it has one."""

    area: Area
    line: Line | None


def apart(marks: Sequence[Mark]) -> list[Mark]:
    """The same marks, moved as little as it takes for none to lie on another.

    Args:
        marks: Those at one place are set around it, in their order.
    """
    at = np.array([mark[:2] for mark in marks]).reshape(-1, 2)
    radii = np.array([mark.radius for mark in marks])
    turns = GOLDEN * np.arange(len(marks))
    aside = np.stack([np.cos(turns), np.sin(turns)], 1)  # where those at one place go
    for _ in range(ROUNDS):
        way = at[:, None] - at[None]  # (marks, marks, 2), from every other
        way = np.where(way.any(-1, keepdims=True), way, aside[:, None] - aside[None])
        far = np.linalg.norm(at[:, None] - at[None], axis=-1)
        over = (radii[:, None] + radii[None] + 1 - far).clip(min=0.0)
        np.fill_diagonal(over, 0.0)
        if over.max(initial=0.0) <= 0.1:
            break
        length = np.linalg.norm(way, axis=-1) + np.eye(len(marks))
        push = ((0.5 * over / length)[..., None] * way).sum(1)
        at = at + push / np.maximum((over > 0).sum(1, keepdims=True), 1)  # not beyond what it takes
    return [Mark(float(x), float(y), mark.radius) for (x, y), mark in zip(at, marks, strict=True)]


def place(
    marks: Sequence[Mark], sizes: Sequence[tuple[float, float]], frame: Area
) -> list[Spot | None]:
    """Find room for a label beside each mark.

    Args:
        marks: The most important first: it chooses first.
        sizes: Width and height of the labels, of as many marks, or of the first ones only.
        frame: Where labels may stand.

    Returns:
        A spot for each label, None where there is no room.
    """
    found: list[Spot | None] = []
    for at, size in enumerate(sizes):
        taken = [spot for spot in found if spot is not None]
        spots = _spots(marks[at], size)
        found.append(next((s for s in spots if _free(s, at, marks, taken, frame)), None))
    return found


def _spots(mark: Mark, size: tuple[float, float]) -> Iterator[Spot]:
    """Around the mark, the nearest first; to the right before anything else."""
    width, height = size
    turns = sorted(range(AROUND), key=lambda i: (min(i, AROUND - i) % (AROUND // 2) != 0, i))
    for ring in RINGS:
        for turn in turns:
            angle = 2 * math.pi * turn / AROUND
            x, y = math.cos(angle), math.sin(angle)
            far = mark.radius + ring
            middle = (mark.x + x * (far + width / 2), mark.y + y * (far + height / 2))
            area = Area(
                middle[0] - width / 2,
                middle[1] - height / 2,
                middle[0] + width / 2,
                middle[1] + height / 2,
            )
            yield Spot(area, None if ring == RINGS[0] else _line(mark, area))


def _line(mark: Mark, area: Area) -> Line:
    """From the edge of the mark to the nearest point of the label."""
    end = (_clamp(mark.x, area.left, area.right), _clamp(mark.y, area.low, area.high))
    away = math.dist((mark.x, mark.y), end) or 1.0
    share = mark.radius / away
    return (mark.x + share * (end[0] - mark.x), mark.y + share * (end[1] - mark.y)), end


def _free(spot: Spot, at: int, marks: Sequence[Mark], taken: Sequence[Spot], frame: Area) -> bool:
    """Whether a label there covers nothing and can be taken for no other mark's."""
    area, own = spot.area, marks[at]
    if area.left < frame.left or area.right > frame.right:
        return False
    if area.low < frame.low or area.high > frame.high:
        return False
    gaps = [gap(mark, area) for mark in marks]
    if min(gaps) < 1 or any(meet(area, other.area) for other in taken):
        return False
    if any(other.line and _runs_over(other.line, area) for other in taken):
        return False
    if spot.line is None:
        return all(gaps[i] > gaps[at] + CLEAR for i in range(len(marks)) if i != at)
    # Later marks are drawn on top: a line to one of them may cross what lies below it.
    foreign = [m for i, m in enumerate(marks) if i > at or (i < at and not _touch(m, own))]
    return not (
        any(_hits(spot.line, mark) for mark in foreign)
        or any(_runs_over(spot.line, other.area) for other in taken)
        or any(other.line and Path(spot.line).intersects_path(Path(other.line)) for other in taken)
    )


def gap(mark: Mark, area: Area) -> float:
    """Room between a mark's edge and a rectangle; below 0 where they overlap."""
    nearest = (_clamp(mark.x, area.left, area.right), _clamp(mark.y, area.low, area.high))
    return math.dist((mark.x, mark.y), nearest) - mark.radius


def meet(a: Area, b: Area) -> bool:
    """Whether two rectangles overlap."""
    return a.left < b.right and b.left < a.right and a.low < b.high and b.low < a.high


def _touch(a: Mark, b: Mark) -> bool:
    return math.dist(a[:2], b[:2]) < a.radius + b.radius + 2


def _hits(line: Line, mark: Mark) -> bool:
    """Whether a line runs over a mark, or as good as."""
    (x0, y0), (x1, y1) = line
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2 or 1.0
    along = _clamp(((mark.x - x0) * (x1 - x0) + (mark.y - y0) * (y1 - y0)) / length, 0.0, 1.0)
    nearest = (x0 + along * (x1 - x0), y0 + along * (y1 - y0))
    return math.dist(nearest, mark[:2]) < mark.radius + 2


def _runs_over(line: Line, area: Area) -> bool:
    corners = Bbox.from_extents(*area)
    return bool(Path(line).intersects_bbox(corners, filled=False))


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
