"""How to read every number of a report: a line under each section, and the words that it uses."""

from __future__ import annotations

from collections.abc import Sequence

from emoreg.audit_page import MEANING
from emoreg.measurement import table
from emoreg.printable import joined
from emoreg.run_view import View

SECTIONS = {
    "where": "The same drift at each decoder block that was read, without intervals: a place to "
    "look closer, not a finding.",
    "compared": "Is it the emotions, or has the whole residual stream moved? The first two rows "
    "answer; the share is set beside that of random directions, for it has no interval.",
    "audit": "One word for base and trained model read on the same texts, after the first rule "
    "that applies; the findings below it are what it rests on. Of each measurement the table has "
    "the value, its 95 % interval over prompts and texts, and what it decides; above and below are "
    "of the whole interval. A verdict is of these texts and this run.",
    "examples": "Completions of training batches of which some were kept; each token is "
    "shaded by its reading, in σ. Single texts show what a number looks like and prove nothing "
    "about the run.",
    "gates": "A gate is passed where its value reaches its bar: the larger of a fixed least value "
    "and what controls gave on the same texts (shuffled labels, permuted ratings and random "
    "directions by their 95th percentile, p95; a bag of words by its value). Notes, such as how "
    "many random directions do as well, decide nothing. After a failed gate, what moved is less "
    "sure to be the emotion.",
}
GATES = {
    "desperate_calm_cosine": "1 is one direction, 0 two that have nothing to do with each other, "
    "−1 one direction with two signs; it must lie above the bar.",
}
KNOBS = {  # what a setting's name does not tell
    "anchor": "what readings are compared with",
    "check_name": "whether vectors of a model of another name are refused",
    "keep": "weight that holds all other emotions near the base",
    "margin": "σ beyond the anchor that cost nothing",
    "reference_steps": "the base is read every so many steps, only for the logged excess",
    "log_texts": "completions kept of either end",
    "scope": "tokens that count",
    "warmup": "share of training over which weights rise",
    "cached": "whether the base’s readings came from the cache",
    "on_policy": "when each model’s own responses are read",
    "drift_on_policy": "when each model’s own responses are read",
    "drift_steps": "steps between measurements",
    "response_tokens": "length of the responses read",
    "drift_response_tokens": "length of the responses read",
}

TERMS = {
    "Reading": "One number per token, block and emotion: how far the model’s activation lies along "
    "that emotion’s direction, ((h − μ) · v) / σ. It is in σ: one standard deviation of the same "
    "number over neutral text, so 0 is what neutral text gives.",
    "Functional, not felt": "A direction that goes with text in which an emotion is at work, and "
    "that can change what a model does next when it is added. This is a functional representation. "
    "Whether a model feels anything is neither asked nor answered here.",
    "Linear": "A reading sees one direction. What a model carries along another direction, or in "
    "another form, it does not see: a low reading is no proof that an emotion is absent.",
    "Local": "A reading follows the emotion at work for the next tokens, whether the assistant’s, "
    "the user’s or a character’s. It is no lasting state and no trait.",
    "Bound to its texts": "A vector is as good as the texts that it was fitted on. One from "
    "stories can stay where it was while training changes how the assistant’s own turns are "
    "represented, and can miss an emotion that is implied and not shown. A high reading is not "
    "always wrong either: in an emergency it can be apt.",
    "Base": "The same weights with every adapter off, or the model as it was at step 0.",
    "Drift": "Mean reading of the trained model minus that of the base on the same prompts.",
    "Fixed and own responses": "Fixed: the base’s own answers, read by both models, so only the "
    "model differs. Own: each model reads what it writes itself, so the text differs as well. Both "
    "are means over the tokens of an answer; the colon is one token.",
    "Change since": "Drift from the measurement before, with an interval of its own but no q, and "
    "so without a mark.",
    "95 % interval": "From drawing the prompts again, many times. It covers which prompts were "
    "asked, and nothing else: not the seed, the order of the data, the learning rate or another "
    "set of vectors. One run is one run.",
    "q": "The least rate of false finds at which an emotion would still count as moved, corrected "
    "for the number of emotions (Benjamini–Hochberg). Marks follow the interval and the q of their "
    "own place, and the size: below 0.05 σ a move may be rounding, and none is claimed.",
    "Difference and further from base": "Said of two runs where intervals do not meet: of the "
    "drifts, or of their sizes. Intervals that meet say neither that the runs differ nor that they "
    "are alike.",
    "Watched": "Named with a weight in a control’s settings. At weight 0 an emotion is only "
    "measured.",
    "Penalised and rewarded": "Emotions whose readings the loss pushed on. Their drift on the same "
    "directions shows where the loss pushed them. That the model carries less of an emotion, or "
    "acts otherwise, it does not show.",
    "Audit": "Whether an emotion rose where the loss does not look, in one word. "
    + " ".join(f"{word.capitalize()}: {said}" for word, said in MEANING.items()),
    "Share of the way": "How much nearer the drift prompts came to the emotion: 0 is where the "
    "base has them, 1 is from texts of other states to texts of the emotion. Along held-out "
    "directions in the base’s frame, along refitted ones in the trained model’s own.",
    "Share kept": "What is left of a contrast between two sorts of texts, where 1 is all that the "
    "base had and 0 none: refitted directions are fitted on the trained model, the vectors are "
    "those of the control.",
    "Lean": "Where the words that the model would say next went: 0 is the base, 1 as far as "
    "steering the base to the emotion takes it.",
    "AUROC": "How often a text of the emotion reads higher than one without it: 0.5 is chance, 1 "
    "always.",
    "Profile": "The mean readings of all emotions; it is kept as far as those of the trained model "
    "correlate with the base’s. Agreement: the same of the drifts on two kinds of prompt.",
    "Valence and arousal": "Drift weighted by how pleasant and how agitated each emotion is rated; "
    "ratings of words, not of this model.",
    "Random direction": "Drawn evenly from all directions. Training moves a model along busy "
    "directions anyway, so more than this is little to ask.",
    "Task loss": "The logged loss less what emoreg added to it.",
}
AUDIT_TERMS = ("Audit", "Share of the way", "Share kept", "Lean", "AUROC")


def terms(views: Sequence[View]) -> dict[str, str]:
    """The words that a report of these runs uses."""
    without = set() if len(views) > 1 else {"Difference and further from base"}
    lasts = [view.last for view in views if view.last]
    stats = {name for last in lasts for name in last.stats}
    needs = {
        "Fixed and own responses": any(m.known("response") or m.known("own") for m in lasts),
        "Change since": len(views) == 1 and views[0].before is not None,
        "Watched": any(view.watched for view in views),
        "Penalised and rewarded": any(view.pushed for view in views),
        "Profile": "structure" in stats,
        **dict.fromkeys(AUDIT_TERMS, any(view.audit for view in views)),
        "Valence and arousal": "valence" in stats,
        "Random direction": "span" in stats,
        "Task loss": any(view.controlled for view in views),
    }
    without |= {word for word, used in needs.items() if not used}
    return {word: said for word, said in TERMS.items() if word not in without}


def how_measured(views: Sequence[View]) -> str:
    """What drift is, what it is a mean over, and its unit; of the first run."""
    baseline = table(views[0].run.baseline)
    over = []
    if blocks := baseline.get("blocks"):
        over.append(f"blocks {_ranges(blocks)}")
    if facets := baseline.get("facets"):
        over.append(f"directions from {joined(map(str, facets))}")
    mean = f", a mean over {joined(over)}" if over else ""
    return (
        "Drift is the mean reading of the trained model less that of the base on the same "
        f"prompts{mean}. 1 σ is one standard deviation of the same reading over neutral text. No "
        "drift shown is not the same as no drift."
    )


def _ranges(numbers: Sequence[int]) -> str:
    """``1–3, 7``."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)
