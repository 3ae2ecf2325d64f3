"""The demo's two tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def tables(summary: dict[str, Any]) -> list[Table]:
    """The demo's two tables: what the runs did, and the drift of every emotion."""
    from emoreg.demo import ARMS

    base, every = summary["base"], [summary[name] for name in ARMS]
    titles = [arm["title"] for arm in every]
    desperate = [arm["reading"]["desperate"] for arm in every]
    before = f"{desperate[0]['base']:+.2f}"
    seconds = [f"{a['step_seconds']:.2f} ± {a['step_seconds_spread']:.2f}" for a in every]
    own = [f"{r['penalised']:+.2f} (base {r['base_penalised']:+.2f})" for r in desperate]
    rows = [
        ("task loss, nats", loss(base), *map(loss, every)),
        ("success: gamed, families trained on", share(base), *map(share, every)),
        ("gamed, families only tested on [95 %]", outside(base), *map(outside, every)),
        ("desperate, its own directions, σ", "", *own),
        (
            "desperate, held-out directions, σ",
            before,
            *(f"{r['held_out']:+.2f}" for r in desperate),
        ),
        ("seconds per step", "", *seconds),
    ]
    drift = [(e, *(interval(arm["drift"][e]) for arm in every)) for e in summary["emotions"]]
    return [
        grid("Three runs: same start, same data, same seed", ["", "base", *titles], rows),
        grid("Drift from base on held-out directions, σ [95 % over prompts]", ["", *titles], drift),
    ]


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with its first column to the left and the others to the right."""
    table = Table(title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def loss(row: dict[str, Any]) -> str:
    """Task loss."""
    return f"{row['task_loss']:.3f}"


def interval(row: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def share(row: dict[str, Any]) -> str:
    """In-domain gamed share."""
    return f"{row['gamed']['in_domain']:.3f}"


def outside(row: dict[str, Any]) -> str:
    """Out-of-domain gamed share with its interval over prompts."""
    gamed = row["gamed"]
    low, high = gamed["out_of_domain_interval"]
    return f"{gamed['out_of_domain']:.2f} [{low:.2f}, {high:.2f}]"
