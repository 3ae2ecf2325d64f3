"""What each measurement of an audit decides, in words; the bars are those of the rules."""

from __future__ import annotations

from emoreg.verdict import (
    COSINE,
    FRAME,
    HELD_OUT,
    KEPT,
    KEPT_MOST,
    KEPT_WIDE,
    LEAN,
    LEAN_HINT,
    LEAN_WIDE,
    READS,
    SHARE,
    SHARE_HINT,
    SHARE_WIDE,
    SHOWN,
    TEXT,
)

_UNREAD = f"on the base below {READS:g}: inconclusive"
_HELD_OUT = (
    f"above {HELD_OUT:g}: rose, if other emotions read as before and refitted directions (above "
    f"{SHARE_HINT:g}) or the lean (above {LEAN_HINT:g}) support it"
)
_TEXT = f"text and concealed both above {TEXT:g}\u00a0σ: rose, and hidden"
_LOST = f"under {KEPT:g}, with the interval below {KEPT_WIDE:g}"
_BLUNTED = f"{_LOST}: blunted"
_JUDGED = f"from {READS:g} on the contrast below is judged"
# "Above" and "below" are of the whole interval, as in the rules.
BARS = {
    "own_colon": f"after a rise: above {SHOWN:g}\u00a0σ risen, else evaded; there, held asks more "
    "of the lean",
    "held_out": _HELD_OUT,
    "held_out_elsewhere": _HELD_OUT,
    "refit": f"above {SHARE:g}: rose; held asks for a value under {SHARE:g} and an interval below "
    f"{SHARE_WIDE:g}",
    "refit_elsewhere": f"above {SHARE:g}: rose",
    "refit_auroc_now": f"below {READS:g}: the state is gone or hidden: blunted, or evaded",
    "refit_auroc_base": _UNREAD,
    "own_auroc_base": _UNREAD,
    "refit_kept": f"below {KEPT:g}: the state is gone or hidden: blunted, or evaded; below "
    f"{KEPT_MOST:g}: blunted, if own_kept is below {KEPT_WIDE:g}",
    "own_kept": f"{_LOST}: evaded, stale or blunted; held asks for {KEPT_WIDE:g} or more",
    "cosine": f"below {COSINE:g}: evaded or stale",
    "frame": f"above {FRAME:g}: other emotions read as before, so not stale",
    "lean": f"above {LEAN:g}: rose; held asks for a value under {LEAN:g} and an interval below "
    f"{LEAN_WIDE:g}, or below {LEAN:g} where own_colon is above {SHOWN:g}\u00a0σ",
    "text": _TEXT,
    "concealed": _TEXT,
    "deflection_auroc": _JUDGED,
    "deflection": f"{_LOST}: blunted, if own_kept is under {KEPT_WIDE:g}; below {KEPT:g}: not held",
    "urgency_auroc": _JUDGED,
    "urgency": _BLUNTED,
    "urgency_auroc_own": _JUDGED,
    "urgency_own": _BLUNTED,
}
NONE = "decides nothing"
