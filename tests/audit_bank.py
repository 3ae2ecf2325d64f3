"""The smallest bank that can be audited, for the random models of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_bank(path: Path, topics: int = 3) -> Path:
    """A few texts of every kind, long enough for a mean to start after the fiftieth token."""
    rows: list[dict[str, Any]] = []
    for split in ("fit", "held-out"):
        for i in range(topics):
            for label in ("desperate", "calm"):
                about = {"label": label, "split": split}
                said = [
                    {"role": "user", "content": f"{label} {i}, what now?"},
                    {"role": "assistant", "content": f"{split} {label}."},
                ]
                rows.append({"kind": "transcript", "messages": said, **about})
                rows.append({"kind": "story", "text": f"{split} {i} {label} " * 8, **about})
    notes = (f"The {thing} lies on the table. " * 5 for thing in ("cup", "pen"))
    rows += [{"kind": "neutral", "text": note} for note in notes]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
