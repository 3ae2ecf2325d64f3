"""Audits the adapters that the comparison left: the verdict, and the facts that it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effect_arms import ARMS
from effect_run import TUNING_SEED, Workshop
from peft import PeftModel

from emoreg.audit import Auditor
from emoreg.audit_view import View
from emoreg.files import write_atomic
from emoreg.tiny.bank import deflections, urgency_texts
from emoreg.tiny.vectors import READ_BLOCKS

Key = tuple[tuple[str, ...] | None, tuple[int, ...]]


def audit_all(shop: Workshop, out: Path) -> None:
    """Audit every finished run of a world that was not audited, but for those of the tuning."""
    texts = [*shop.place.bank, *urgency_texts(), *deflections(shop.place.world)]
    known: dict[Key, tuple[Auditor, View]] = {}
    for path in sorted((out / shop.place.name).glob("*/*/run.json")):
        target = path.with_name("audit.json")
        if target.exists():
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["seed"] == TUNING_SEED:
            continue
        key = _watched(run)
        if key not in known:
            facets, blocks = key
            auditor = Auditor(
                shop.tokenizer, shop.place.fit, texts, shop.drift, "desperate", facets, blocks
            )
            known[key] = auditor, auditor.base(shop.model)
        auditor, base = known[key]
        model, _ = shop.place.load()
        tuned: Any = PeftModel.from_pretrained(model, str(path.with_name("adapter"))).eval()
        found = auditor.now(tuned, base)
        write_atomic(target, json.dumps(found.row(), indent=1) + "\n")
        print(f"{path.parent.relative_to(out)}: {found.verdict}; {found.reasons[:1]}", flush=True)


def _watched(run: dict[str, Any]) -> Key:
    """The facets and blocks that the arm's terms run on; a control's are those of `refit`."""
    arm = ARMS[run["arm"]]
    knobs = arm.knobs(run["strength"]) if arm.vectors == "own" else {}
    facets = knobs.get("facets")
    return tuple(facets) if facets else None, tuple(knobs.get("blocks", READ_BLOCKS))
