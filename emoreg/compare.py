"""The command `drift`: finished checkpoints measured against their base, side by side."""

from __future__ import annotations

import platform
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.baseline import read_base
from emoreg.callbacks import described
from emoreg.card import brief
from emoreg.checkpoints import Checkpoint, Loader, find
from emoreg.commands import check_writable, source
from emoreg.drift import Drift
from emoreg.errors import ConfigError
from emoreg.identity import identity
from emoreg.journal import FILE, Journal, Run
from emoreg.prompts import OWN_PROMPTS, load_prompts
from emoreg.reporting import write_runs
from emoreg.series import Measured, Series
from emoreg.snapshot import Gauge
from emoreg.vectors import EmotionVectors

SHOWN = 10  # risers, and fallers, in a table
PACKAGES = ("emoreg", "torch", "transformers", "peft")
STATISTICS = {
    "structure": "profile kept (1: the same shape)",
    "agreement": "neutral and challenging prompts agree",
    "valence": "pleasant (+) or unpleasant (−), σ",
    "arousal": "agitated (+) or still (−), σ",
    "sonnet": "like Claude Sonnet 4.5's published shift",
    "span": "of the move, in the emotions' span",
    "moved": "length of the move, of the activation's",
}


def run_drift(flags: Namespace, console: Console) -> None:
    """Measure the checkpoints that the flags name, print what moved, write journals and a page."""
    checkpoints = find(flags.adapter, flags.model, flags.renamed)
    check_writable(flags.out)
    for checkpoint in checkpoints:
        if (flags.out / checkpoint.name).resolve() == checkpoint.folder.resolve():
            raise ConfigError(
                f"--out {flags.out} would put the measurement of {checkpoint.folder} into the "
                "folder itself, in the place of its own journal; name another."
            )
    vectors = EmotionVectors.from_pretrained(flags.vectors)
    probe = vectors.probe(flags.facets, flags.blocks)
    prompts, file = load_prompts(flags.prompts), Path(flags.prompts or OWN_PROMPTS)
    where = source(flags)
    with console.status(f"reading {flags.model}"):
        model, tokenizer = where.load()
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ConfigError(
                f"--model {flags.model} is an adapter; name the base that it was made for there, "
                "and the adapter with --adapter."
            )
        vectors.check(model, tokenizer, name=not flags.renamed)
        gauge = Gauge(tokenizer, prompts, probe, flags.response_tokens)
        base = read_base(model, gauge, flags.cache)
    about = {
        **described(gauge, base.snapshot, file),
        "on_policy": "always" if flags.on_policy and base.snapshot.texts else "never",
        "drift_steps": 0,
        "vectors": brief(vectors.card),
        "cached": base.cached,
    }
    header = {"model": identity(model, tokenizer), "versions": _versions()}
    loader = Loader(where, model)
    del model  # the loader's, who lets it go
    results = {}
    for checkpoint in sorted(checkpoints, key=lambda c: c.adapter is None):
        with console.status(f"reading {checkpoint.folder}"):
            found = _measured(loader, checkpoint, Series(gauge, base.snapshot), flags.on_policy)
        run = _written(flags.out / checkpoint.name, checkpoint, header, about, found)
        results[checkpoint.name] = found, run
    for checkpoint in checkpoints:
        for table in tables(checkpoint.name, results[checkpoint.name][0].measured):
            console.print(table)
    if vectors.caveat:
        console.print(vectors.caveat, soft_wrap=True, markup=False)
    page = write_runs([results[c.name][1] for c in checkpoints], flags.out / "report.html")
    console.print(f"emoreg: wrote {page} and {flags.out}/*/{FILE}", soft_wrap=True, markup=False)


class _Timed(NamedTuple):
    measured: Measured
    seconds: float


def _measured(loader: Loader, checkpoint: Checkpoint, series: Series, own: bool) -> _Timed:
    began = time.monotonic()
    with loader.open(checkpoint) as model:
        found = series.measure(model, checkpoint.step, own)
    return _Timed(found, time.monotonic() - began)


def _written(
    folder: Path,
    checkpoint: Checkpoint,
    header: Mapping[str, Any],
    about: Mapping[str, Any],
    found: _Timed,
) -> Run:
    """A journal such as a training run leaves, of this measurement alone."""
    journal = Journal(folder)
    journal.begin(
        0,
        time=datetime.now().astimezone().isoformat(timespec="seconds"),
        name=checkpoint.name,
        trainer="",
        args={},
        adapter=checkpoint.settings,
        wandb=None,
        **header,
    )
    step, event = checkpoint.step, found.measured.event
    whole = checkpoint.adapter is None
    journal.add("baseline", 0, base="step-0 snapshot" if whole else "adapters off", **about)
    journal.add("drift", step, seconds=found.seconds, final=True, **event)
    journal.add("end", step, seconds=found.seconds, loss=None)
    return journal.run


def tables(name: str, found: Measured) -> Iterator[Table]:
    """What moved, with intervals, and the statistics of the whole move.

    Args:
        name: Of the checkpoint.
        found: Its measurement.
    """
    rose, fell = found.drift.rose, found.drift.fell
    title = f"{name}: drift from the base at the colon, σ [95 % over prompts]"
    moved = Table(title=Text(title, no_wrap=True), title_justify="left", min_width=len(title))
    for column in ("", "emotion", "drift", "interval", "q"):
        moved.add_column(column, justify="right" if column in ("drift", "q") else "left")
    for word, emotions in (("rose", rose), ("fell", fell)):
        for emotion in emotions[:SHOWN]:
            moved.add_row(word, *_row(found.drift, emotion))
        if len(emotions) > SHOWN:
            moved.add_row(word, f"and {len(emotions) - SHOWN} more")
    if not rose and not fell:
        moved.add_row("", "no emotion moved more than chance")
    yield moved
    title = f"{name}: the move as a whole"
    whole = Table(title=Text(title), title_justify="left", show_header=False)
    whole.add_row("emotions that rose, fell", f"{len(rose)}, {len(fell)} of {len(found.drift.q)}")
    for key, words in STATISTICS.items():
        whole.add_row(words, _statistic(found.event["stats"][key]))
    yield whole


def _row(found: Drift, emotion: str) -> tuple[Text, str, Text, str]:
    i = found.emotions.index(emotion)
    interval = f"[{found.low[i]:+.2f}, {found.high[i]:+.2f}]"
    q = "< 0.001" if found.q[i] < 0.001 else f"{found.q[i]:.3f}"
    return Text(emotion), f"{found.mean[i]:+.2f}", Text(interval), q


def _statistic(found: Any) -> Text:
    """A statistic with its interval, or what chance would give; a dash where there is none."""
    row = found if isinstance(found, Mapping) else {"value": found}
    if row.get("value") is None or not isfinite(row["value"]):
        return Text("–")
    text = f"{row['value']:.2f}"
    if isfinite(row.get("low", nan)):
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    if "chance" in row:
        text += f" (by chance {row['chance']:.2f})"
    return Text(text)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
