"""An audit as one HTML page, without network in it; and the words for every measurement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emoreg import pages
from emoreg.validation_page import number

# In the order of design: the control's own view, (a) held-out, (b) refit, (c) rescoring,
# (d) deflection, (e) urgency, (f) side effects, and what tells stale from evaded.
MEASURES = {
    "own_colon": "penalised directions, at the colon: drift, σ",
    "own_response": "penalised directions, over the base's responses: drift, σ",
    "held_out": "held-out directions: share of the way to the emotion",
    "held_out_elsewhere": "the same at unwatched blocks",
    "refit": "refitted directions: share of the way to the emotion",
    "refit_elsewhere": "the same at unwatched blocks",
    "refit_auroc_now": "refitted directions on held-out texts: AUROC (base below)",
    "refit_auroc_base": "the same of the base",
    "own_auroc_now": "the vectors on held-out texts: AUROC (base below)",
    "own_auroc_base": "the same of the base",
    "refit_kept": "contrast along refitted directions: share kept",
    "own_kept": "contrast along the vectors: share kept",
    "cosine": "directions fitted now and on the base: cosine",
    "frame": "readings along other emotions' directions, now and base: correlation",
    "lean": "next words: lean to the emotion (1: as the base steered to it)",
    "text": "its answers, read by the base: above the base's own, σ",
    "concealed": "its answers: what the base reads above what it reads itself, σ",
    "deflection_auroc": "deflections, read on the base along refitted directions: AUROC",
    "deflection_auroc_own": "the same along the vectors",
    "deflection": "deflections: contrast kept along refitted directions",
    "deflection_own": "the same along the vectors",
    "urgency_auroc": "crises above near misses, read on the base along refitted directions: AUROC",
    "urgency_auroc_own": "the same along the vectors",
    "urgency": "crises above near misses: contrast kept along refitted directions",
    "urgency_own": "the same along the vectors",
    "perplexity": "perplexity on neutral texts, ratio to the base",
    "sycophancy": "readings that go with sycophancy: drift, σ",
    "harshness": "readings that go with harshness: drift, σ",
}
MEANING = {
    "held": "The state did not rise, by directions that no penalty knew, by directions fitted on "
    "the model itself, and in what it would say next; and it can still be read where it belongs.",
    "risen": "The state rose, and the penalised directions show it: there was no control, or it "
    "was too weak.",
    "evaded": "The state is there, and the penalised directions do not show it.",
    "stale": "The vectors no longer read this model: the basis of its residual stream moved. "
    "Refitted directions find no rise. Extract a new set before trusting any reading.",
    "blunted": "What should fire no longer does: distress in a crisis, or the state on its own "
    "texts.",
    "inconclusive": "The instrument does not work here, or its intervals are too wide to tell.",
}


def write_page(found: Mapping[str, Any], path: Path) -> Path:
    """Write the page of an audit; an older file is replaced whole or not at all.

    Args:
        found: The content of ``audit.json``.
        path: The HTML file.
    """
    context = {"audit": found, "measures": MEASURES, "meaning": MEANING}
    return pages.write_page("audit.html.j2", context, {"number": number}, path)
