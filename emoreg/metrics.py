"""Every name that is logged, with its unit and meaning; docs/metrics.md has the table."""

from __future__ import annotations

import re

# Placeholders in braces stand for an emotion, a facet or a side. In evaluation the same names carry
# the prefix `eval_`, or `eval_{set}_` with several sets, except those of drift and the clock.
METRICS = {
    "emoreg/loss": ("task-loss units", "what was added to the loss: all terms, weighted"),
    "emoreg/penalty/{emotion}": ("σ²", "penalty of a penalised emotion, before its weight"),
    "emoreg/reward/{emotion}": ("σ²", "shortfall of a rewarded emotion, before its weight"),
    "emoreg/keep": ("σ²", "squared excess of all other emotions over the base, if it has a weight"),
    "emoreg/reading/{emotion}": ("σ", "mean reading, over counted tokens, blocks and facets"),
    "emoreg/reading_colon/{emotion}": ("σ", "the same at the colon, whatever the scope"),
    "emoreg/reading_completion/{emotion}": ("σ", "the same over the completion"),
    "emoreg/reading_prompt/{emotion}": ("σ", "the same over the prompt; watched emotions"),
    "emoreg/reading_{side}/{emotion}": (
        "σ",
        "counted tokens of one side: chosen, rejected, rewarded …; watched emotions",
    ),
    "emoreg/reading/{emotion}/{facet}": ("σ", "one facet alone; watched emotions"),
    "emoreg/reading_block_{block}/{emotion}": ("σ", "one block alone; watched emotions"),
    "emoreg/excess/{emotion}": (
        "σ",
        "reading minus the base's of the same token; where the base is read",
    ),
    "emoreg/top/{emotion}": (
        "σ",
        "mean reading of the highest tenth of each sequence; watched emotions",
    ),
    "emoreg/max/{emotion}": ("σ", "highest reading of a token since the last line; watched"),
    "emoreg/over_margin/{emotion}": (
        "share",
        "counted tokens beyond anchor plus margin; watched emotions",
    ),
    "emoreg/norm": ("residual units", "mean length of the activation at counted tokens"),
    "emoreg/norm_block_{block}": ("residual units", "the same at one block"),
    "emoreg/seconds": ("s", "one optimizer step"),
    "emoreg/kl": ("nats", "KL(base ‖ policy) on neutral texts, per token, before its weight"),
    "emoreg/weight/{emotion}": ("task-loss units per σ²", "an adaptive weight"),
    "emoreg/gate_closed": (
        "share",
        "steps on which no adaptive weight may rise, as the task loss suffers",
    ),
    "emoreg/refit_facets/{emotion}": ("facets", "that refits added and that are kept"),
    "emoreg/refit_auroc/{emotion}": (
        "AUROC",
        "how well what the last refit found new tells the state; 0 if nothing is new",
    ),
    "emoreg/refit_seconds": ("s", "what a refit took"),
    "emoreg/reward_reading/{emotion}": (
        "σ",
        "pooled reading of a rollout, mean over rollouts; reward functions",
    ),
    "emoreg/reward_over/{emotion}": ("share", "rollouts that read above a reward's threshold"),
    "emoreg/reward_screened/{emotion}": ("share", "rollouts that a screen took out"),
    "emoreg/drift/{emotion}": (
        "σ",
        "mean reading now minus base, at the colon of the drift prompts",
    ),
    "emoreg/drift_low/{emotion}": ("σ", "lower end of its 95 % bootstrap interval over prompts"),
    "emoreg/drift_high/{emotion}": ("σ", "upper end of that interval"),
    "emoreg/drift_response/{emotion}": ("σ", "the same over the base's own responses, fixed text"),
    "emoreg/drift_own/{emotion}": ("σ", "on-policy: each model over its own responses"),
    "emoreg/drift_rose": ("emotions", "how many rose, after correction for their number"),
    "emoreg/drift_fell": ("emotions", "how many fell, likewise"),
    "emoreg/drift_mean_abs": ("σ", "mean absolute drift over emotions"),
    "emoreg/drift_structure": ("correlation", "profile over emotions, base to now; 1 is preserved"),
    "emoreg/drift_agreement": (
        "correlation",
        "drift on neutral prompts with drift on challenging ones, over emotions",
    ),
    "emoreg/drift_valence": ("σ", "mean drift weighted by standardised valence: above 0, pleasant"),
    "emoreg/drift_arousal": ("σ", "the same by arousal: above 0, agitated"),
    "emoreg/drift_sonnet": (
        "correlation",
        "drift with the published shift of Claude Sonnet 4.5 in post-training; descriptive",
    ),
    "emoreg/drift_span": (
        "share",
        "of the squared move of the mean activation at the colon, what lies along the vectors",
    ),
    "emoreg/drift_moved": ("share", "length of that move in the mean length of the activation"),
    "emoreg/drift_seconds": ("s", "what the measurement took"),
    "emoreg/audit_verdict": (
        "code",
        "0 held, 1 risen, 2 evaded, 3 stale, 4 blunted, 5 inconclusive; see docs/audit.md",
    ),
    "emoreg/audit/{measurement}": ("share, σ", "one measurement of the audit; docs/audit.md"),
    "emoreg/audit_low/{measurement}": ("share, σ", "lower end of its 95 % interval"),
    "emoreg/audit_high/{measurement}": ("share, σ", "upper end of that interval"),
    "emoreg/audit_tokens": (
        "tokens",
        "that went forward for it, by the share of blocks they passed",
    ),
    "emoreg/audit_seconds": ("s", "what the audit took"),
}


def metric_of(name: str) -> tuple[str, str] | None:
    """The row of the table that a logged name belongs to, and its unit; None if there is none.

    A regularizer that has a name has it after ``emoreg/``.
    """
    bare = re.sub(r"^eval_(.+_)?(?=emoreg/)", "", name)
    for sought in (bare, re.sub(r"^emoreg/[^/]+/", "emoreg/", bare)):
        for metric, (unit, _meaning) in METRICS.items():
            if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(metric)), sought):
                return metric, unit
    return None


def described(name: str) -> bool:
    """Whether a logged name is in the table."""
    return metric_of(name) is not None


def markdown() -> str:
    """The table as docs/metrics.md shows it."""
    rows = [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in METRICS.items()]
    return "\n".join(["| name | unit | meaning |", "| --- | --- | --- |", *rows])
