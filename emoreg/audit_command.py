"""The command `audit`: finished checkpoints against their base, each with its verdict."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.audit import Auditor
from emoreg.audit_page import MEASURES, write_page
from emoreg.audit_values import Value
from emoreg.audit_view import View
from emoreg.bank import fingerprint, load_bank
from emoreg.checkpoints import Checkpoint, Loader, find
from emoreg.commands import check_writable, source
from emoreg.compare import PACKAGES
from emoreg.errors import ConfigError
from emoreg.files import write_atomic
from emoreg.identity import identity
from emoreg.loading import Source
from emoreg.prompts import load_prompts
from emoreg.vectors import EmotionVectors


def run_audit(flags: Namespace, console: Console) -> None:
    """Audit the checkpoints that the flags name, print what was found, write JSON and a page."""
    checkpoints = find(flags.adapter, flags.model, flags.renamed)
    check_writable(flags.out)
    vectors = EmotionVectors.from_pretrained(flags.vectors)
    texts, prompts, where = load_bank(flags.bank), load_prompts(flags.prompts), source(flags)
    with console.status(f"reading {flags.model}"):
        model, tokenizer = where.load()
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ConfigError(
                f"--model {flags.model} is an adapter; name the base that it was made for there, "
                "and the adapter with --adapter."
            )
        vectors.check(model, tokenizer, name=not flags.renamed)
        auditor = Auditor(
            tokenizer, vectors, texts, prompts, flags.emotion, flags.facets, flags.blocks
        )
        base = auditor.base(model)
    about = {
        "model": identity(model, tokenizer),
        "emotion": flags.emotion,
        "blocks": list(auditor.reader.blocks),
        "watched": list(auditor.own.blocks),
        "facets": list(dict.fromkeys(facet for facet, _ in auditor.own.rows)),
        "bank": fingerprint(texts),
        "prompts": len(auditor.reader.gauge.prompts),
        "caveat": vectors.caveat,
        "versions": {package: version(package) for package in PACKAGES},
    }
    loader, found = Loader(where, model), {}
    del model  # the loader's, who lets it go
    for checkpoint in sorted(checkpoints, key=lambda c: c.adapter is None):
        with console.status(f"reading {checkpoint.folder}"):
            found[checkpoint.name] = _audited(auditor, loader, checkpoint, base, where)
    rows = {c.name: {"step": c.step, **found[c.name]} for c in checkpoints}
    for name, row in rows.items():
        console.print(table(name, row))
        _print_verdict(row, console)
    if vectors.caveat:
        console.print(vectors.caveat, soft_wrap=True, markup=False)
    written = {"about": about, "checkpoints": rows}
    text = json.dumps(written, indent=1, ensure_ascii=False)
    path = write_atomic(flags.out / "audit.json", text + "\n")
    page = write_page(written, flags.out / "audit.html")
    console.print(f"emoreg: wrote {path} and {page}", soft_wrap=True, markup=False)


def _audited(
    auditor: Auditor, loader: Loader, checkpoint: Checkpoint, base: View, where: Source
) -> dict[str, Any]:
    """One checkpoint; a whole model's answers are read by the base once that is loaded again."""
    began = time.monotonic()
    with loader.open(checkpoint) as model:
        if checkpoint.adapter is not None:
            found = auditor.now(model, base)
        else:
            view = auditor.reader.now(model, base)
    if checkpoint.adapter is None:
        del model
        again, _ = where.load()
        reread = auditor.reader.rescore(again, view.texts) if view.texts else None
        found = auditor.compare(base, view, reread)
    return {**found.row(), "seconds": time.monotonic() - began}


def table(name: str, row: Mapping[str, Any]) -> Table:
    """Every measurement of a checkpoint with its interval.

    Args:
        name: Of the checkpoint.
        row: Its audit, as `Audit.row` gives it.
    """
    title = f"{name}: audit, against the base [95 %]"
    shown = Table(title=Text(title, no_wrap=True), title_justify="left", min_width=len(title))
    for column in ("measurement", "value", "interval"):
        shown.add_column(column, justify="right" if column == "value" else "left")
    for key, words in MEASURES.items():
        if key in row["facts"]:
            fact = Value(**row["facts"][key])
            interval = f"[{fact.low:+.2f}, {fact.high:+.2f}]"
            shown.add_row(Text(words), f"{fact.value:+.2f}", Text(interval))
        else:
            shown.add_row(Text(words), "–", "not measured")
    return shown


def _print_verdict(row: Mapping[str, Any], console: Console) -> None:
    console.print(Text(f"verdict: {row['verdict']}", style="bold"))
    for reason in row["reasons"]:
        console.print(f"  {reason}", soft_wrap=True, markup=False)
