"""Every name that is logged, with its unit and meaning; the README's table is made from it."""

from __future__ import annotations

import re

# Placeholders in braces stand for an emotion, a facet or a side. In evaluation the same names carry
# the prefix `eval_`, or `eval_{set}_` with several sets, except those of drift and the clock.
METRICS = {
    "emoreg/loss": ("task-loss units", "what was added to the loss: all terms, weighted"),
    "emoreg/penalty/{emotion}": ("σ²", "penalty of a penalised emotion, before its weight"),
    "emoreg/reward/{emotion}": ("σ²", "shortfall of a rewarded emotion, before its weight"),
    "emoreg/keep": (
        "σ²",
        "squared excess of all other emotions over the base; where the base is read",
    ),
    "emoreg/reading/{emotion}": ("σ", "mean reading, over counted tokens, blocks and facets"),
    "emoreg/reading/{emotion}/{facet}": ("σ", "the same for one facet of a penalised emotion"),
    "emoreg/reading_{side}/{emotion}": (
        "σ",
        "mean reading of a penalised or rewarded emotion on one side: chosen, rejected, rewarded …",
    ),
    "emoreg/excess/{emotion}": (
        "σ",
        "reading minus the base's of the same token; where the base is read",
    ),
    "emoreg/over_margin/{emotion}": ("share", "counted tokens beyond anchor plus margin"),
    "emoreg/norm": ("residual units", "mean length of the activation at counted tokens"),
    "emoreg/seconds": ("s", "one optimizer step"),
    "emoreg/drift/{emotion}": (
        "σ",
        "mean reading now minus base, at the colon of the drift prompts",
    ),
    "emoreg/drift_low/{emotion}": ("σ", "lower end of its 95 % bootstrap interval over prompts"),
    "emoreg/drift_high/{emotion}": ("σ", "upper end of that interval"),
    "emoreg/drift_mean_abs": ("σ", "mean absolute drift over emotions"),
    "emoreg/drift_structure": ("correlation", "profile over emotions, base to now; 1 is preserved"),
}


def described(name: str) -> bool:
    """Whether a logged name is in the table."""
    bare = re.sub(r"^eval_(\w+_)?(?=emoreg/)", "", name)
    return any(re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(m)), bare) for m in METRICS)


def markdown() -> str:
    """The table as the README shows it."""
    rows = [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in METRICS.items()]
    return "\n".join(["| name | unit | meaning |", "| --- | --- | --- |", *rows])
