"""The findings of a validation as one HTML page, without network in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from emoreg import pages
from emoreg import validation_charts as charts
from emoreg.charts import inline_svg

MEANING = {
    "held_out_accuracy": "Readings name the emotion of stories on topics that no direction has "
    "seen, and do so better than the words alone.",
    "split_half_cosine": "Two halves of the topics give the same directions.",
    "polarity": "An emotion reads higher on its own stories than on the others'.",
    "auroc_desperate_response": "The reading tells a desperate assistant from the same work in "
    "other states: over the assistant's tokens.",
    "auroc_desperate_colon": "The same at the colon, before the assistant speaks.",
    "auroc_calm_response": "The same for calm, over the assistant's tokens.",
    "auroc_calm_colon": "The same for calm at the colon.",
    "specificity_desperate": "Desperate fires on its own stories, not on every unpleasant one.",
    "valence_correlation": "The first component of the directions orders emotions by pleasantness.",
    "arousal_correlation": "The second or third orders them by arousal.",
    "desperate_calm_cosine": "Desperate and calm are two directions and not one with two signs.",
    "dosage_amplitude": "Readings follow a number that makes a message frightening or a relief, "
    "further than those of random directions.",
    "dosage_signs": "They follow it in the expected direction.",
    "urgency": "Distress reads higher in an emergency than in a near miss in like words.",
}
ALT = {
    "blocks": "Line chart: accuracy and AUROC at every block, as in table 2",
    "map": "Scatter plot: emotions on the two leading components of their directions",
    "confusion": "Matrix: which emotion the held-out stories of each emotion read as",
}


def write_page(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a validation; an older file is replaced whole or not at all.

    Args:
        found: The content of ``validation.json``.
        path: The HTML file.
    """
    gates = {g["name"]: g for g in found["gates"]}
    context = {"run": found, "gates": gates, "meaning": MEANING, "figures": _figures(found, gates)}
    return pages.write_page("validation.html.j2", context, {"number": number}, path)


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A number, with a typographic minus; a dash for one that was not measured."""
    if value is None:
        return "–"
    return f"{value + 0.0:{sign}.{digits}f}".replace("-", "−")


def _figures(found: Mapping[str, Any], gates: Mapping[str, Any]) -> dict[str, Markup]:
    """Every chart as SVG, for a wide and for a narrow page."""
    control = gates["held_out_accuracy"]["control"] or {}
    drawn: dict[str, Figure] = {}
    for wide in (True, False):
        suffix = "wide" if wide else "narrow"
        drawn[f"blocks-{suffix}"] = charts.block_profile(found["blocks"], control, wide)
        drawn[f"confusion-{suffix}"] = charts.confusion(found["confusion"], wide)
        if found["places"]:
            drawn[f"map-{suffix}"] = charts.emotion_map(found["places"], wide)
    return {
        name: Markup(inline_svg(figure, name, ALT[name.split("-")[0]]))
        for name, figure in drawn.items()
    }
