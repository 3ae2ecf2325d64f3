"""Colours that carry numbers, in both themes: shades of a rise, a fall and a size; lines apart.

A chart is drawn in the light theme, and `THEME` names the variable of the page that each colour
becomes there; `css` defines those variables for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.colors import to_hex, to_rgb

from emoreg.charts import EMOREG, FALL, PAPER
from emoreg.charts import THEME as PLAIN

LEVELS = 7  # shades on either side of 0
STEPS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)  # where a scale of colours may end, and tenfolds of these
DARK_PAPER, DARK_INK = "#1b1e21", "#e7e5e0"
# A rise is amber and not red: that calm rose is no alarm.
RISE = "#96590a"
SHADES = {  # full colour on light and on dark
    "up": (RISE, "#d99d4c"),
    "down": (FALL, "#82b4ee"),
    "some": (EMOREG, "#52c0b3"),
}
# The deepest shade: as far from the paper as the ink on it still reads.
DEPTH = {"light": 0.7, "dark": 0.5}
LINES = (  # told apart by dashes and markers too
    ("#0d7a70", "#56c4b7"),
    ("#6f4bb0", "#b99bf0"),
    ("#a8650c", "#e2b15b"),
    ("#b03a6f", "#f08db8"),
    ("#4a6b12", "#a9cc63"),
    ("#40484f", "#c9ced3"),
)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3)))
SHAPES = ("o", "s", "^", "D", "v", "P")


def mixed(paper: str, colour: str, share: float) -> str:
    """A colour thinned with the paper."""
    (r, g, b), (red, green, blue) = to_rgb(paper), to_rgb(colour)
    return to_hex((r + share * (red - r), g + share * (green - g), b + share * (blue - b)))


def shade(kind: str, level: int, dark: bool = False) -> str:
    """The colour of a level from 1 to `LEVELS`."""
    theme, paper = ("dark", DARK_PAPER) if dark else ("light", PAPER)
    return mixed(paper, SHADES[kind][dark], DEPTH[theme] * level / LEVELS)


def level(value: float, limit: float) -> int:
    """From −`LEVELS` to `LEVELS`; only a value that rounds to none is 0."""
    if not math.isfinite(value) or limit <= 0:
        return 0
    return round(LEVELS * max(-1.0, min(1.0, value / limit)))


def rounded(size: float) -> float:
    """The end of a scale of colours that holds a size: one of few, so that pages are comparable."""
    power = 10.0 ** max(0, math.floor(math.log10(max(size, 1.0))))
    return next(end * power for end in STEPS if end * power >= min(size, 10 * power))


def colour(value: float, limit: float, kind: str = "") -> str:
    """The light theme's colour of a value: by its sign, or of one kind."""
    at = level(value, limit)
    if at == 0:
        return PAPER
    return shade(kind or ("up" if at > 0 else "down"), abs(at))


THEME = (
    PLAIN
    | {RISE: "var(--rise)"}
    | {shade(kind, i): f"var(--{kind}-{i})" for kind in SHADES for i in range(1, LEVELS + 1)}
    | {light: f"var(--line-{i})" for i, (light, _) in enumerate(LINES, 1)}
)


def css() -> str:
    """The variables of `THEME` that the plain style sheet does not define, or otherwise."""
    light, dark = (" ".join(_variables(at)) for at in (False, True))
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def _variables(dark: bool) -> Iterator[str]:
    yield f"--rise: {SHADES['up'][dark]};"
    for kind in SHADES:
        yield from (f"--{kind}-{i}: {shade(kind, i, dark)};" for i in range(1, LEVELS + 1))
    yield from (f"--line-{i}: {pair[dark]};" for i, pair in enumerate(LINES, 1))
