"""How to read every number of a report: one line under each section, and every word explained."""

from __future__ import annotations

SECTIONS = {
    "verdict": "Drift is how far the trained model’s mean reading of an emotion lies from the "
    "base’s on the same prompts, read at the colon: the last prompt token, before the assistant’s "
    "first. A move is claimed only where its interval excludes 0 and q is at most 0.05; no drift "
    "shown is not the same as no drift.",
    "what": "Each row is one emotion: how far its mean reading lies from the base’s, with a 95 % "
    "interval over prompts. ▲ it rose, ▼ it fell, ○ no drift is shown.",
    "when": "Drift is measured on fixed prompts now and then; readings come from the texts trained "
    "on, at every logged step, so they also change with those texts. A band is a 95 % interval.",
    "where": "The same drift at each decoder block that was read, without intervals: a place to "
    "look closer, not a finding.",
    "compared": "A value of 0 is no relation, no shift, or chance, as its row says. Words follow "
    "only where an interval excludes 0.",
    "examples": "Shaded by the reading of each token: how the emotion stood at work there, in σ. "
    "Single texts show what a number looks like; they prove nothing about the run.",
    "gates": "A gate is passed if its value reaches the bar and lies above every control. Readings "
    "of a set that failed a gate can still move, but what moved is less sure to be the emotion.",
    "settings": "What one would need to repeat the run.",
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
    "Drift": "Mean reading of the trained model minus that of the base on the same prompts. At the "
    "colon: the last prompt token, before the assistant’s first. On fixed responses: the base’s "
    "own answers, read by both models, so only the model differs. In its own responses: each model "
    "reads what it writes itself, so the text differs as well.",
    "Since last": "Drift from the measurement before, with an interval of its own.",
    "95 % interval": "From drawing the prompts again, many times. It covers which prompts were "
    "asked, and nothing else: not the seed, the order of the data, the learning rate or another "
    "set of vectors. One run is one run.",
    "q": "The false-discovery rate at which an emotion would still count as moved, corrected for "
    "the number of emotions (Benjamini–Hochberg). Of all emotions called moved at q ≤ 0.05, about "
    "one in twenty is expected to be a false find.",
    "Further from base": "Said of two runs where the intervals of the size of the drift do not "
    "meet. Intervals that meet say neither that the runs differ nor that they are alike.",
    "Penalised and rewarded": "Emotions whose readings the loss pushed on. Their drift on the same "
    "directions shows where the loss pushed them. That the model carries less of an emotion, or "
    "acts otherwise, it does not show.",
    "Structure and agreement": "Correlations over emotions: of the base’s profile with the trained "
    "one, and of the drift on neutral prompts with that on challenging ones.",
    "Valence and arousal": "Drift weighted by how pleasant and how agitated each emotion is rated; "
    "ratings of words, not of this model.",
    "Span and chance": "How much of the move of the whole activation lies along emotion directions "
    "at all. If little does, the residual stream moved in other ways too, and readings with it.",
    "Task loss": "The logged loss less what emoreg added to it.",
}
